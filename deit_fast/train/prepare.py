"""Everything that a training needs before its first step: data, model, teacher, schedule, checkpoint.

    prepared = prepare(config, run, ranks, reporter, train_first)
    for batch in prepared.batches: prepared.step(batch, prepared.schedule(batch.step))

Whatever can be wrong with the command or the data is found here, before anything long or lasting; every decision that
was not typed is printed with its reason. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deit_kernels.augment import Policy

from ..config import Config
from ..data import Dataset, EvalLoader, TrainLoader, jpeg_part, open_dataset
from ..data.mixing import Mixing
from ..data.order import steps_per_epoch
from ..model import VisionTransformer
from ..ranks.group import Ranks
from ..run import folder
from ..run.folder import data_digest
from ..run.report import Reporter
from ..scores import Scores, evaluate, evaluate_models
from ..teacher.labels import TeacherLabels, evaluation_settings, teacher_labels
from ..teacher.load import load_teacher, recipe_config
from ..weights.build import normalisation
from ..weights.trained import classifier
from . import dry_run
from .optimizer import learning_rates
from .record import Start, restore
from .step import TrainingStep, precision

TrainFirst = Callable[[Config], Path]  # trains a configuration and returns its run folder


@dataclass(frozen=True)
class Prepared:
    """What the loop works with.

    Attributes:
        data: what identifies the data sets (`run_folder.describe`).
        epoch_steps, total_steps: of this run.
        step: the student and what a batch does to it, restored where the run is continued.
        teacher: None without distillation.
        batches: of training, from the first step to be done.
        eval_batches: of validation, prepared as `eval_policy` says.
        schedule: the learning rate of a step.
        start: where the run is continued.
        autocast: precision of evaluations.
    """

    ranks: Ranks
    data: dict[str, Any]
    epoch_steps: int
    total_steps: int
    step: TrainingStep
    teacher: TeacherLabels | None
    batches: TrainLoader
    eval_batches: EvalLoader
    eval_policy: Policy
    schedule: Callable[[int], float]
    start: Start
    autocast: AbstractContextManager

    def evaluate(self) -> tuple[Scores, Scores | None]:
        """Scores of the student and of its moving average."""
        models = {"student": self.step.model} | ({"ema": self.step.ema.module} if self.step.ema else {})
        for module in models.values():
            self.ranks.same_buffers(module)
        scores = evaluate_models(models, self.eval_batches, self.ranks, self.autocast)
        return scores["student"], scores.get("ema")

    def evaluate_teacher(self) -> dict[str, float] | None:
        """The teacher's score; None without one, or where only its labels are known."""
        if self.teacher is None:
            return None
        settings = evaluation_settings(self.eval_policy, self.data)

        def own(module: nn.Module) -> dict[str, float]:
            return evaluate(module, self.eval_batches, self.ranks)["cls"]

        return self.teacher.scores(own, settings, self.ranks.main)


def prepare(config: Config, run: Path, ranks: Ranks, reporter: Reporter, train_first: TrainFirst) -> Prepared:
    """Open, build, load and check.

    Args:
        run: the run folder, which may not exist yet.
        train_first: for a teacher that is a recipe.

    Raises:
        ValueError: a mistake in the configuration or the data, in one sentence that says what to type instead.
    """
    reporter.say(f"{config.recipe}: {config.model} on {config.data}, in {run}")
    for decision in ranks.decisions():
        reporter.decide(*decision)
    autocast = precision(config, ranks.device, reporter)
    train_set, val_set, data = _open_data(config, run, ranks)
    epoch_steps = steps_per_epoch(
        len(train_set), config.batch_size, order=config.order, repeats=config.repeats, world_size=ranks.world_size
    )
    total_steps = config.epochs * epoch_steps
    counts = f"{len(train_set):,} training and {len(val_set):,} validation images, {len(train_set.classes)} classes"
    reporter.decide("data", counts)
    reporter.decide("steps", f"{total_steps:,}", f"{config.epochs} epochs of {len(train_set):,} // {config.batch_size}")
    if config.order == "official":
        reporter.decide("order", "official", f"its lists for {ranks.world_size} processes; for others they differ")

    model = _student(config, len(train_set.classes), ranks, reporter)
    normalised = normalisation(model)
    policy, eval_policy = config.training_policy(normalised), config.evaluation_policy(normalised)
    rows = {
        "data_seed": config.data_seed, "batch_size": config.batch_size, "repeats": config.repeats,
        "order": config.order, "rank": ranks.rank, "world_size": ranks.world_size,
    }  # fmt: skip
    if (mixing := Mixing.of_rank(policy, **rows)) is not None:
        reporter.decide("mixing", *mixing.decision)
    if jpeg_part.missing and policy.crop == "random_resized":
        reporter.decide("JPEG files", "decoded whole, not only what the crops need", jpeg_part.missing)
    teacher = None
    if config.distill != "none":
        labels_config, spec, load = _teacher(config, reporter, train_first)
        teacher = teacher_labels(
            labels_config, spec, train_set, policy, normalised, range(total_steps), ranks, reporter, load
        )
    step = TrainingStep(config, model, teacher, ranks, autocast, reporter)

    loading = {
        "threads": config.threads or ranks.cores, "bad_images": config.bad_images, "in_memory": config.in_memory,
        "exif_orientation": config.exif_orientation, "device": ranks.device,
    }  # fmt: skip
    eval_batches = EvalLoader(
        val_set, eval_policy, batch_size=min(256, config.batch_size), rank=ranks.rank, world_size=ranks.world_size,
        **loading,
    )  # fmt: skip
    start = Start() if config.fresh else restore(run, ranks, step)
    if start.folder:
        reporter.decide("continue", f"from step {start.step:,}", str(start.folder))
        _check_processes(config, start, ranks)
    if isinstance(model, VisionTransformer) and (teacher is None or not teacher.live):
        # Nobody but the student looks at the images.
        loading |= {"layout": "patches", "patch": model.config.patch_size}
    batches = TrainLoader(train_set, policy, total_steps=total_steps, start_step=start.step, **rows, **loading)
    schedule = learning_rates(config, epoch_steps, step.peak_lr)
    return Prepared(
        ranks,
        data,
        epoch_steps,
        total_steps,
        step,
        teacher,
        batches,
        eval_batches,
        eval_policy,
        schedule,
        start,
        autocast,
    )


def _check_processes(config: Config, start: Start, ranks: Ranks) -> None:
    """The official order's lists and mixing depend on the number of processes, so a run keeps it."""
    if config.order == "official" and start.world_size != ranks.world_size:
        raise ValueError(
            f"{start.folder} was trained by {start.world_size} processes; --order official shows {ranks.world_size} "
            f"others: start {start.world_size} again, or type --order grouped in a new --out"
        )


def _open_data(config: Config, run: Path, ranks: Ranks) -> tuple[Dataset, Dataset, dict[str, Any]]:
    """Training set, validation set, and what identifies both, which every rank and the run so far agree on."""
    train_set, val_set = ranks.main_first(lambda: open_dataset(config.data))
    data = folder.describe(train_set, val_set)
    ranks.agree("data", data_digest(data, train_set, val_set), "give every machine the same files")
    if not config.fresh:
        ranks.main_first(lambda: folder.check_data(run, data))
    return train_set, val_set, data


def _student(config: Config, classes: int, ranks: Ranks, reporter: Reporter) -> nn.Module:
    torch.manual_seed(config.seed)
    model = ranks.main_first(lambda: classifier(config, classes))
    _check_heads(config, isinstance(model, VisionTransformer) and model.config.distilled)
    model.to(ranks.device)
    if ranks.device.type == "cpu" and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)
        reporter.decide("layout", "channels_last", "ConvNets train faster so on a CPU")
    return model


def _check_heads(config: Config, distilled: bool) -> None:
    """The model has the heads that the configuration trains, and no other."""
    on_token = config.distill != "none" and config.distill_on == "token"
    if on_token and not distilled:
        raise ValueError(
            f"{config.model} has no distillation token to learn from the teacher: type --distill-on class, "
            f"--distill none, or a model with _distilled in its name"
        )
    if distilled and not on_token and config.train_mode == "train":
        plain = config.model.replace("_distilled", "")
        raise ValueError(
            f"the distillation token of {config.model} would never be trained with --distill {config.distill}"
            f"{'' if config.distill == 'none' else ' --distill-on class'}: type --model {plain}"
        )


def _teacher(config: Config, reporter: Reporter, train_first: TrainFirst) -> tuple[Config, str, Callable]:
    """(configuration of its labels, its name, what loads it); the teacher of a recipe is trained now."""
    recipe = recipe_config(config)
    if recipe is None:
        return config, config.teacher, load_teacher
    if config.dry_run:
        reporter.say(f"the teacher of the recipe {recipe.recipe} stays untrained: it is as fast")
        return replace(config, teacher_cache=""), config.teacher, partial(dry_run.stand_in, recipe)
    reporter.say(f"its teacher first, by the recipe {recipe.recipe}")
    run = train_first(recipe)
    reporter.say(f"{config.recipe} goes on")
    return config, str(run), load_teacher
