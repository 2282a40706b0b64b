"""Everything that a training needs before its first step: data, student, teacher, checkpoint, batches.

    prepared = prepare(config, run, ranks, reporter, train_first)
    for batch in prepared.batches: prepared.step(batch, prepared.schedule(batch.step))

Whatever can be wrong with the command or the data is found here, before anything long or lasting; every decision that
was not typed is printed with its reason. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..config import Config
from ..data import EvalLoader, TrainLoader, jpeg_part
from ..data.training import Loaders, TrainingData
from ..model import Normalisation, VisionTransformer
from ..ranks.group import Ranks
from ..run import checkpoint, folder
from ..run.report import Reporter
from ..scores import Scores, evaluate, evaluate_models
from ..teacher.labels import TeacherLabels, teacher_labels
from ..teacher.load import load_teacher, recipe_config
from ..weights.build import Frozen, normalisation
from ..weights.trained import classifier
from .optimizer import learning_rates
from .step import TrainingStep, precision

TrainFirst = Callable[[Config], Path]  # trains a configuration and returns its run folder


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


@dataclass(frozen=True)
class Prepared:
    """What the loop works with.

    Attributes:
        data: the data sets, and the number of steps of the run.
        step: the student and what a batch does to it, restored where the run is continued.
        teacher: None without distillation.
        batches: of training, from the first step to be done.
        validation: batches of the validation images.
        schedule: the learning rate of a step.
        start: where the run is continued.
        autocast: precision of evaluations.
    """

    ranks: Ranks
    data: TrainingData
    loaders: Loaders
    step: TrainingStep
    teacher: TeacherLabels | None
    batches: TrainLoader
    validation: EvalLoader
    schedule: Callable[[int], float]
    start: Start
    autocast: AbstractContextManager

    def evaluate(self) -> tuple[Scores, Scores | None]:
        """Scores of the student and of its moving average."""
        models = {"student": self.step.model} | ({"ema": self.step.ema.module} if self.step.ema else {})
        for module in models.values():
            self.ranks.same_buffers(module)
        scores = evaluate_models(models, self.validation, self.ranks, self.autocast)
        return scores["student"], scores.get("ema")

    def evaluate_teacher(self) -> dict[str, float] | None:
        """The teacher's score; None without one, or where only its labels are known."""
        if self.teacher is None:
            return None

        def score(module: nn.Module) -> dict[str, float]:
            return evaluate(module, self.validation, self.ranks)["cls"]

        return self.teacher.scores(score, self.loaders.validation_identity(), self.ranks.main)


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
    data = _open_data(config, run, ranks, reporter)
    model = _student(config, len(data.train_set.classes), ranks, reporter)
    loaders = _loaders(data, model, ranks, reporter)
    teacher = None if config.distill == "none" else _teacher(config, loaders, ranks, reporter, train_first)
    step = TrainingStep(config, model, teacher, ranks, autocast, reporter)
    validation = loaders.validation()
    start = _start(config, run, ranks, step, reporter)
    layout = {}
    if isinstance(model, VisionTransformer) and (teacher is None or not teacher.live):
        # Nobody but the student looks at the images.
        layout = {"layout": "patches", "patch": model.config.patch_size}
    batches = loaders.training(range(start.step, data.total_steps), **layout)
    schedule = learning_rates(config, data.share.steps_per_epoch, step.peak_lr)
    return Prepared(ranks, data, loaders, step, teacher, batches, validation, schedule, start, autocast)


def _open_data(config: Config, run: Path, ranks: Ranks, reporter: Reporter) -> TrainingData:
    data = TrainingData.open(config, ranks)
    if not config.fresh:
        ranks.main_first(lambda: folder.check_data(run, data.identity))
    images, classes = len(data.train_set), len(data.train_set.classes)
    counts = f"{images:,} training and {len(data.val_set):,} validation images, {classes} classes"
    reporter.decide("data", counts)
    reporter.decide("steps", f"{data.total_steps:,}", f"{config.epochs} epochs of {images:,} // {config.batch_size}")
    if config.order == "official":
        reporter.decide("order", "official", f"its lists for {ranks.world_size} processes; for others they differ")
    return data


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


def _loaders(data: TrainingData, model: nn.Module, ranks: Ranks, reporter: Reporter) -> Loaders:
    loaders = data.loaders(normalisation(model), ranks)
    if loaders.mixing is not None:
        reporter.decide("mixing", *loaders.mixing.decision)
    if jpeg_part.missing and loaders.policy.crop == "random_resized":
        reporter.decide("JPEG files", "decoded whole, not only what the crops need", jpeg_part.missing)
    return loaders


def _teacher(
    config: Config, loaders: Loaders, ranks: Ranks, reporter: Reporter, train_first: TrainFirst
) -> TeacherLabels:
    """The labels of the teacher; that of a recipe is trained now."""
    spec, load, recipe = config.teacher, load_teacher, recipe_config(config)
    if recipe is not None and config.dry_run:
        reporter.say(f"the teacher of the recipe {recipe.recipe} stays untrained: it is as fast")
        config, load = replace(config, teacher_cache=""), partial(_untrained, recipe)
    elif recipe is not None:
        reporter.say(f"its teacher first, by the recipe {recipe.recipe}")
        spec = str(train_first(recipe))
        reporter.say(f"{config.recipe} goes on")
    return teacher_labels(config, spec, loaders, ranks, reporter, load)


def _untrained(teacher: Config, _student: Config, _spec: str, classes: list[str], normalised: Normalisation) -> Frozen:
    """In place of `load_teacher`: the recipe's architecture, as fast as if it had been trained."""
    return Frozen(classifier(teacher, len(classes)), normalised)


def _start(config: Config, run: Path, ranks: Ranks, step: TrainingStep, reporter: Reporter) -> Start:
    """Where the run is continued, the step restored.

    The official order's lists and mixing depend on the number of processes, so a run keeps it.
    """
    start = Start() if config.fresh else restore(run, ranks, step)
    if not start.folder:
        return start
    reporter.decide("continue", f"from step {start.step:,}", str(start.folder))
    if config.order == "official" and start.world_size != ranks.world_size:
        raise ValueError(
            f"{start.folder} was trained by {start.world_size} processes; --order official shows {ranks.world_size} "
            f"others: start {start.world_size} again, or type --order grouped in a new --out"
        )
    return start


def restore(run: Path, ranks: Ranks, step: TrainingStep) -> Start:
    """Load the newest whole checkpoint, which rank 0 has verified, on every rank.

    Raises:
        ValueError: there are checkpoints but none is whole, or it is of another version of deit_fast.
    """
    newest = ranks.on_main(lambda: checkpoint.newest(run))
    if newest is None:
        return Start()
    average = step.ema.module if step.ema else None
    state = ranks.main_first(lambda: checkpoint.load(newest, step.model, average, step.optimizer))
    if step.scaler and state["scaler"]:
        step.scaler.load_state_dict(state["scaler"])
    known = state.get("unreadable", ())  # of a checkpoint from before this was kept: none
    return Start(state["step"], state["seconds"], state["meter"], newest, state["world_size"], known)
