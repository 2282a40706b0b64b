"""A signal ends a run after a checkpoint, with an exit code that says "run me again".

    with Preemption() as preemption:
        …                                       # setting up: nothing to save, so a signal ends it at once
        with preemption.training(ranks, start):
            for batch in batches:
                …
                if signal := preemption.asked(done):
                    …                           # save, then
                    raise Preempted(signal, done)

SIGTERM (schedulers, torchrun), SIGUSR1 (`sbatch --signal=USR1@120`) and SIGINT (Ctrl-C) only set a flag. A second
Ctrl-C ends the process at once; checkpoints are whole or absent even then. Python calls a signal's handler only when
the main thread returns from a library, where the backward pass of a large batch takes half a minute: so a thread
answers Ctrl-C.

Several ranks have to save the same step. About every `AGREE_EVERY` seconds they all-reduce two numbers in host memory:
the signal, and the seconds of a step. The next time is some steps later; their number follows from the slowest rank's
seconds, so it is the same on all ranks. The device never waits for it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from .. import command
from .group import Ranks
from .heartbeat import RankLost

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGREE_EVERY = 2.0  # seconds: schedulers kill about 30 s after the signal
NOTHING_LOST = "nothing was trained since the command began"
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it, and after a second Ctrl-C nothing would show it again


class Preempted(SystemExit, command.Ending):  # type: ignore[misc]  # `code` is an int here
    """A signal ended the run; `code` is the exit code, so a program that does not catch it ends with that."""

    prefix = ""

    def __init__(self, number: int, step: int | None = None, kept: str = NOTHING_LOST) -> None:
        super().__init__(command.INTERRUPTED if number == signal.SIGINT else command.PREEMPTED)
        self.number = number
        self.kept = kept if step is None else f"step {step} is saved"

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}, {self.kept}: the same command continues"


class Preemption:
    """Listens to SIGNALS while its context is open; in the main thread only, where Python handles signals."""

    def __init__(self, kept: str = NOTHING_LOST) -> None:
        self._kept = kept  # what is not lost when a signal comes before the training
        self._ranks: Ranks | None = None  # while training
        self._number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
            numbers, self._told = os.pipe()
            os.set_blocking(self._told, False)
            self._told_before = signal.set_wakeup_fd(self._told)
            threading.Thread(target=self._answer, args=(numbers,), name="deit_fast-signals", daemon=True).start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._told_before)
            os.close(self._told)
        # The other rank was still setting up, so the signal ended it at once.
        if self._number and isinstance(error, RankLost):
            raise Preempted(self._number) from error

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._ranks is None:
            raise Preempted(number, kept=self._kept)
        self._number = number

    def _answer(self, numbers: int) -> None:
        """Answer every Ctrl-C, whose number comes out of a pipe, until that is closed."""
        cursor, answered = _SHOW_CURSOR if sys.stderr.isatty() else "", False
        while number := os.read(numbers, 1):
            if number[0] != signal.SIGINT:
                continue
            if answered:
                os.write(2, cursor.encode())
                os._exit(command.INTERRUPTED)
            answered = True
            after = " after a checkpoint" if self._ranks is not None else ""
            if os.environ.get("RANK", "0") == "0":
                os.write(2, f"{cursor}stopping{after}; Ctrl-C again stops at once\n".encode())
        os.close(numbers)

    @contextmanager
    def training(self, ranks: Ranks, step: int) -> Iterator[None]:
        """Inside, a signal waits for `asked`, which is called after every step from `step` + 1 on.

        A signal after the last step is ignored: the run is about to end.
        """
        self._last, self._next, self._when = step, step + 1, time.monotonic()
        self._ranks = ranks
        try:
            yield
        finally:
            self._ranks = None

    def asked(self, done: int) -> int:
        """The signal that ends the run after `done` steps, the same on every rank; 0 for none."""
        ranks = self._ranks
        assert ranks is not None
        if ranks.world_size == 1:
            return self._number
        if done < self._next:
            return 0
        seconds = (time.monotonic() - self._when) / (done - self._last)
        # A group that the caller has made may have NCCL only.
        device = torch.device("cpu") if "cpu" in dist.get_backend_config() else ranks.device
        vote = torch.tensor([float(self._number), seconds], dtype=torch.float64, device=device)
        dist.all_reduce(vote, dist.ReduceOp.MAX)
        number, seconds = vote.tolist()
        self._last, self._when = done, time.monotonic()
        self._next = done + max(1, int(AGREE_EVERY / max(seconds, 1e-6)))
        return int(number)
