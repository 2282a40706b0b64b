"""Train a classifier, distilled or not: one loop, read from top to bottom.

    python -m deit_fast.train                                     the demo: a few minutes on a laptop's CPU
    python -m deit_fast.train --data /imagenet                    DeiT-S distilled from RegNetY-16GF, every visible GPU
    python -m deit_fast.train --recipe teacher --data /flowers    a ConvNet for your own classes, to distil from
    torchrun --nproc-per-node 2 -m deit_fast.train --data digits  two processes, on CPUs too

The same command continues an unfinished run from its last checkpoint, bit for bit, and prints the table of a finished
one. Exit codes: 0 done, 2 a mistake in the command or the data, 3 diverged, 75 preempted (run it again), 130 Ctrl-C.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoint, distributed, exit_codes, report
from . import run_folder as folder
from .classifiers import classifier, normalisation
from .config import Config
from .data import BadImage, EvalLoader, TrainLoader, open_dataset
from .data.order import steps_per_epoch
from .distributed import Ranks
from .durable import write_file, write_json
from .evaluate import Scores, evaluate
from .meter import Meter
from .metrics import Metrics
from .model import VisionTransformer
from .optimizer import all_finite, learning_rate
from .policies import evaluation_policy, training_policy
from .preemption import Preempted, Preemption
from .recipes import parse
from .run_lock import RunLock
from .snapshot import Snapshots
from .step import TrainingStep
from .teacher import load_teacher, recipe_config


class Diverged(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Summary:
    """The result of a run: `summary.json` and where it lies."""

    run: Path
    scores: dict[str, Any]  # {"teacher": {…} or None, "student": Scores, "ema": Scores or None}


def train(config: Config) -> Summary:
    """Train as configured, or continue, or read the result of a run that is finished.

    A teacher given as `recipe:NAME` is trained first, in a run folder of its own.

    Raises:
        ValueError: a mistake in the configuration or the data, in one sentence that says what to type instead.
        Diverged: the loss became infinite or NaN.
        Preempted: a signal asked for the end; the run is saved.
    """
    config.check()
    with Preemption() as preemption, distributed.ranks() as ranks:
        return _run(config, ranks, preemption)


def _run(config: Config, ranks: Ranks, preemption: Preemption) -> Summary:
    reporter = report.Reporter(ranks.main)
    run = config.run_folder()
    finished = ranks.main_first(lambda: folder.open_run(config, run))
    if finished is not None:
        reporter.say(f"{run} is finished; with --fresh it is trained anew")
        reporter.console.print(report.summary_table(finished))
        return Summary(run, finished)
    with RunLock(run) as lock:
        ranks.main_first(lambda: folder.refuse_a_second(run, lock) if ranks.main else None)
        return _train(config, run, ranks, preemption, reporter, lock)


def _train(
    config: Config, run: Path, ranks: Ranks, preemption: Preemption, reporter: report.Reporter, lock: RunLock
) -> Summary:
    # Everything that can be wrong with the command or the data is found before anything long or lasting.
    reporter.say(f"{config.recipe}: {config.model} on {config.data}, in {run}")
    train_set, val_set = ranks.main_first(lambda: open_dataset(config.data))
    data = folder.describe(train_set, val_set)
    if not config.fresh:
        ranks.main_first(lambda: folder.check_data(run, data))
    epoch_steps = steps_per_epoch(
        len(train_set), config.batch_size, order=config.order, repeats=config.repeats, world_size=ranks.world_size
    )
    total_steps = config.epochs * epoch_steps
    classes = train_set.classes
    counts = f"{len(train_set):,} training and {len(val_set):,} validation images, {len(classes)} classes"
    reporter.decide("data", counts)
    reporter.decide("steps", f"{total_steps:,}", f"{config.epochs} epochs of {len(train_set):,} // {config.batch_size}")
    if config.order == "official":
        reporter.decide("order", "official", f"its lists for {ranks.world_size} processes; for others they differ")
    torch.manual_seed(config.seed)
    model = ranks.main_first(lambda: classifier(config, len(classes)))
    ours = isinstance(model, VisionTransformer)
    _check_heads(config, ours and model.config.distilled)
    model.to(ranks.device)
    if ranks.device.type == "cpu" and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)
        reporter.decide("layout", "channels_last", "ConvNets train faster so on a CPU")
    normalised = normalisation(model)
    teacher, teacher_spec = None, config.teacher
    if (teacher_config := recipe_config(config)) is not None:
        reporter.say(f"its teacher first, by the recipe {teacher_config.recipe}")
        teacher_spec = str(_run(teacher_config, ranks, preemption).run)
        reporter.say(f"{config.recipe} goes on")
    if config.distill != "none":
        teacher = ranks.main_first(lambda: load_teacher(config, teacher_spec, classes, normalised)).to(ranks.device)
        reporter.decide("teacher", teacher_spec, f"{config.distill} labels, learnt by the {config.distill_on} head")
    step = TrainingStep(config, model, teacher, ranks, reporter)
    optimizer, ema, autocast = step.optimizer, step.ema, step.autocast
    schedule = partial(
        learning_rate, total=total_steps, warmup=round(config.warmup_epochs * epoch_steps),
        peak=step.peak_lr, start=config.warmup_lr, floor=config.min_lr,
    )  # fmt: skip

    loading = {
        "threads": config.threads or None, "bad_images": config.bad_images, "in_memory": config.in_memory,
        "exif_orientation": config.exif_orientation,
        "rank": ranks.rank, "world_size": ranks.world_size, "device": ranks.device,
    }  # fmt: skip
    policy, eval_policy = training_policy(config, normalised), evaluation_policy(config, normalised)
    eval_batches = EvalLoader(val_set, eval_policy, batch_size=min(256, config.batch_size), **loading)
    start, seconds, meter_state = (0, 0.0, None) if config.fresh else _restore(run, ranks, step, reporter)
    batches = TrainLoader(
        train_set, policy, data_seed=config.data_seed, batch_size=config.batch_size, total_steps=total_steps,
        start_step=start, repeats=config.repeats, order=config.order, **loading,
    )  # fmt: skip
    ranks.main_first(lambda: folder.begin(config, run, data, lock) if ranks.main else None)
    metrics = Metrics(run / "metrics.jsonl", start) if ranks.main else None
    snapshots = Snapshots(run, config.keep, ranks.device, start or None, metrics.sync) if ranks.main else None
    meter = Meter(batches, ranks, config.batch_size)
    meter.load(meter_state)
    scores: tuple[Scores, Scores | None] | None = None
    row: dict[str, Any] = {}
    named = 0  # unreadable images named so far

    def log(line: dict[str, Any]) -> None:
        if metrics:
            metrics.append(line)

    def save(done: int) -> None:
        state = meter.state()  # what was added up since the last line; all ranks take part
        if snapshots:
            trained = seconds + time.perf_counter() - began
            record = {**checkpoint.state_of(config, ranks.world_size, done, trained), "meter": state}
            snapshots.take(done, checkpoint.tensors_of(model, ema and ema.module, optimizer), record)

    def evaluated() -> tuple[Scores, Scores | None]:
        for module in (model, ema.module) if ema else (model,):
            ranks.same_buffers(module)
        average = evaluate(ema.module, eval_batches, ranks, autocast) if ema else None
        return evaluate(model, eval_batches, ranks, autocast), average

    def end_epoch(done: int) -> tuple[Scores, Scores | None]:
        scores = evaluated()
        log({"step": done, "student": scores[0], "ema": scores[1]})
        if metrics and snapshots:
            reporter.say(report.epoch_line(done // epoch_steps, config.epochs, metrics.last("loss"), *scores))
            best = scores[1] or scores[0]
            weights = ema.module.state_dict() if ema else model.state_dict()
            snapshots.offer(done, weights, best["fused" if "fused" in best else "cls"]["top1"])
        return scores

    teacher_scores = evaluate(teacher, eval_batches, ranks, autocast)["cls"] if teacher else None
    began = time.perf_counter()
    model.train()
    with (
        reporter.progress(config.recipe, start, total_steps) as advance,
        snapshots or nullcontext(),
        preemption.training(ranks, start),
    ):
        # The evaluation comes after the epoch's checkpoint, so one that was cut short is done first of all.
        missing = ranks.gather(metrics is not None and metrics.lacks("student", start))[0]
        if missing and _evaluates(config, start, epoch_steps):
            scores = end_epoch(start)
        for batch in batches:
            lr = schedule(batch.step)
            meter.add(step(batch, lr))

            done = batch.step + 1  # steps
            last = done == total_steps
            save_now = last or done % (config.save_every or epoch_steps) == 0
            stopped_by = preemption.asked(done)
            if done % config.log_every == 0 or done % epoch_steps == 0 or save_now:
                row = meter.row(done, done / epoch_steps, lr)
                log(row)
                if not math.isfinite(row["loss"]):
                    raise _diverged(config, f"the loss is {row['loss']} at step {done}", snapshots)
                named = _name_bad_images(batches.bad_images, named)
            advance(done, row)
            meter.pause()
            if save_now or stopped_by:
                if not all_finite(model):
                    raise _diverged(config, f"a weight is no number at step {done}", snapshots)
                save(done)
            if stopped_by:
                raise Preempted(stopped_by, done)
            if _evaluates(config, done, epoch_steps):
                scores = end_epoch(done)
            meter.resume()

    # A run that was killed between its last checkpoint and its summary has nothing left to train.
    student_scores, ema_scores = scores or evaluated()
    result = {"teacher": teacher_scores, "student": student_scores, "ema": ema_scores}
    _name_bad_images(eval_batches.bad_images, 0)
    skipped = {path for paths in ranks.gather([*batches.bad_images, *eval_batches.bad_images]) for path in paths}
    if skipped:
        reporter.say(f"{len(skipped)} unreadable images were skipped; they are named above")
    reporter.say(f"loader: {batches.seconds}")
    if metrics:
        metrics.sync()
        write_file(run / "report.png", lambda path: report.draw(run, result, path))
        write_json(run / "summary.json", result)
        reporter.say(f"trained in {seconds + time.perf_counter() - began:.0f} s; {run / 'report.png'}")
        reporter.console.print(report.summary_table(result))
    ranks.wait()
    return Summary(run, result)


def _evaluates(config: Config, done: int, epoch_steps: int) -> bool:
    """Whether an evaluation follows after so many steps: at the end of every `eval_every`-th epoch, and of the last."""
    epoch, into_epoch = divmod(done, epoch_steps)
    return done > 0 and into_epoch == 0 and (epoch % config.eval_every == 0 or epoch == config.epochs)


def _diverged(config: Config, what: str, snapshots: Snapshots | None) -> Diverged:
    saved = f"; the checkpoint of step {snapshots.saved} is from before" if snapshots and snapshots.saved else ""
    return Diverged(f"{what}: try half the rate, --lr {config.lr / 2:g}, or a longer warm-up, with --fresh{saved}")


def _name_bad_images(bad_images: dict[str, str], named: int) -> int:
    """Name the unreadable images that came after the first `named`, by the rank that met them; returns how many are."""
    for path, reason in [*bad_images.items()][named:]:
        print(f"skipped an unreadable image: {path}: {reason}", file=sys.stderr)
    return len(bad_images)


def _check_heads(config: Config, distilled: bool) -> None:
    """The model has the heads that the configuration trains, and no other."""
    on_token = config.distill != "none" and config.distill_on == "token"
    if on_token and not distilled:
        raise ValueError(
            f"{config.model} has no distillation token to learn from the teacher: type --distill-on class, "
            f"--distill none, or a model with _distilled in its name"
        )
    if distilled and not on_token:
        plain = config.model.replace("_distilled", "")
        raise ValueError(
            f"the distillation token of {config.model} would never be trained with --distill {config.distill}"
            f"{'' if config.distill == 'none' else ' --distill-on class'}: type --model {plain}"
        )


def _restore(
    run: Path, ranks: Ranks, step: TrainingStep, reporter: report.Reporter
) -> tuple[int, float, dict[str, Any] | None]:
    """(steps done, seconds trained, state of the meter) of the newest whole checkpoint, loaded; zeros without one."""
    found: list[Path | None] = []
    ranks.main_first(lambda: found.append(checkpoint.newest(run) if ranks.main else None))  # it verifies every file
    newest = ranks.gather(found[0])[0]
    if newest is None:
        return 0, 0.0, None
    state = ranks.main_first(lambda: checkpoint.load(newest, step.model, step.ema and step.ema.module, step.optimizer))
    reporter.decide("continue", f"from step {state['step']:,}", str(newest))
    return state["step"], state["seconds"], state["meter"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        config = parse(arguments, __doc__)
        config.check()
        visible = torch.cuda.device_count()
        if config.gpus > visible:
            raise ValueError(f"--gpus {config.gpus}: {visible} visible here; leave --gpus out to use what there is")
        processes = config.gpus or visible
        if processes > 1 and "RANK" not in os.environ:
            return distributed.launch(arguments, processes)
        train(config)
        return exit_codes.DONE
    except (ValueError, OSError, Diverged) as error:
        if os.environ.get("DEIT_FAST_TRACEBACK"):
            raise
        # What every rank finds alike is said once; what one rank alone met (an image of its share), by that rank.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, BadImage):
            print(f"error: {error}", file=sys.stderr)
        return exit_codes.DIVERGED if isinstance(error, Diverged) else exit_codes.USAGE
    except Preempted as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, file=sys.stderr)
        return int(stopped.code)
    except KeyboardInterrupt:
        print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
        return exit_codes.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
