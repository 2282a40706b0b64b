"""What a run leaves behind while it trains: metrics, curves, checkpoints and the best weights. Rank 0 writes.

start = restore(run, ranks, step)                       # the newest whole checkpoint, loaded
with Record(config, run, ranks, step, start) as record:
    record.log({"step": 20, "loss": 6.9})
    record.save(20, meter.state())                      # copied now, written beside the training
    record.keep_if_best(20, scores)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config import Config
from ..names import headline
from ..ranks.group import Ranks
from ..run import checkpoint
from ..run.metrics import Metrics, TensorBoard
from ..run.snapshot import Snapshots
from ..scores import Scores
from .step import TrainingStep


class Start(NamedTuple):
    """From where a run continues; that of a new one is the default.

    Attributes:
        step: steps done.
        seconds: of training so far.
        meter: what was added up since the last line of metrics.jsonl.
        folder: the checkpoint.
        world_size: processes that had trained it; 0 for a new run.
        unreadable: images that were skipped so far.
    """

    step: int = 0
    seconds: float = 0.0
    meter: dict[str, Any] | None = None
    folder: Path | None = None
    world_size: int = 0
    unreadable: Sequence[str] = ()


def restore(run: Path, ranks: Ranks, step: TrainingStep) -> Start:
    """Load the newest whole checkpoint, which rank 0 has verified, on every rank.

    Raises:
        ValueError: there are checkpoints but none is whole, or it is of another version of deit_fast.
    """
    found: list[Path | None] = []
    ranks.main_first(lambda: found.append(checkpoint.newest(run) if ranks.main else None))
    newest = ranks.gather(found[0])[0]
    if newest is None:
        return Start()
    average = step.ema.module if step.ema else None
    state = ranks.main_first(lambda: checkpoint.load(newest, step.model, average, step.optimizer))
    if step.scaler and state["scaler"]:
        step.scaler.load_state_dict(state["scaler"])
    known = state.get("unreadable", ())  # of a checkpoint from before this was kept: none
    return Start(state["step"], state["seconds"], state["meter"], newest, state["world_size"], known)


class Record:
    """Writes on rank 0; on the others every call does nothing.

    Args:
        start: where the run continues.

    Raises:
        OSError: the run folder cannot be written to.
    """

    def __init__(self, config: Config, run: Path, ranks: Ranks, step: TrainingStep, start: Start) -> None:
        self._config, self._ranks, self._step, self._start = config, ranks, step, start
        self._began, self._last = time.perf_counter(), start.step or None  # the step whose checkpoint is due
        self._metrics: Metrics | None = None
        self._curves: TensorBoard | None = None
        self._snapshots: Snapshots | None = None
        if ranks.main:
            self._metrics = Metrics(run / "metrics.jsonl", start.step)
            if not TensorBoard.missing():
                self._curves = TensorBoard(run / "tensorboard", start.step)
            self._snapshots = Snapshots(run, config.keep, ranks.device, start.step or None, self._metrics.sync)

    def __enter__(self) -> Record:
        # A kill between the line of an evaluation and the file of the best weights: here they are once more.
        line = self._metrics.find("student", self._start.step) if self._metrics else None
        if line:
            self.keep_if_best(self._start.step, line["student"], line.get("ema"))
        return self

    def __exit__(self, *error: Any) -> None:
        if self._curves:
            self._curves.close()
        if self._snapshots:
            self._snapshots.__exit__(*error)

    @property
    def seconds(self) -> float:
        """Of training so far, those before a restart included."""
        return self._start.seconds + time.perf_counter() - self._began

    @property
    def saved(self) -> str:
        """Which checkpoint is the newest, for the end of a sentence."""
        step = self._snapshots.saved if self._snapshots else None
        return "no checkpoint was written yet" if step is None else f"the checkpoint of step {step} is from before"

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, and to TensorBoard's curves."""
        if self._metrics:
            self._metrics.append(line)
        if self._curves:
            self._curves.add(line)

    def lacks_evaluation(self) -> bool:
        """Whether no evaluation was logged where the run continues; the same on every rank."""
        missing = self._metrics is not None and not self._metrics.find("student", self._start.step)
        return self._ranks.gather(missing)[0]

    def save(self, done: int, meter: dict[str, Any] | None, unreadable: Sequence[str] = ()) -> None:
        """The checkpoint after `done` steps; weights may change as soon as this returns.

        Args:
            meter, unreadable: as `Start`.
        """
        self._last = done
        if self._snapshots:
            step = self._step
            average = step.ema.module if step.ema else None
            tensors = checkpoint.tensors_of(step.model, average, step.optimizer)
            state = checkpoint.state_of(self._config, self._ranks.world_size, done, self.seconds)
            scaler = step.scaler.state_dict() if step.scaler else None
            self._snapshots.take(done, tensors, {**state, "meter": meter, "scaler": scaler, "unreadable": unreadable})

    def keep_if_best(self, done: int, student: Scores, average: Scores | None) -> None:
        """Keep the moving average, or the weights without one, when its score by --fusion is the best so far."""
        if self._snapshots:
            scores, model = (student, self._step.model) if average is None else (average, self._step.ema.module)
            self._snapshots.offer(done, model.state_dict(), scores[headline(scores, self._config.fusion)]["top1"])

    def last_line(self) -> dict[str, Any]:
        """The newest line of metrics.jsonl that tells a loss; {} on other ranks than the first."""
        return self._metrics.last("loss") if self._metrics else {}

    def finish(self) -> None:
        """Until everything is on disk, the last weights above all; on every rank, since launchers stop the others
        soon after the first that leaves.

        Raises:
            OSError: the disk refuses.
        """
        if self._metrics and self._snapshots:
            self._snapshots.wait()
            if self._snapshots.saved != self._last:
                before = "the start" if self._snapshots.saved is None else f"step {self._snapshots.saved}"
                raise OSError(
                    f"the weights of step {self._last} are not on disk ({self._snapshots.failures[-1]}): make room, "
                    f"and the same command goes on from {before}"
                )
            self._metrics.sync()
        self._ranks.wait()
