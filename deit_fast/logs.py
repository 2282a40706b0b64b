"""What a run says beside its console: a file for every rank, and curves for TensorBoard.

run/logs/rank_N.log     all that rank N has to say: decisions, its log lines, warnings, an error with its traceback
run/tensorboard/        rank 0's curves, where the package tensorboard is installed

Modules say things by `logging.getLogger(__name__)`; a warning is printed as well, by the rank that gives it.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
_PACKAGE = logging.getLogger(__package__)


class _File(logging.FileHandler):
    """A disk that refuses must not end a run, nor fill its console."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        return

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class RankLog:
    """Everything this package logs in this process, kept in memory until `begin` says in which folder.

    A context manager: an error that ends the body is logged with its traceback.

    Args:
        rank: of this process.
    """

    def __init__(self, rank: int) -> None:
        self._rank, self._level = rank, _PACKAGE.level
        console = logging.StreamHandler(sys.stderr)
        console.setLevel(logging.WARNING)
        console.setFormatter(logging.Formatter("warning: %(message)s"))
        # A flush level above all: nothing leaves before the run folder stands.
        self._kept = MemoryHandler(100_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self._handlers: list[logging.Handler] = [console, self._kept]

    def begin(self, folder: Path) -> None:
        """Write what was said so far, and all that follows, into `folder`; it may change."""
        folder.mkdir(parents=True, exist_ok=True)
        file = _File(folder / f"rank_{self._rank}.log", delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        for record in self._kept.buffer:
            file.handle(record)
        self._kept.buffer.clear()
        self._remove(self._handlers.pop())  # the memory, or the file of the run before
        self._handlers.append(file)
        _PACKAGE.addHandler(file)

    def __enter__(self) -> RankLog:
        _PACKAGE.setLevel(logging.INFO)
        for handler in self._handlers:
            _PACKAGE.addHandler(handler)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            _PACKAGE.info("ended by an error", exc_info=error)
        for handler in self._handlers:
            self._remove(handler)
        _PACKAGE.setLevel(self._level)

    def _remove(self, handler: logging.Handler) -> None:
        _PACKAGE.removeHandler(handler)
        handler.close()


class TensorBoard:
    """The lines of metrics.jsonl as curves.

    Args:
        folder: of the event files.
        start: the step that the run continues from; curves of later ones are discarded.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter | None = SummaryWriter(
            str(folder), purge_step=start + 1 if start else None, flush_secs=10
        )

    @staticmethod
    def missing() -> str:
        """Why there are no curves; empty where there are."""
        return "" if importlib.util.find_spec("tensorboard") else "pip install tensorboard, and there are curves"

    def add(self, line: dict[str, Any]) -> None:
        """Add one line: its numbers under "train", those of an evaluation under "val"."""
        step, group = line["step"], "val" if "student" in line else "train"
        try:
            for name, value in numbers(line):
                if name != "step" and self._writer:
                    self._writer.add_scalar(f"{group}/{name}", value, step)
        except OSError as error:
            logger.warning(f"TensorBoard's curves end at step {step}: {error.strerror}; metrics.jsonl has them")
            self._writer = None

    def close(self) -> None:
        if self._writer:
            with suppress(OSError):
                self._writer.close()


def numbers(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a line of metrics.jsonl, those of nested ones as "student/cls/top1"."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
