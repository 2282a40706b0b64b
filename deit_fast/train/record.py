"""What a run prints and writes while it trains: metrics, curves, checkpoints, scores and the best weights.

with Record(run, prepared, meter, reporter) as record:
    record.log(20, lr)              # the steps since the last line, averaged
    record.save(20)                 # copied now, written beside the training
    scores = record.evaluate(20)

Every rank calls every method; rank 0 writes and prints.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ..command import DIVERGED, Ending
from ..data import EvalLoader, TrainLoader
from ..files import shown
from ..names import headline
from ..run import checkpoint, report
from ..run.metrics import Metrics
from ..run.provenance import machine
from ..run.snapshot import Snapshots
from ..scores import Scores
from . import dry_run
from .meter import Meter
from .optimizer import all_finite
from .prepare import Prepared

logger = logging.getLogger(__name__)


class Diverged(Ending, ArithmeticError):
    """The loss or a gradient was NaN or infinite in too many steps in a row, or a weight is."""

    code = DIVERGED


class Record:
    """A context manager: leaving it waits for the last checkpoint."""

    def __init__(self, run: Path, prepared: Prepared, meter: Meter, reporter: report.Reporter) -> None:
        self._config, self._prepared, self._meter, self._reporter = prepared.config, prepared, meter, reporter
        self._ranks, self._step, self._start = prepared.ranks, prepared.step, prepared.start
        self._epoch_steps = prepared.data.share.steps_per_epoch
        self._began = time.perf_counter()
        self._last = self._start.step or None  # the newest step that `save` was called for
        self._named = 0  # unreadable images named so far
        self.newest: dict[str, Any] = {}  # what `log` last wrote in this process
        self._metrics: Metrics | None = None
        self._snapshots: Snapshots | None = None
        if self._ranks.main:
            self._metrics = Metrics(run / "metrics.jsonl", self._start.step, run / "tensorboard")
            self._snapshots = Snapshots(run, self._config.run.keep, self._ranks.device, self._last, self._metrics.sync)

    def __enter__(self) -> Record:
        # The run may have been killed after an evaluation's line and before its best weights were on disk.
        line = self._metrics.find("student", self._start.step) if self._metrics else None
        if line:
            self._keep_if_best(self._start.step, line["student"], line.get("ema"))
        return self

    def __exit__(self, *error: Any) -> None:
        if self._metrics and self._snapshots:
            self._metrics.close_curves()
            self._snapshots.__exit__(*error)

    @property
    def seconds(self) -> float:
        """Of training so far, before a restart as well."""
        return self._start.seconds + time.perf_counter() - self._began

    def log(self, done: int, lr: float) -> None:
        """Write a line to metrics.jsonl, the curves and the console for the steps since the last one.

        Raises:
            Diverged: the last --skip-limit steps or more were skipped.
        """
        row = self.newest = self._meter.row(done, done / self._epoch_steps, lr)
        if self._metrics:
            self._metrics.append(row)
        self._reporter.step(row, self._prepared.data.total_steps)
        if row["skipped"]:
            logger.warning(
                f"{row['skipped']} steps up to step {done} were skipped: loss or gradient is NaN or infinite"
            )
        if (skipped := self._meter.skipped_in_a_row) >= self._config.run.skip_limit:
            raise self._diverged(f"the loss or a gradient of {skipped} steps in a row is NaN or infinite", done)
        self._named = name_bad_images(self._prepared.batches, self._named)

    def save(self, done: int) -> None:
        """The checkpoint after `done` steps; weights may change as soon as this returns.

        Raises:
            Diverged: a weight is NaN or infinite.
        """
        prepared, step = self._prepared, self._step
        if not all_finite(step.model):
            raise self._diverged("a weight is NaN or infinite", done)
        if prepared.teacher:
            prepared.teacher.flush()
        meter, unreadable = self._meter.state(), self.unreadable(prepared.batches)
        self._last = done
        if self._snapshots:
            average = step.ema.module if step.ema else None
            tensors = checkpoint.tensors_of(step.model, average, step.optimizer)
            state = checkpoint.state_of(self._config, self._ranks.world_size, done, self.seconds)
            scaler = step.scaler.state_dict() if step.scaler else None
            state |= {"precision": prepared.precision, "meter": meter, "scaler": scaler, "unreadable": unreadable}
            self._snapshots.take(done, tensors, state)

    def lacks_evaluation(self) -> bool:
        """True if no evaluation was logged at the step where the run continues."""
        metrics, step = self._metrics, self._start.step
        return self._ranks.on_main(lambda: metrics is None or metrics.find("student", step) is None)

    def evaluate(self, done: int) -> tuple[Scores, Scores | None]:
        """Score student and moving average after `done` steps, log both, and keep the weights if they are the best."""
        began = time.perf_counter()
        student, ema = self._prepared.evaluate()
        seconds = {**self._meter.stages(), "evaluation": round(time.perf_counter() - began, 6)}
        if self._metrics:
            self._metrics.append({"step": done, "student": student, "ema": ema, "seconds": seconds})
            head, line = headline(student, self._config.model.fusion), self._metrics.last("loss")
            epoch = done // self._epoch_steps
            self._reporter.say(report.epoch_line(epoch, self._config.optim.epochs, line, student, ema, head))
        self._keep_if_best(done, student, ema)
        return student, ema

    def unreadable(self, *loaders: TrainLoader | EvalLoader) -> list[str]:
        """Paths of the images that any rank has skipped, before a restart as well, sorted."""
        own = [path for loader in loaders for path in loader.bad_images]
        return sorted({*self._start.unreadable, *(path for paths in self._ranks.gather(own) for path in paths)})

    def finish(self) -> None:
        """Wait until everything is on disk. Every rank waits, since launchers stop the others when one has ended.

        Raises:
            OSError: the last weights or metrics could not be written.
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

    def measure_headroom(self) -> None:
        """The last line of a finished training, for report.html: on which machine it ended, and how fast it could have
        been. A failure is a sentence, since the run is finished."""
        if self._metrics and self._last is not None and self._config.run.report:
            try:
                speed = self._metrics.last("loss")["images_per_second"]
                headroom = dry_run.headroom(self._prepared, self.seconds, speed)
                self._metrics.append({"step": self._last, "machine": machine(), "headroom": headroom})
                self._metrics.sync()
            except Exception as error:
                what = "the report lacks what the run's speed could be"
                self._reporter.say(f"{what} ({type(error).__name__}: {error})")

    def _keep_if_best(self, done: int, student: Scores, average: Scores | None) -> None:
        """Keep the weights or their moving average, whichever --fusion scores higher, if that is the best so far.

        In a short run the average still holds the weights of its start.
        """
        if self._snapshots:
            found, ema = [(student, "weights", self._step.model)], self._step.ema
            if average is not None and ema is not None:
                found.insert(0, (average, "moving average", ema.module))
            head = headline(student, self._config.model.fusion)
            scores, which, model = max(found, key=lambda one: one[0][head]["top1"])
            self._snapshots.offer(done, model.state_dict(), {"top1": scores[head]["top1"], "weights": which})

    def _diverged(self, what: str, done: int) -> Diverged:
        config, saved = self._config.optim, self._snapshots.saved if self._snapshots else None
        range_of_fp16 = ", or --precision bf16, whose range is larger" if config.precision == "fp16" else ""
        newest = "no checkpoint was written yet" if saved is None else f"the checkpoint of step {saved} is from before"
        return Diverged(
            f"{what} at step {done}: most likely the learning rate is too high, try half of it, "
            f"--lr {config.lr / 2:g}, or a longer warm-up{range_of_fp16}, with --fresh; or the weights it started "
            f"from, or the teacher, give NaN; {newest}"
        )


def name_bad_images(loader: TrainLoader | EvalLoader, named: int = 0) -> int:
    """Warn of the unreadable images of this rank after the first `named`; returns how many there are."""
    for path, reason in [*loader.bad_images.items()][named:]:
        logger.warning(f"skipped an unreadable image: {shown(path)}: {reason}")
    return len(loader.bad_images)
