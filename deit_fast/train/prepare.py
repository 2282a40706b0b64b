"""Everything that a training needs before its first step: data, student, teacher, checkpoint, batches.

    prepared = prepare(config, run, ranks, reporter, train_first)
    for batch in prepared.batches: prepared.step(batch, prepared.schedule(batch.step))

Every mistake in the command or the data is found here, before anything that takes long or stays on disk; every decision
that the user did not type is printed with its reason. Nothing is written into the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..config import Config, Precision
from ..data import EvalLoader, TrainLoader, jpeg_part
from ..data.class_weights import class_weights
from ..data.device import why_on_the_cpu
from ..data.sources.folder import by_suffix
from ..data.training import Loaders, TrainingData
from ..files import read_json
from ..model import VisionTransformer
from ..ranks.group import Ranks
from ..run import checkpoint, folder
from ..run.report import Reporter
from ..scores import Scores, evaluate, evaluate_models
from ..teacher.labels import TeacherLabels, teacher_labels
from ..teacher.load import recipe_config
from ..weights.build import Frozen, normalisation
from ..weights.trained import classifier
from .meter import peak_flops, training_flops
from .optimizer import learning_rates
from .precision import autocast, precision
from .step import TrainingStep

TrainFirst = Callable[[Config], Path]  # trains a configuration and returns its run folder


class Start(NamedTuple):
    """Where a run starts: at its newest checkpoint, or by default at the beginning."""

    step: int = 0  # steps done
    seconds: float = 0.0  # of training so far
    meter: dict[str, Any] | None = None  # `Meter.state`
    folder: Path | None = None  # the checkpoint
    world_size: int = 0  # of the processes that wrote it
    unreadable: Sequence[str] = ()  # paths of the images that were skipped so far
    precision: Precision | None = None  # with which the run began
    scaler: dict[str, Any] | None = None  # of the loss, in fp16


@dataclass(frozen=True)
class Prepared:
    """What the loop works with."""

    config: Config
    ranks: Ranks
    data: TrainingData
    loaders: Loaders
    step: TrainingStep  # holds the student; restored from `start`
    teacher: TeacherLabels | None  # None without distillation
    batches: TrainLoader  # from the first step that is not done yet
    validation: EvalLoader
    schedule: Callable[[int], float]  # step -> learning rate
    start: Start
    precision: Precision  # of forward passes, resolved
    autocast: AbstractContextManager  # of evaluations

    def evaluate(self) -> tuple[Scores, Scores | None]:
        """Scores of the student and of its moving average."""
        models = {"student": self.step.model} | ({"ema": self.step.ema.module} if self.step.ema else {})
        for module in models.values():
            self.ranks.same_buffers(module)
        scores = evaluate_models(models, self.validation, self.ranks, self.autocast)
        return scores["student"], scores.get("ema")

    def peak_speed(self) -> float | None:
        """Images/s if all GPUs computed at their peak rate.

        None where that or the model's FLOPs are unknown, or where the run does not use the GPUs' 16-bit rate.
        """
        if self.ranks.device.type != "cuda" or not isinstance(self.autocast, torch.autocast):
            return None
        engine = self.teacher.engine if self.teacher else None
        peak = peak_flops(torch.cuda.get_device_name(self.ranks.device))
        flops = training_flops(self.step.model, engine.module if engine else None, self.data.config.image_size)
        return peak * self.ranks.world_size / flops if peak and flops else None

    def evaluate_teacher(self) -> dict[str, float] | None:
        """The teacher's scores; None without a teacher, or if it is not loaded and its cache has none."""
        if self.teacher is None:
            return None
        return self.teacher.scores(
            lambda model: evaluate(model, self.validation, self.ranks)["cls"],
            self.loaders.validation_identity(),
            self.ranks.main,
        )


def prepare(config: Config, run: Path, ranks: Ranks, reporter: Reporter, train_first: TrainFirst) -> Prepared:
    """Open, build, load and check; `run` need not exist yet, and `train_first` is for a teacher that is a recipe.

    Raises:
        ValueError: a mistake in the configuration or the data, in one sentence that says what to type instead.
    """
    # Before the first line, so that a mistake in the data is the only line.
    data, weights = TrainingData.open(config.data, config.optim, ranks), None
    if spec := config.distill.class_weights:
        weights = ranks.main_first(lambda: class_weights(spec, data.train_set))
        ranks.agree("class weights", hash(tuple(weights.tolist())), "give every machine the same file")
        data = replace(data, identity=data.identity | {"class weights": weights.tolist()})
    if not config.run.fresh:
        ranks.main_first(lambda: folder.check_data(run, data.identity))
    reporter.say(f"{config.recipe}: {config.model.model} on {config.data.data}, in {run}")
    for decision in ranks.decisions():
        reporter.decide(*decision)
    start = Start() if config.run.fresh else ranks.on_main(lambda: _newest(run, ranks.device))
    chosen = precision(config.optim.precision, ranks, start.precision, reporter)
    forward = autocast(chosen, ranks.device)
    _tell_of_data(data, ranks, reporter)
    if weights is not None:
        ends = (f"{weights[c]:.3g} of {data.train_set.classes[c]}" for c in (weights.argmin(), weights.argmax()))
        reporter.decide("class weights", " to ".join(ends), f"--class-weights {spec}; every score counts images alike")
    model = _student(config, len(data.train_set.classes), chosen, ranks, reporter)
    if chosen == "bf16-residual" and isinstance(model, VisionTransformer):
        model.residual_dtype = torch.bfloat16
    loaders = data.loaders(normalisation(model), ranks)
    if loaders.mixing is not None:
        reporter.decide("mixing", *loaders.mixing.decision)
    if reason := why_on_the_cpu(ranks.device):
        reporter.decide("augmenting", "on the CPU", reason)
    if jpeg_part.missing and loaders.policy.crop == "random_resized":
        reporter.decide("JPEG files", "decoded whole, not only what the crops need", jpeg_part.missing)
    teacher = None if config.distill.distill == "none" else _teacher(config, loaders, ranks, reporter, train_first)
    step = TrainingStep(config, model, teacher, ranks, forward, reporter, weights)
    validation = loaders.validation()
    _restore(start, config.data.order, ranks, step, reporter)
    layout = {}
    if isinstance(model, VisionTransformer) and (teacher is None or not teacher.live):
        # Only the student reads the images.
        layout = {"layout": "patches", "patch": model.config.patch_size}
    batches = loaders.training(range(start.step, data.total_steps), **layout)
    schedule = learning_rates(config.optim, data.share.steps_per_epoch, step.peak_lr)
    return Prepared(config, ranks, data, loaders, step, teacher, batches, validation, schedule, start, chosen, forward)


def _tell_of_data(data: TrainingData, ranks: Ranks, reporter: Reporter) -> None:
    images, classes = len(data.train_set), len(data.train_set.classes)
    counts = f"{images:,} training and {len(data.val_set):,} validation images, {classes} classes"
    reporter.decide("data", counts)
    if left_out := [*data.train_set.left_out, *data.val_set.left_out]:
        reporter.decide("left out", by_suffix(left_out), "files that are not read: deit-fast data check names them")
    shown = data.share.epoch_images
    of_all = "" if shown == images else f", its order's rows of {images:,} images"
    epochs = "1 epoch" if data.optim.epochs == 1 else f"{data.optim.epochs} epochs"
    reason = f"{epochs} of {shown:,} // {data.optim.batch_size}{of_all}"
    reporter.decide("steps", f"{data.total_steps:,}", reason)
    if data.config.order == "official":
        reporter.decide("order", "official", f"its lists for {ranks.world_size} processes; for others they differ")


def _student(config: Config, classes: int, chosen: Precision, ranks: Ranks, reporter: Reporter) -> nn.Module:
    torch.manual_seed(config.optim.seed)
    model = ranks.main_first(lambda: classifier(config.model, config.data.image_size, classes))
    # The model must have exactly the heads that the configuration trains.
    name, distill = config.model.model, config.distill.distill
    distilled = isinstance(model, VisionTransformer) and model.config.distilled
    on_token = distill != "none" and config.distill.distill_on == "token"
    if on_token and not distilled:
        raise ValueError(
            f"{name} has no distillation token to learn from the teacher: type --distill-on class, "
            f"--distill none, or a model with _distilled in its name"
        )
    if distilled and not on_token and config.model.train_mode == "train":
        plain = name.replace("_distilled", "")
        raise ValueError(
            f"the distillation token of {name} would never be trained with --distill {distill}"
            f"{'' if distill == 'none' else ' --distill-on class'}: type --model {plain}"
        )
    model.to(ranks.device)
    # In bfloat16 torch 2.14's gradient of a depthwise convolution in channels_last reads uninitialised memory.
    on_cpu = ranks.device.type == "cpu" and chosen == "fp32"
    if on_cpu and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)
        reporter.decide("layout", "channels_last", "ConvNets train faster this way on a CPU in float32")
    return model


def _teacher(
    config: Config, loaders: Loaders, ranks: Ranks, reporter: Reporter, train_first: TrainFirst
) -> TeacherLabels:
    """The teacher's labels; a teacher that is a recipe is trained now."""
    recipe, distill, dry_run = recipe_config(config), config.distill, config.run.dry_run
    if recipe is None:
        return teacher_labels(distill, distill.teacher, loaders, ranks, reporter, dry_run)
    if dry_run:

        def load() -> Frozen:
            classes = len(loaders.data.train_set.classes)
            return Frozen(classifier(recipe.model, recipe.data.image_size, classes), loaders.normalisation)

        reporter.say(f"the teacher of the recipe {recipe.recipe} stays untrained: it is as fast")
        return teacher_labels(replace(distill, teacher_cache=""), distill.teacher, loaders, ranks, reporter, True, load)
    reporter.say(f"training its teacher first, by the recipe {recipe.recipe}")
    spec = str(train_first(recipe))
    reporter.say(f"the teacher is trained; {config.recipe} continues")
    return teacher_labels(distill, spec, loaders, ranks, reporter)


def _newest(run: Path, device: torch.device) -> Start:
    """The newest whole checkpoint, if there is one."""
    newest = checkpoint.newest(run)
    if newest is None:
        return Start()
    state = read_json(newest / "state.json")
    # Older checkpoints do not name it: --precision auto was float32 on every CPU, and on a GPU what it still is.
    begun = state.get("precision", "fp32" if device.type == "cpu" else None)
    skipped = state.get("unreadable", ())  # nor this
    done, seconds, meter = state["step"], state["seconds"], state["meter"]
    return Start(done, seconds, meter, newest, state["world_size"], skipped, begun, state.get("scaler"))


def _restore(start: Start, order: str, ranks: Ranks, step: TrainingStep, reporter: Reporter) -> None:
    """Load the tensors of the checkpoint, which rank 0 has verified, on every rank."""
    newest, average = start.folder, step.ema.module if step.ema else None
    if newest is None:
        return
    ranks.main_first(lambda: checkpoint.load(newest, step.model, average, step.optimizer))
    if step.scaler and start.scaler:
        step.scaler.load_state_dict(start.scaler)
    reporter.decide("continue", f"from step {start.step:,}", str(newest))
    # The official order's lists and mixing depend on the number of processes.
    if order == "official" and start.world_size != ranks.world_size:
        raise ValueError(
            f"{newest} was trained by {start.world_size} processes; --order official shows {ranks.world_size} "
            f"others: start {start.world_size} again, or type --order grouped in a new --out"
        )
