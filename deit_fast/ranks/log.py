"""A log file for every rank, beside the console.

run/logs/rank_N.log     decisions, log lines and warnings of rank N, and an error with its traceback

Modules log by `logging.getLogger(__name__)`; a warning is also printed, by the rank that logs it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

_PACKAGE = logging.getLogger("deit_fast")


class _File(logging.FileHandler):
    """A full disk does not end the run, nor does every line print a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        return

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def rank_log(rank: int) -> Iterator[Callable[[Path], None]]:
    """Log all that this package says while the body runs, and an error of the body with its traceback.

    Records stay in memory until the body names a folder, by calling what it got; a later call changes the folder.
    """
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.WARNING)
    console.setFormatter(logging.Formatter("warning: %(message)s"))
    memory = MemoryHandler(capacity=0)  # keeps what has no target yet, and holds nothing back from one

    def begin(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = _File(folder / f"rank_{rank}.log", delay=True, errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        if memory.target:
            memory.target.close()
        memory.setTarget(file)
        memory.flush()

    level = _PACKAGE.level
    _PACKAGE.setLevel(logging.INFO)
    for handler in (console, memory):
        _PACKAGE.addHandler(handler)
    try:
        yield begin
    except Exception:
        _PACKAGE.info("ended by an error", exc_info=True)
        raise
    finally:
        for handler in (console, memory):
            _PACKAGE.removeHandler(handler)
        if memory.target:
            memory.target.close()
        _PACKAGE.setLevel(level)
