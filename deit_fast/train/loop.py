"""The training loop, read from top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..command import DIVERGED, Ending
from ..config import Config
from ..data import EvalLoader, TrainLoader
from ..files import RunLock, write_file, write_json
from ..ranks.group import Ranks, join
from ..ranks.heartbeat import Heartbeat
from ..ranks.preemption import Preempted, Preemption
from ..run import folder, report
from ..run.metrics import TensorBoard
from ..scores import Scores
from . import dry_run
from .meter import Meter, Scale
from .optimizer import all_finite
from .prepare import prepare
from .profiling import StepProfile
from .record import Record

logger = logging.getLogger(__name__)


class Diverged(Ending, ArithmeticError):
    """Too many steps in a row had a NaN or infinite loss or gradient, or a weight is NaN or infinite."""

    code = DIVERGED


@dataclass(frozen=True)
class Summary:
    """The result of a run: `summary.json` and where it lies."""

    run: Path
    # {"teacher": {…} or None, "student": Scores, "ema": Scores or None}, and "bad_images" where some were skipped.
    scores: dict[str, Any]


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
        join(config) as ranks,
        Heartbeat(ranks.rank, ranks.world_size) as heartbeat,
    ):
        return _run(config, ranks, heartbeat, preemption)


def _run(config: Config, ranks: Ranks, heartbeat: Heartbeat, preemption: Preemption) -> Summary:
    reporter = report.Reporter(ranks.main)
    run = config.run_folder()
    finished = ranks.main_first(lambda: folder.open_run(config, run))
    if finished is not None:
        reporter.say(f"{run} is finished; with --fresh it is trained anew")
        reporter.console.print(report.summary_table(finished))
        return Summary(run, finished)
    with RunLock(run) as lock:
        ranks.main_first(lambda: folder.refuse_a_second(run, lock) if ranks.main and not config.dry_run else None)
        return _train(config, run, lock, ranks, reporter, heartbeat, preemption)


def _train(
    config: Config, run: Path, lock: RunLock, ranks: Ranks, reporter: report.Reporter, heartbeat: Heartbeat,
    preemption: Preemption,
) -> Summary:  # fmt: skip
    def train_first(teacher_config: Config) -> Path:
        return _run(teacher_config, ranks, heartbeat, preemption).run

    prepared = prepare(config, run, ranks, reporter, train_first)
    step, teacher, batches, schedule = prepared.step, prepared.teacher, prepared.batches, prepared.schedule
    epoch_steps, total_steps, start = prepared.epoch_steps, prepared.total_steps, prepared.start
    if config.dry_run:
        plan = dry_run.rehearse(config, run, step, batches, ranks, reporter, schedule, total_steps)
        return Summary(run, {"plan": asdict(plan)})
    ranks.main_first(lambda: folder.begin(config, run, prepared.data, lock) if ranks.main else folder.wait_for(run))
    ranks.training_begins()
    heartbeat.begin(run / "logs")
    reporter.decide("tensorboard", "off" if TensorBoard.missing() else run / "tensorboard", TensorBoard.missing())

    def end_epoch(done: int) -> tuple[Scores, Scores | None]:
        heartbeat.at("evaluation")
        scores = prepared.evaluate()
        record.log({"step": done, "student": scores[0], "ema": scores[1]})
        record.keep_if_best(done, *scores)
        if line := record.last_line():
            head = folder.headline(scores[0], config.fusion)
            reporter.say(report.epoch_line(done // epoch_steps, config.epochs, line, *scores, head))
        return scores

    teacher_scores = prepared.evaluate_teacher()
    scores: tuple[Scores, Scores | None] | None = None
    row: dict[str, Any] = {}
    named = 0  # unreadable images named so far
    meter = Meter(step, batches, ranks, Scale.of(config, total_steps, step, ranks, prepared.autocast))
    meter.load(start.meter)
    record = Record(config, run, ranks, step, start)
    step.model.train(config.train_mode == "train")
    with (
        record,
        reporter.progress(config.recipe, start.step, total_steps) as advance,
        step.steady(),
        teacher or nullcontext(),
        StepProfile(config.profile, run, batches, ranks, reporter) as profiled,
        preemption.training(ranks, start.step),
    ):
        # The evaluation follows its epoch's checkpoint, so one that was cut short comes first of all.
        if _evaluates(config, start.step, epoch_steps) and record.lacks_evaluation():
            scores = end_epoch(start.step)
        for batch in batches:
            heartbeat.at("step", batch.step)
            lr = schedule(batch.step)
            meter.add(step(batch, lr))
            profiled.step_done()

            done = batch.step + 1  # steps
            save_now = done == total_steps or done % (config.save_every or epoch_steps) == 0
            stopped_by = preemption.asked(done)
            if done % config.log_every == 0 or done % epoch_steps == 0 or save_now:
                row = meter.row(done, done / epoch_steps, lr)
                record.log(row)
                reporter.step(row, total_steps)
                if row["skipped"]:
                    logger.warning(
                        f"{row['skipped']} steps up to step {done} were left out: their loss or gradient is no number"
                    )
                if (bad := meter.skipped_in_a_row) >= config.skip_limit:
                    raise _diverged(config, f"the loss or gradient of {bad} steps in a row is no number", done, record)
                named = _name_bad_images(batches.bad_images, named)
            advance(done, row)
            meter.pause()
            if save_now or stopped_by:
                heartbeat.at("checkpoint")
                if not all_finite(step.model):
                    raise _diverged(config, "a weight is no number", done, record)
                if teacher:
                    teacher.flush()
                record.save(done, meter.state(), _unreadable(ranks, start.unreadable, batches))
            if stopped_by:
                record.finish()
                raise Preempted(stopped_by, done)
            if _evaluates(config, done, epoch_steps):
                scores = end_epoch(done)
            meter.resume()
            heartbeat.at("data", done)

    # A run that was killed between its last checkpoint and its summary has nothing left to train.
    student_scores, ema_scores = scores or prepared.evaluate()
    result = {"teacher": teacher_scores, "student": student_scores, "ema": ema_scores}
    _name_bad_images(prepared.eval_batches.bad_images, 0)
    if skipped := _unreadable(ranks, start.unreadable, batches, prepared.eval_batches):
        result["bad_images"] = skipped
        reporter.say(report.skipped_lines(skipped))
    reporter.say(f"loader: {batches.seconds}")
    record.finish()
    if ranks.main:
        write_file(run / "report.png", lambda path: report.draw(run, result, path))
        write_json(run / "summary.json", result)
        reporter.say(f"trained in {record.seconds:.0f} s; {run / 'report.png'}")
        reporter.console.print(report.summary_table(result))
    ranks.wait()
    return Summary(run, result)


def _evaluates(config: Config, done: int, epoch_steps: int) -> bool:
    """Whether an evaluation follows after so many steps: at the end of every `eval_every`-th epoch, and of the last."""
    epoch, into_epoch = divmod(done, epoch_steps)
    return done > 0 and into_epoch == 0 and (epoch % config.eval_every == 0 or epoch == config.epochs)


def _diverged(config: Config, what: str, done: int, record: Record) -> Diverged:
    range_of_fp16 = ", or --precision bf16, whose numbers reach further" if config.precision == "fp16" else ""
    return Diverged(
        f"{what} at step {done}: most likely the learning rate is too high, try half of it, --lr {config.lr / 2:g}, or "
        f"a longer warm-up{range_of_fp16}, with --fresh; or the weights it started from, or the teacher, give no "
        f"numbers; {record.saved}"
    )


def _name_bad_images(bad_images: dict[str, str], named: int) -> int:
    """Name the unreadable images that came after the first `named`, by the rank that met them; returns how many are."""
    for path, reason in [*bad_images.items()][named:]:
        logger.warning(f"skipped an unreadable image: {path}: {reason}")
    return len(bad_images)


def _unreadable(ranks: Ranks, before: Iterable[str], *loaders: TrainLoader | EvalLoader) -> list[str]:
    """Paths of the images that any rank has skipped, those from before a restart too, sorted. All ranks call it."""
    own = [path for loader in loaders for path in loader.bad_images]
    return sorted({*before, *(path for paths in ranks.gather(own) for path in paths)})
