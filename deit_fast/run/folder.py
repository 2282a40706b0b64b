"""The run folder: whether a run may use it, and its files beside the checkpoints.

config.json     the configuration; a different one is refused
data.json       class names (index = label), counts, a digest of the labels, class weights; other data is refused
metrics.jsonl   a line every --log-every steps, and one for every evaluation; written by metrics.py
report.png      curves
report.html     curves, mistakes, suspects, time: one page that needs no other file; see report/
logs/           each rank's log and last status; see ranks/log.py and ranks/heartbeat.py
tensorboard/    the curves again, if tensorboard is installed
summary.json    the scores of a finished run; an unfinished one has none. {"teacher": … or null, "student": …,
                "ema": … or null}, and if images were skipped "bad_images": their paths, sorted
checkpoints/    see checkpoint.py
lock            see files.py
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from ..config import Config, difference
from ..files import LOCK, Lock, check_writable, read_json, remove_parts, write_json
from ..names import headline
from .checkpoint import newest

# What --fresh removes, in this order: first what marks a finished and a resumable run. config.json marks the folder as
# a run, so it stays until the new one replaces it.
OURS = (
    "summary.json", "checkpoints", "data.json", "metrics.jsonl", "report.png", "report.html", "logs", "tensorboard",
    "profile",
)  # fmt: skip


def open_run(config: Config, run: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None if there is something to train. Nothing is written.

    Raises:
        ValueError: the folder is not a run, cannot be written, or holds a run of another configuration.
    """
    known, summary = run / "config.json", run / "summary.json"
    if run.exists() and not (run.is_dir() and (known.exists() or all(map(_is_left, run.iterdir())))):
        raise ValueError(f"{run} exists and is not a run of deit_fast: type another --out")
    check_writable(run, "type another --out", folder=True)
    if not known.exists():
        return None
    old = Config.from_json(known)  # a foreign config.json, such as a downloaded model's, is refused here
    if config.run.fresh:
        return None
    if changes := difference(old, config):
        raise ValueError(
            f"{run} was trained with another configuration: {', '.join(changes)}. Type the old values, another "
            f"--out, or --fresh to discard it"
        )
    if summary.exists():
        return read_summary(run)
    for name in ("data.json", "metrics.jsonl"):  # written before the first checkpoint
        if any((run / "checkpoints").glob("*")) and not (run / name).is_file():
            raise ValueError(
                f"{run} holds checkpoints but no {name}, so it was copied in part: copy it again, type another --out, "
                f"or --fresh to discard it"
            )
    return None


def _is_left(path: Path) -> bool:
    """Whether a file remains of a process that locked the folder, and refused to train or was killed at once."""
    return path.name == LOCK or path.match(".config.json.*.part")


def read_summary(run: Path) -> dict[str, Any]:
    """The scores of a finished run; ValueError if summary.json is damaged."""
    summary = read_json(run / "summary.json")
    if not isinstance(summary, dict) or not summary.keys() >= {"teacher", "student", "ema"}:
        raise ValueError(f"{run / 'summary.json'} is damaged: remove it, and the same command writes it again")
    return summary


def chosen_weights(run: Path) -> Path:
    """A file of the newest checkpoint: the moving average if its headline score is better, else the last weights."""
    checkpoint = newest(run)
    if checkpoint is None:
        raise ValueError(f"{run} holds no checkpoint yet: wait for the first, or train it again with --fresh")
    summary = read_summary(run) if (run / "summary.json").is_file() else {}
    fusion = Config.from_json(run / "config.json").model.fusion
    student, average = (
        scores[headline(scores, fusion)]["top1"] if scores else -1.0 for scores in map(summary.get, ("student", "ema"))
    )
    return checkpoint / ("ema.safetensors" if average > student else "model.safetensors")


def check_data(run: Path, data: dict[str, Any]) -> None:
    """Raise ValueError if classes, counts, labels or class weights have changed since the run began."""
    path = run / "data.json"
    if not path.exists():
        return
    old = read_json(path)
    for key in ("classes", "train", "val", "labels", "class weights"):
        if old.get(key) != data.get(key):
            what = {"train": "number of training images", "val": "number of validation images"}.get(key, key)
            raise ValueError(
                f"the data's {what} changed since {run} began: bring the old data back, or type --fresh or a new --out"
            )


def refuse_a_second(run: Path, lock: Lock) -> None:
    """Lock the folder if it exists, so that a second process ends (ValueError) before it has loaded anything."""
    if run.exists():
        try:
            lock.acquire()
        except OSError as error:
            raise ValueError(f"{run} cannot be written to ({error.strerror}): type another --out") from error


def begin(config: Config, run: Path, data: dict[str, Any], lock: Lock) -> None:
    """Create and lock the folder; --fresh removes the old run's files only: the folder may hold the user's notes."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        for path in [run / name for name in OURS] if config.run.fresh else ():
            if path.is_dir():
                # Renamed first, since half a removed folder must not look like checkpoints.
                shutil.rmtree(run / ".discarded", ignore_errors=True)
                os.replace(path, run / ".discarded")
                shutil.rmtree(run / ".discarded")
            else:
                path.unlink(missing_ok=True)
        remove_parts(run)
        write_json(run / "config.json", config.flat())
        write_json(run / "data.json", data)
    except OSError as error:
        raise ValueError(f"{run} cannot be written to ({error.strerror}): type another --out") from error


def wait_for(run: Path, seconds: float = 70.0) -> None:
    """Wait until this rank sees the folder that rank 0 has made; ValueError after `seconds`.

    NFS may remember for a minute that a file did not exist.
    """
    deadline = time.monotonic() + seconds
    while not (run / "config.json").is_file():
        if time.monotonic() > deadline:
            raise ValueError(f"{run} of rank 0 does not exist here: type an --out on storage that all machines share")
        time.sleep(0.5)
