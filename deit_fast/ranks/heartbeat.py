"""A status file per rank in run/logs, beside its log, so that a hung or killed rank can be named.

    with Heartbeat(rank, world_size) as heartbeat:
        heartbeat.begin(folder)
        for batch in heartbeat.watch(batches): …        # stages "step" and "data"
        heartbeat.at("evaluation")
    read(folder, world_size)                            # the newest status of each rank

A thread writes the file once a second. So a process that was killed, hangs in a driver or waits for a dead file
server leaves its last stage behind. Rank 0's thread reads the others' files and names a rank that the others wait for.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..command import LOST, NOBODY, Ending, exit_code
from ..files import write_file
from .log import rank_log

logger = logging.getLogger(__name__)

SECONDS = 1.0  # between two writes
WAITED_FOR = 60.0  # seconds in one stage of one step after which a rank is named
LAUNCHED = "DEIT_FAST_LAUNCHED"  # in the environment of processes that our launcher started
STAGES = ("set-up", "data", "step", "evaluation", "checkpoint")  # in a step's order


class RankLost(Ending, RuntimeError):
    """Another rank has ended, so this one cannot go on. The first rank that is left says so."""

    def __init__(self, status: Status) -> None:
        super().__init__(
            f"{status} is gone; it was last seen in the stage {status.stage} of step {status.step}. The same command "
            f"continues from the last checkpoint"
        )
        self.code = LOST if status.code is None else status.code
        self.printed_by = 1 if status.rank == 0 else 0
        # An error of the rank's own is printed already, and the launcher names what was killed of its processes.
        if self.code != LOST or LAUNCHED in os.environ:
            self.printed_by = NOBODY


@dataclass
class Status:
    """The content of a status file."""

    rank: int
    host: str
    pid: int
    stage: str = STAGES[0]
    step: int = 0  # optimiser step
    since: float = 0.0  # time.time() at which the stage began
    written: float = 0.0  # time.time() of the write
    code: int | None = None  # exit code of a rank that ended by its own error

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def progress(self) -> tuple[int, int]:
        return self.step, STAGES.index(self.stage)

    @property
    def gone(self) -> bool:
        """True if the process is dead; on another host, if its file is older than 10 s."""
        if self.host == socket.gethostname():
            try:
                state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                return True
            return state in "ZX"
        return time.time() - self.written > 10 * SECONDS


def path(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.alive"


def read(folder: Path, world_size: int) -> list[Status]:
    """The newest status of each rank; missing and unreadable files are left out."""
    statuses = []
    for rank in range(world_size):
        with suppress(OSError, ValueError, TypeError):
            statuses.append(Status(**json.loads(path(folder, rank).read_text())))
    return statuses


class Heartbeat:
    """Writes this rank's status file and its log, from `begin` on."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._status = Status(rank, socket.gethostname(), os.getpid(), since=time.time())
        self._world_size, self._log = world_size, rank_log(rank)
        self._folder: Path | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="deit_fast-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._begin_log = self._log.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Write the exit code of this rank's own error for the others, or raise RankLost if another has ended."""
        try:
            if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
                if (lost := self._culprit()) is not None:
                    self._end(None)
                    raise RankLost(lost) from error
            self._end((exit_code(error) or 1) if isinstance(error, Exception) else None)
        finally:
            self._log.__exit__(kind, error, trace)

    def begin(self, folder: Path) -> None:
        """Write status and log into `folder` from now on; a later call changes the folder."""
        self._begin_log(folder)
        self._folder = folder
        self._write()
        if self._thread.ident is None:
            self._thread.start()

    def at(self, stage: str, step: int | None = None) -> None:
        """Two assignments: cheap enough for every step."""
        status = self._status
        status.stage, status.since = stage, time.time()
        if step is not None:
            status.step = step

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; this rank is in the stage "step" until the next one is asked for, then in the stage "data"."""
        for batch in batches:
            self.at("step", batch.step)
            done = batch.step + 1
            yield batch
            del batch  # its memory is the loader's again
            self.at("data", done)

    def _culprit(self, patience: float = 5.0) -> Status | None:
        """The rank whose end made a collective fail: it ended by an error, or is gone. None if there is none."""
        deadline = time.monotonic() + patience  # a killed process lives on for a moment
        while self._folder is not None and self._world_size > 1:
            others = [other for other in read(self._folder, self._world_size) if other.rank != self._status.rank]
            failed = [other for other in others if other.code is not None] or [other for other in others if other.gone]
            if failed or time.monotonic() > deadline:
                return min(failed, key=lambda other: other.written, default=None)
            time.sleep(0.1)
        return None

    def _end(self, code: int | None) -> None:
        if self._folder is not None:
            self._ended.set()
            if self._thread.ident is not None:  # a signal may come before it has started
                self._thread.join()
            self._status.code = code
            self._write()

    def _write(self) -> None:
        assert self._folder is not None
        self._status.written = time.time()
        target = path(self._folder, self._status.rank)
        with suppress(OSError):  # a full disk, or a folder that another command's --fresh removed: the run goes on
            write_file(target, lambda part: part.write_text(json.dumps(asdict(self._status))), durable=False)

    def _beat(self) -> None:
        parent, said = os.getppid(), None
        while (folder := self._folder) is not None and not self._ended.wait(SECONDS):
            self._write()
            if os.getppid() != parent and "TORCHELASTIC_RUN_ID" in os.environ:
                logger.error("the launcher of this process is gone, so it ends too")
                os._exit(1)
            if self._status.rank == 0:
                # A single rank reads no file: its disk may be what hangs.
                statuses = read(folder, self._world_size) if self._world_size > 1 else [self._status]
                slow = waited_for(statuses, time.time(), WAITED_FOR)
                if slow and slow[0].progress != said:
                    said = slow[0].progress
                    logger.warning(warning(slow, time.time(), self._world_size))
                    if self._status in slow:
                        logger.info("where its threads are:\n%s", threads())


def threads() -> str:
    """The stack of every thread of this process, the newest call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return "\n".join(f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames)


def waited_for(statuses: Sequence[Status], now: float, limit: float = WAITED_FOR) -> list[Status]:
    """The ranks furthest behind, once they have been in one stage for more than `limit` seconds.

    If all ranks are in the same stage, the limit is ten times as long: all may be compiling or evaluating.
    """
    behind = min((status.progress for status in statuses), default=None)
    last = [status for status in statuses if status.progress == behind]
    patience = 10 * limit if len(last) == len(statuses) else limit
    return [status for status in last if now - status.since > patience]


def warning(slow: list[Status], now: float, world_size: int) -> str:
    """Rank 0's warning about the ranks that the others wait for."""
    first = slow[0]
    seconds = f"for {now - first.since:.0f} s"
    if len(slow) == world_size:
        who = "every rank" if world_size > 1 else "the training"
        return f"{who} has been in the stage {first.stage} of step {first.step} {seconds}"
    silent = " and gives no sign of life" if now - first.written > 10 * SECONDS else ""
    others = f", and {len(slow) - 1} more," if len(slow) > 1 else ""
    return f"{first}{others} has been in the stage {first.stage} of step {first.step} {seconds}{silent}; others wait"
