"""The run folder: what may be written into it, and its files beside the checkpoints.

config.json     the configuration; a different one is refused
classes.json    class names, index = label
metrics.jsonl   a line every --log-every steps, and one for every evaluation
summary.json    the scores of a finished run; while it is missing, the run is unfinished
report.png      curves
checkpoints/    see checkpoint.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from . import checkpoint
from .config import Config, difference
from .distributed import Ranks


def open_run(config: Config, run: Path, ranks: Ranks) -> dict[str, Any] | None:
    """The summary of a finished run, or None when there is something to train.

    Raises:
        ValueError: the folder is not ours, cannot be written to, or holds a run of another configuration.
    """
    known, summary = run / "config.json", run / "summary.json"
    if run.exists() and not (run.is_dir() and (known.exists() or not any(run.iterdir()))):
        raise ValueError(f"{run} is there and is not a run of deit_fast: type another --out")
    if not os.access(next(parent for parent in run.absolute().parents if parent.exists()), os.W_OK | os.X_OK):
        raise ValueError(f"{run} cannot be written to: type another --out")
    if config.fresh:
        ranks.wait()
        if ranks.main and run.exists():
            shutil.rmtree(run)
        ranks.wait()
        return None
    if known.exists():
        changes = difference(Config.from_json(known), config)
        if changes:
            raise ValueError(
                f"{run} was trained with another configuration: {', '.join(changes)}. Type the old values, another "
                f"--out, or --fresh to discard it"
            )
    return json.loads(summary.read_text()) if summary.exists() else None


def begin(config: Config, run: Path, classes: list[str], start: int) -> None:
    """Create the folder, or cut its metrics back to step `start`, from which the run continues."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(run / "config.json", dataclasses.asdict(config))
    except OSError as error:
        raise ValueError(f"{run} cannot be written to ({error.strerror}): type another --out") from error
    checkpoint.write_json(run / "classes.json", classes)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    # The last line may be half written if the run was killed.
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start]
    checkpoint.write_file(metrics, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))


def append(run: Path, row: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl."""
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
