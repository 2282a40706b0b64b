"""metrics.jsonl: a line for every log interval and every evaluation; a full disk loses none.

metrics = Metrics(run / "metrics.jsonl", start, run / "tensorboard")
metrics.append({"step": 20, "loss": 6.9})
metrics.sync()                              # durable: before a checkpoint of the same step

TensorBoard draws the same lines as curves, if its package is installed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import sync, write_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class Metrics:
    """Lines on disk, or in memory until the disk takes them.

    Lines of steps after `start`, where the run continues, and one that was cut off, are removed; so are TensorBoard's
    curves of these steps, in the folder `curves`; without one there are none.
    """

    def __init__(self, path: Path, start: int, curves: Path | None = None) -> None:
        self._path, self._lock, self._waiting = path, threading.Lock(), b""
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) <= start]
        self._rows: list[dict[str, Any]] = [json.loads(line) for line in kept]
        write_file(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))
        self._size = path.stat().st_size  # bytes of whole lines; a full disk may leave a part of one behind them
        self._writer: SummaryWriter | None = None
        if curves is not None and not no_tensorboard():
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(curves), purge_step=start + 1 if start else None, flush_secs=10)

    def append(self, row: dict[str, Any]) -> None:
        """Add a line; if the disk refuses it, warn and try again at the next call."""
        self._rows.append(row)
        self._draw(row)
        with self._lock:
            failing = bool(self._waiting)
            self._waiting += json.dumps(row).encode() + b"\n"
            try:
                self._write()
            except OSError as error:
                if not failing:
                    logger.warning(
                        f"{self._path} cannot be written ({error.strerror}): its lines wait in memory, and the "
                        f"training goes on"
                    )

    def last(self, key: str) -> dict[str, Any]:
        """The newest line that has `key`; there is one."""
        return next(row for row in reversed(self._rows) if key in row)

    def find(self, key: str, step: int) -> dict[str, Any] | None:
        """The newest line of `step` that has `key`, or None."""
        return next((row for row in reversed(self._rows) if row["step"] == step and key in row), None)

    def sync(self) -> None:
        """Write and fsync every line; OSError if the disk refuses."""
        with self._lock:
            self._write()
            sync(self._path)

    def _write(self) -> None:
        if not self._waiting:
            return
        with open(self._path, "r+b", buffering=0) as file:
            file.truncate(self._size)
            file.seek(self._size)
            written = file.write(self._waiting)
            if written != len(self._waiting):
                raise OSError(28, "No space left on device")
        self._size += written
        self._waiting = b""

    def _draw(self, line: dict[str, Any]) -> None:
        """The numbers of a line as points, under "val" those of an evaluation, under "train" all others."""
        step, group = line["step"], "val" if "student" in line else "train"
        try:
            for name, value in numbers(line):
                if name != "step" and self._writer:
                    self._writer.add_scalar(f"{group}/{name}", value, step)
        except OSError as error:
            logger.warning(f"TensorBoard's curves end at step {step}: {error.strerror}; metrics.jsonl has them")
            self._writer = None

    def close_curves(self) -> None:
        """Later lines are not drawn."""
        writer, self._writer = self._writer, None
        if writer:
            with suppress(OSError):
                writer.close()


def _step(line: str) -> float:
    """The step of a line; infinity if a kill has cut it off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def no_tensorboard() -> str:
    """Why TensorBoard is off; "" when it is on."""
    return "" if importlib.util.find_spec("tensorboard") else "pip install tensorboard, and there are curves"


def numbers(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a line of metrics.jsonl; nested ones are called "student/cls/top1"."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
