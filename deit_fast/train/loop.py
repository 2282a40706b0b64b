"""The training loop, read from top to bottom."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config, RunConfig
from ..files import LOCK, Lock, write_json
from ..ranks.group import Ranks, join
from ..ranks.heartbeat import Heartbeat
from ..ranks.preemption import Preempted, Preemption
from ..run import checkpoint, folder, report
from ..run.metrics import no_tensorboard
from ..scores import Scores
from . import dry_run
from .meter import Meter, profiled
from .prepare import Prepared, prepare
from .record import Record, name_bad_images

_WARM_UP_STEPS = 3  # then all that lives as long as the run exists, and the garbage collector need not look at it


@dataclass(frozen=True)
class Summary:
    """The result of a run: `summary.json` and where it lies."""

    run: Path
    # {"teacher": {…} or None, "student": Scores, "ema": Scores or None}, and "bad_images" where some were skipped.
    scores: dict[str, Any]
    # Run folders that `train` leaves finished, the teacher's first where a recipe trained it; on rank 0 only.
    finished: tuple[Path, ...] = ()


def train(config: Config) -> Summary:
    """Train as configured, or continue, or read the result of a run that is finished.

    A teacher given as `recipe:NAME` is trained first, in a run folder of its own.

    Raises:
        ValueError: a mistake in the configuration or the data, in one sentence that says what to type instead.
        Diverged: the loss, a gradient or a weight is NaN or infinite.
        RankLost: another process of this run has ended.
        Preempted: a signal asked for the end; the run is saved.
    """
    with (
        Preemption() as preemption,
        join(config.agreed(), config.check) as ranks,
        Heartbeat(ranks.rank, ranks.world_size) as heartbeat,
    ):
        return _run(config, ranks, heartbeat, preemption)


def _run(config: Config, ranks: Ranks, heartbeat: Heartbeat, preemption: Preemption) -> Summary:
    before: list[Path] = []  # finished before this run

    def train_first(teacher_config: Config) -> Path:
        teacher = _run(teacher_config, ranks, heartbeat, preemption)
        before.extend(teacher.finished)
        return teacher.run

    reporter = report.Reporter(ranks.main)
    run = config.run_folder()
    finished = ranks.main_first(lambda: folder.open_run(config, run))
    if finished is not None:
        reporter.say(f"{run} is finished; with --fresh it is trained anew")
        _show(run, config, finished, ranks, reporter)
        return Summary(run, finished, (run,) if ranks.main else ())
    with Lock(run / LOCK) as lock:
        if not config.run.dry_run:
            ranks.on_main(lambda: folder.refuse_a_second(run, lock))
        prepared = prepare(config, run, ranks, reporter, train_first)
        if config.run.dry_run:
            return Summary(run, {"plan": dry_run.make_plan(run, prepared, reporter)})
        ranks.on_main(lambda: folder.begin(config, run, prepared.data.identity, lock))
        ranks.main_first(lambda: folder.wait_for(run))
        ranks.training_begins()
        heartbeat.begin(run / "logs")
        reporter.decide("tensorboard", "off" if no_tensorboard() else run / "tensorboard", no_tensorboard())
        result = _loop(run, prepared, reporter, heartbeat, preemption)
    return Summary(run, result, (*before, run) if ranks.main else ())


def due(every: RunConfig, done: int, epoch_steps: int, total_steps: int) -> tuple[bool, bool, bool]:
    """Whether a log line, a checkpoint and an evaluation follow after `done` steps."""
    epoch, into_epoch = divmod(done, epoch_steps)
    save = done == total_steps or done % (every.save_every or epoch_steps) == 0
    log = save or into_epoch == 0 or done % every.log_every == 0
    evaluate = done > 0 and into_epoch == 0 and (epoch % every.eval_every == 0 or done == total_steps)
    return log, save, evaluate


def _loop(
    run: Path, prepared: Prepared, reporter: report.Reporter, heartbeat: Heartbeat,
    preemption: Preemption,
) -> dict[str, Any]:  # fmt: skip
    config, ranks = prepared.config, prepared.ranks
    step, start, batches = prepared.step, prepared.start, prepared.batches
    epoch_steps, total_steps = prepared.data.share.steps_per_epoch, prepared.data.total_steps
    teacher_scores, majority = prepared.evaluate_teacher(), prepared.data.majority
    if teacher_scores and report.is_a_guess(teacher_scores, majority):
        reporter.say(report.guessing_teacher(teacher_scores, majority))
    scores: tuple[Scores, Scores | None] | None = None
    meter = Meter(
        step.clock, batches, ranks, batch_size=config.optim.batch_size, total_steps=total_steps,
        taught=prepared.teacher is not None, peak=prepared.peak_speed(),
    )  # fmt: skip
    meter.load(start.meter)
    step.model.train(config.model.train_mode == "train")

    @contextmanager
    def untimed(stage: str) -> Iterator[None]:
        """What is not training time: the meter pauses, and the heartbeat names the stage to the waiting ranks."""
        heartbeat.at(stage)
        with meter.paused("" if stage == "evaluation" else stage):  # its line in metrics.jsonl holds its seconds
            yield

    with ExitStack() as stack:  # left in the reverse order: the signals first, the record last
        record = stack.enter_context(Record(run, prepared, meter, reporter))
        advance = stack.enter_context(reporter.progress(config.recipe, start.step, total_steps))
        stack.callback(gc.unfreeze)
        stack.enter_context(prepared.teacher or nullcontext())
        traced = profiled(run / "profile", batches, ranks, reporter)
        step_done = stack.enter_context(traced if config.run.profile else nullcontext(lambda: None))
        stack.enter_context(preemption.training(ranks, start.step))
        # An epoch's evaluation follows its checkpoint: a run that was killed between the two begins with it.
        if due(config.run, start.step, epoch_steps, total_steps)[2] and record.lacks_evaluation():
            with untimed("evaluation"):
                scores = record.evaluate(start.step)
        for batch in heartbeat.watch(batches):  # stages "step" and "data"
            lr = prepared.schedule(batch.step)
            meter.add(step(batch, lr))
            step_done()
            done, stop = batch.step + 1, preemption.asked(batch.step + 1)
            if done == start.step + _WARM_UP_STEPS:
                gc.freeze()  # without a collection before it, which hung with compiled models among ranks (torch 2.14)
            log, save, evaluate = due(config.run, done, epoch_steps, total_steps)
            if log:
                record.log(done, lr)  # raises Diverged after --skip-limit
            advance(done, record.newest)
            if save or stop:
                with untimed("checkpoint"):
                    record.save(done)
            if stop:
                record.finish()
                raise Preempted(stop, done)
            if evaluate:
                with untimed("evaluation"):
                    scores = record.evaluate(done)

    # A run that was killed between its last evaluation and its summary has no step left, and so no scores yet.
    student, ema = scores or prepared.evaluate()
    return _conclude(run, prepared, record, reporter, {"teacher": teacher_scores, "student": student, "ema": ema})


def _conclude(
    run: Path, prepared: Prepared, record: Record, reporter: report.Reporter, result: dict[str, Any]
) -> dict[str, Any]:
    """Wait until everything is on disk, then write summary.json, and return what it holds.

    A run without one is unfinished.
    """
    name_bad_images(prepared.validation)
    if skipped := record.unreadable(prepared.batches, prepared.validation):
        result["bad_images"] = skipped
        reporter.say(report.skipped_lines(skipped))
    reporter.say(f"loader: {prepared.batches.seconds}")
    record.finish()
    if prepared.ranks.main:
        write_json(run / "summary.json", result)
        reporter.say(f"trained in {record.seconds:.0f} s")
    _show(run, prepared.config, result, prepared.ranks, reporter, prepared.data.majority)
    record.measure_headroom()
    prepared.ranks.wait()
    return result


def _show(
    run: Path, config: Config, result: dict[str, Any], ranks: Ranks, reporter: report.Reporter,
    majority: float | None = None,
) -> None:  # fmt: skip
    """The table of a finished run, what it is worth, and where its best weights are."""
    reporter.console.print(report.summary_table(result, config.data))
    for line in report.worth(result, config.model.fusion, majority):
        reporter.say(line)
    if ranks.main and (best := checkpoint.best(run)) is not None:
        file, found = best
        # Runs of an older version kept the average wherever there was one, and did not say it.
        which = found.get("weights", "moving average" if config.optim.ema_decay else "weights")
        reporter.say(f"best {which}: {file}, top-1 {found['top1']:.1f} % after step {found['step']:,}")
