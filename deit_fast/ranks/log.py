"""A log file for every rank, beside the console.

run/logs/rank_N.log     decisions, log lines and warnings of rank N, and an error with its traceback

Modules log by `logging.getLogger(__name__)`; a warning is also printed, by the rank that logs it.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
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


class RankLog:
    """Everything that this package logs in this process, kept in memory until `begin` names the folder.

    A context manager: an error that ends the body is logged with its traceback.
    """

    def __init__(self, rank: int) -> None:
        self._rank, self._level = rank, _PACKAGE.level
        console = logging.StreamHandler(sys.stderr)
        console.setLevel(logging.WARNING)
        console.setFormatter(logging.Formatter("warning: %(message)s"))
        # The flush level is above all others, so records stay in memory until the run folder exists.
        self._kept = MemoryHandler(100_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self._handlers: list[logging.Handler] = [console, self._kept]

    def begin(self, folder: Path) -> None:
        """Write what was logged so far, and all that follows, into `folder`; a later call changes the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        file = _File(folder / f"rank_{self._rank}.log", delay=True, errors="backslashreplace")
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
