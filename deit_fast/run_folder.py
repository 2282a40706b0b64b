"""The run folder: what may be written into it, and its files beside the checkpoints.

config.json     the configuration; a different one is refused
data.json       class names (index = label), numbers of images, a digest of the labels; other data is refused
metrics.jsonl   a line every --log-every steps, and one for every evaluation
report.png      curves
logs/           what each process printed and where it was last
summary.json    the scores of a finished run; while it is missing, the run is unfinished
checkpoints/    see checkpoint.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from . import checkpoint
from .config import Config, difference
from .data import Dataset

# Everything of ours, in the order in which --fresh discards it: the marks of a finished and of a resumable run first.
OURS = ("summary.json", "checkpoints", "data.json", "metrics.jsonl", "report.png", "logs", "config.json")


def open_run(config: Config, run: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None when there is something to train. Nothing is written.

    Raises:
        ValueError: the folder is not ours, cannot be written to, or holds a run of another configuration.
    """
    known, summary = run / "config.json", run / "summary.json"
    if run.exists() and not (run.is_dir() and (known.exists() or not any(run.iterdir()))):
        raise ValueError(f"{run} is there and is not a run of deit_fast: type another --out")
    nearest = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{run} cannot be written to: type another --out")
    if not known.exists():
        return None
    old = Config.from_json(known)  # a foreign config.json, such as a downloaded model's, is refused here
    if config.fresh:
        return None
    changes = difference(old, config)
    if changes:
        raise ValueError(
            f"{run} was trained with another configuration: {', '.join(changes)}. Type the old values, another "
            f"--out, or --fresh to discard it"
        )
    return read_summary(run) if summary.exists() else None


def read_summary(run: Path) -> dict[str, Any]:
    """The scores of a finished run.

    Raises:
        ValueError: `summary.json` is damaged.
    """
    summary = checkpoint.read_json(run / "summary.json")
    if not isinstance(summary, dict) or not summary.keys() >= {"teacher", "student", "ema"}:
        raise ValueError(f"{run / 'summary.json'} is damaged: remove it, and the same command writes it again")
    return summary


def best_weights(run: Path) -> Path:
    """A file of the newest checkpoint: the moving average where that scored better, else the last weights.

    Raises:
        ValueError: the folder holds no checkpoint.
    """
    newest = checkpoint.newest(run)
    if newest is None:
        raise ValueError(f"{run} holds no checkpoint yet: wait for the first, or train it again with --fresh")
    summary = read_summary(run) if (run / "summary.json").is_file() else {}
    student, average = (
        scores["fused" if "fused" in scores else "cls"]["top1"] if scores else -1.0
        for scores in map(summary.get, ("student", "ema"))
    )
    return newest / ("ema.safetensors" if average > student else "model.safetensors")


def describe(train_set: Dataset, val_set: Dataset) -> dict[str, Any]:
    """What makes two data sets the same to a run: classes, counts and labels in their order."""
    labels = hashlib.sha256(train_set.labels.tobytes() + val_set.labels.tobytes()).hexdigest()
    return {"classes": train_set.classes, "train": len(train_set), "val": len(val_set), "labels": labels}


def check_data(run: Path, data: dict[str, Any]) -> None:
    """Refuse to continue a run on other data.

    Raises:
        ValueError: classes, counts or labels have changed since the run began.
    """
    path = run / "data.json"
    if not path.exists():
        return
    old = checkpoint.read_json(path)
    for key in ("classes", "train", "val", "labels"):
        if old.get(key) != data[key]:
            what = {"train": "number of training images", "val": "number of validation images"}.get(key, key)
            raise ValueError(
                f"the data's {what} changed since {run} began: bring the old data back, or type --fresh or a new --out"
            )


def begin(config: Config, run: Path, data: dict[str, Any], start: int) -> None:
    """Create the folder (emptied of an old run by --fresh), or cut its metrics back to step `start`.

    Raises:
        ValueError: the folder cannot be written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        if config.fresh:
            _discard(run)
        checkpoint.write_json(run / "config.json", dataclasses.asdict(config))
        checkpoint.write_json(run / "data.json", data)
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        kept = "".join(line + "\n" for line in lines if _step(line) <= start)
        checkpoint.write_file(metrics, lambda temporary: temporary.write_text(kept))
    except OSError as error:
        raise ValueError(f"{run} cannot be written to ({error.strerror}): type another --out") from error


def _discard(run: Path) -> None:
    """Remove an old run's files, and only those: the folder may be a link, or hold the user's notes."""
    for name in OURS:
        path = run / name
        if path.is_dir():
            # Out of the way in one step: half a removed folder must not look like checkpoints.
            shutil.rmtree(run / ".discarded", ignore_errors=True)
            os.replace(path, run / ".discarded")
            shutil.rmtree(run / ".discarded")
        else:
            path.unlink(missing_ok=True)


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinity for one that was cut off when the run was killed."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


def append(run: Path, row: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl."""
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
