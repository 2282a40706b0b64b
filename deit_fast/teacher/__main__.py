"""Fill a label cache ahead of time, on every visible GPU; the same command goes on where it stopped.

    python -m deit_fast.teacher --data /imagenet --teacher-cache labels             for the recipe deit, 300 epochs
    torchrun --nproc-per-node 2 -m deit_fast.teacher --data digits --teacher-cache labels

Takes the flags of `python -m deit_fast.train`: those that decide what the teacher sees (data, augmentation, mixing,
batch size, epochs, data seed) as the training will have them; the student's do not matter. Every process asks the
teacher for the rows it would train on, so the work is shared, and training may use another number of processes.
Exit codes: 0 done, 2 a mistake in the command or the data, 75 preempted (SIGTERM, SIGUSR1), 130 interrupted; the labels
made until then are kept.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import command
from ..config import Config, command_line
from ..data.batch import parts
from ..data.training import TrainingData
from ..model import CONFIGS, IMAGENET_NORMALISATION
from ..ranks.group import Ranks, join
from ..ranks.launch import one_process_per_gpu
from ..ranks.preemption import Preemption
from ..recipes.named import parse
from ..recipes.named import recipe as defaults_of
from ..run.report import Reporter
from ..scores import evaluate
from ..weights.build import normalisation
from ..weights.trained import classifier
from .cache import runs
from .labels import teacher_labels
from .load import recipe_config
from .own import Own


def fill(config: Config) -> int:
    """Bring into the cache every label of this rank's rows that is not there; returns the steps that were missing.

    Raises:
        ValueError: as `train.train`, and without a --teacher-cache.
    """
    config.check()
    if not config.distill.teacher_cache:
        raise ValueError("where to? Type --teacher-cache FOLDER")
    if config.run.dry_run:
        raise ValueError("--dry-run writes nothing, so it fills no cache: type it after python -m deit_fast.train")
    with join(config.agreed(), config.check) as ranks:
        return _fill(config, ranks, Reporter(ranks.main))


def _fill(config: Config, ranks: Ranks, reporter: Reporter) -> int:
    data = TrainingData.open(config.data, config.optim, ranks)
    seen = IMAGENET_NORMALISATION
    if config.model.model not in CONFIGS:
        model = dataclasses.replace(config.model, weights="")
        seen = normalisation(classifier(model, config.data.image_size, len(data.train_set.classes)))
    loaders = data.loaders(seen, ranks)
    spec = config.distill.teacher
    if recipe := recipe_config(config):
        spec = str(recipe.run_folder())
        if not Path(spec, "summary.json").exists():
            typed = shlex.join(command_line(recipe, defaults_of(recipe.recipe)))
            raise ValueError(
                f"the teacher {config.distill.teacher} is not trained yet: type python -m deit_fast.train --recipe "
                f"{recipe.recipe} {typed} --out {spec} first"
            )
    labels = teacher_labels(config.distill, spec, loaders, ranks, reporter)
    assert labels.cache is not None  # `fill` refuses a configuration without one
    steps = data.total_steps
    missing = labels.cache.missing(range(steps), data.share.positions)
    with reporter.progress("labels", steps - len(missing), steps) as advance, labels:
        for part in runs(missing, unit=max(steps, 1)):
            for batch in loaders.training(part):
                for some in parts(batch, config.optim.micro_batch):  # as in training, whose bits it must have
                    labels(some)
                advance(batch.step + 1, {})
    if labels.live:  # its scores too: a run that uses the cache will not load it
        validation, settings = loaders.validation(), loaders.validation_identity()
        labels.scores(lambda teacher: evaluate(teacher, validation, ranks)["cls"], settings, ranks.main)
    ranks.wait()
    reporter.say(f"{config.distill.teacher_cache} holds the labels of {steps:,} steps, {len(missing):,} of them new")
    return len(missing)


@command.entry("teacher")
def main(arguments: Sequence[str]) -> int | None:
    config = parse(arguments, __doc__, "python -m deit_fast.teacher", Own())
    logs = Path(config.distill.teacher_cache) / "logs"
    code = one_process_per_gpu(config.run.gpus, config.check, arguments, logs, "deit_fast.teacher")
    if code is not None:
        return code
    try:
        with Preemption("the labels made until then are kept"):
            fill(config)
    except torch.OutOfMemoryError as error:
        most = config.optim.micro_batch or config.optim.batch_size
        raise command.OfOneRank(
            f"the teacher ran out of memory with up to {most} images at once: type --micro-batch {most // 2 or 1}, "
            f"here and in the training"
        ) from error
    return None


if __name__ == "__main__":
    command.leave(main())
