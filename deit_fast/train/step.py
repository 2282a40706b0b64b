"""One training step: what a batch does to the weights. Nothing in it waits for the device.

    step = TrainingStep(config, model, teacher, ranks, autocast, reporter)
    with step.steady():
        result = step(batch, lr)        # scalars on the device
    step.model, step.optimizer, step.ema

A process's rows go through the model `--micro-batch` at a time; the gradient is that of all rows, whatever the size.
When the device is out of memory the size is halved, and the step repeated.

When the loss or a gradient of any rank is NaN or infinite, every rank skips the step, by a flag on the device: weights,
moments, average and batch-norm statistics stay as they are.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from deit_kernels import TopK, binary_cross_entropy, cross_entropy, distillation_loss

from ..command import OfOneRank
from ..config import Config, DistillConfig, OptimConfig, Precision
from ..data import IGNORE, Batch, Target
from ..data.batch import parts, slices
from ..data.memory import to_device
from ..model import VisionTransformer, drop_path_scales
from ..ranks.group import Ranks, compiles, why_bf16
from ..run.report import Reporter
from .counters import Statistics, Stopwatch, gradient_of
from .optimizer import MovingAverage, create_optimizer

_SEED_BITS = 0x7FFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15  # spreads consecutive steps over all seeds
_WARM_UP_STEPS = 3  # by then every buffer, graph and cache that lives as long as the run exists


class Losses(NamedTuple):
    """Scalars on the device; all but `loss` are detached."""

    loss: Tensor  # what is minimised
    label_term: Tensor
    teacher_term: Tensor | None  # None without a teacher
    top1: Tensor  # of the class token; of the only head in a plain model


class StepResult(NamedTuple):
    """What a step leaves to be logged, on the device; `grad_norm` and `finite` are the same on every rank."""

    losses: Losses  # detached; their mean over ranks is the loss of the global batch, unreadable images or not
    grad_norm: Tensor  # float32 scalar, the Euclidean norm of the gradient of all parameters
    finite: Tensor  # bool scalar: `grad_norm` is neither NaN nor infinite; where false, the step was skipped


class TrainingStep:
    """Teacher, student, loss, backward, update, moving average."""

    def __init__(
        self, config: Config, model: nn.Module, teacher: Callable[[Batch], Tensor | TopK] | None, ranks: Ranks,
        autocast: AbstractContextManager, reporter: Reporter,
    ) -> None:  # fmt: skip
        optim = config.optim
        self.model = model  # the student itself, on its device: neither wrapped in DDP nor compiled
        self.teacher = teacher  # gives the teacher's labels of a batch's rows; None without distillation
        self.peak_lr = optim.lr * (1 if optim.unscale_lr else optim.batch_size / 512)  # after warm-up
        scaled = "--unscale-lr" if optim.unscale_lr else f"x batch {optim.batch_size} / 512"
        reporter.decide("lr", f"{self.peak_lr:.2e}", f"--lr {optim.lr:g} {scaled}")
        self.optimizer = create_optimizer(optim, model, self.peak_lr)
        self.ema = MovingAverage(model, optim.ema_decay) if optim.ema_decay else None
        self.scaler = torch.amp.GradScaler(ranks.device.type) if optim.precision == "fp16" else None
        self._config, self._ranks, self._autocast, self._reporter = optim, ranks, autocast, reporter
        self._image_size = config.data.image_size
        self._ours = isinstance(model, VisionTransformer)
        self._rows = optim.batch_size // ranks.world_size
        self.slices = slices(self._rows, optim.micro_batch)  # equal parts in which the rows go through the model
        share = f", {self._rows // self.slices} at once" if self.slices > 1 else ""
        reporter.decide("processes", f"{ranks.world_size}, {self._rows} images a step each{share}", str(ranks.device))
        compiled = compiles(optim.compile, ranks.device)
        decided = "on a GPU it pays" if compiled else "on a CPU it takes longer"
        reporter.decide("compile", "on" if compiled else "off", "--compile" if optim.compile != "auto" else decided)
        self._losses = partial(losses_of, config.distill)
        student = model
        if compiled:
            # Every batch has the same shape. Our model has no graph break; others may have some.
            student = torch.compile(model, fullgraph=self._ours, dynamic=False, mode=optim.compile_mode)
            self._losses = torch.compile(self._losses, fullgraph=True, dynamic=False)
            if self.ema:
                self.ema.compile()
        if ranks.world_size > 1:
            # DDP averages the gradients over ranks while backward goes on, in the memory that they lie in. Before each
            # forward it broadcasts rank 0's batch-norm statistics; a transformer has none, so nothing is sent.
            # static_graph stays off: a micro-batch under no_sync() would change the graph.
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            student = DistributedDataParallel(student, device_ids=devices, gradient_as_bucket_view=True)
        self._student = student
        # The time of each part of a step.
        self.watches = {name: Stopwatch(ranks.device) for name in ("teacher", "forward", "backward", "optimiser")}
        self.teacher_watch = self.watches["teacher"]
        self._steps = 0
        self._statistics = Statistics(model)

    @contextmanager
    def steady(self) -> Iterator[None]:
        """For the loop: what exists after the first steps lives on, so the garbage collector need not look at it."""
        try:
            yield
        finally:
            gc.unfreeze()

    def __call__(self, batch: Batch, lr: float) -> StepResult:
        """Learn one batch at the learning rate `lr`.

        Raises:
            ValueError: one image at a time is too much for the device's memory.
            OfOneRank: of several ranks this one ran out of memory, in a later step than its first.
        """
        self._steps += 1
        if self._steps == 1 and self._ranks.world_size > 1:
            self._fit(batch)
        elif self._steps == _WARM_UP_STEPS:
            gc.freeze()  # without a collection before it, which hung with compiled models among ranks (torch 2.14)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        # Labelled rows of the global batch ÷ world size: dividing each rank's sum by it makes DDP's mean the global
        # mean, also where one rank has more unreadable images than another.
        counted = self._ranks.begin_total((batch.labels != IGNORE).sum().float())
        self._statistics.remember()
        while (losses := self._gradients(batch, counted)) is None:
            self._halve()
            self._statistics.restore()
        with record_function("optimiser"), self.watches["optimiser"]:
            return self._update(losses)

    def _update(self, losses: Losses) -> StepResult:
        """Update weights and average, unless a gradient is NaN or infinite; then free the gradients."""
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        finite = grad_norm.isfinite()
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = finite.logical_not().float()  # the fused kernel reads it on the device
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.restore_unless(finite)
        if self.ema:
            self.ema.update(finite)
        return StepResult(losses, grad_norm, finite)

    def _gradients(self, batch: Batch, counted: Callable[[], Tensor], alone: bool = False) -> Losses | None:
        """Forward and backward of all rows; None, and no gradients, when the device is out of memory.

        The sum over this rank's rows is divided by the global `counted` ÷ world size. With `alone`, no gradients are
        exchanged; without, a rank that is out of memory ends, since the others already wait for its gradients.
        """
        total: Losses | None = None
        try:
            for index, part in enumerate(parts(batch, self._rows // self.slices)):
                last = index == self.slices - 1
                hold = self._ranks.world_size > 1 and (alone or not last)
                with self._student.no_sync() if hold else nullcontext():
                    losses = self._learn(part, counted)
                if total is not None:
                    pairs = zip(total, losses, strict=True)
                    losses = Losses(*(None if old is None else old + new for old, new in pairs))
                total = losses
            return total
        except torch.OutOfMemoryError as error:
            self.optimizer.zero_grad(set_to_none=True)
            if self._ranks.world_size > 1 and not alone:
                rows = self._rows // self.slices
                less = f"add --micro-batch {rows // 2} to" if rows > 1 else "give the GPU to this run alone and repeat"
                raise OfOneRank(
                    f"rank {self._ranks.rank} ran out of memory with {rows} images at once, which fitted before: "
                    f"{less} the command, and it continues from the last checkpoint"
                ) from error
        return None

    def _learn(self, batch: Batch, counted: Callable[[], Tensor]) -> Losses:
        with record_function("teacher"), self.watches["teacher"]:
            teacher_labels = self.teacher(batch) if self.teacher else None
        with record_function("forward"), self.watches["forward"], self._autocast:
            outputs = self._forward(batch)
        with record_function("loss"):
            divisor = counted().clamp_min(1) / self._ranks.world_size
            losses = self._losses(outputs, teacher_labels, batch.target, divisor)
        with record_function("backward"), self.watches["backward"]:
            (self.scaler.scale(losses.loss) if self.scaler else losses.loss).backward(gradient_of(losses.loss))
        return losses._replace(loss=losses.loss.detach())

    def _forward(self, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        seed, ours = self._config.seed, self.model.config if self._ours else None
        # So dropout, also that of timm's models, depends on the seed and on the rows' place in the stream only.
        if ours is None or ours.dropout:
            number = batch.step * self._config.batch_size + batch.positions.numpy()[0].item() + 1
            torch.manual_seed((seed + _GOLDEN * number) & _SEED_BITS)
        if ours is None:
            return self._student(batch.images)
        drop_path = None
        if ours.drop_path_rate:
            rates = self.model.drop_path_rates()
            scales = drop_path_scales(seed, batch.step, batch.positions.numpy(), rates)
            drop_path = to_device(scales, self._ranks.device)
        return self._student(batch.images, drop_path)

    def _fit(self, batch: Batch) -> None:
        """Try one batch on every rank alone and agree on the slices: later, the others would wait for the gradients of
        a rank that is out of memory."""
        self._statistics.remember()
        while True:
            losses = self._gradients(batch, lambda: torch.ones((), device=self._ranks.device), alone=True)
            self.optimizer.zero_grad(set_to_none=True)
            missing = torch.tensor(float(losses is None), device=self._ranks.device)
            if not self._ranks.total(missing).item():
                break
            self._halve()
        self._statistics.restore()

    def _halve(self) -> None:
        """Half as many rows at once."""
        rows = self._rows // self.slices
        if rows == 1:
            raise ValueError(
                f"not even one image at a time of {self._image_size} x {self._image_size} pixels fits "
                f"into the memory of {self._ranks.device}: type a smaller --model or --image-size"
            )
        if self._ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        self.slices = slices(self._rows, rows // 2)
        self._reporter.say(
            f"out of memory with {rows} images at once: {self._rows // self.slices} from now on, and still "
            f"{self._config.batch_size} a step (type --micro-batch {self._rows // self.slices} to begin with that)"
        )


def losses_of(
    config: DistillConfig, outputs: Tensor | tuple[Tensor, Tensor], teacher_labels: Tensor | TopK | None,
    target: Target, counted: Tensor | None = None,
) -> Losses:  # fmt: skip
    """The losses that the configuration names.

    Args:
        outputs: logits (B, C) of one head, or of class and distillation head.
        teacher_labels: logits (B, C), labels int64 (B,), or a TopK; None without a teacher.
        target: true labels int64 (B,), IGNORE where there is no image, or those of mixed images.
        counted: what the sum over the rows is divided by; None: the number of rows with a label, for their mean.
    """
    cls_logits, dist_logits = outputs if isinstance(outputs, tuple) else (outputs, None)
    labels = target if isinstance(target, Tensor) else target.labels
    if counted is None:
        counted = (labels != IGNORE).sum()
    top1 = (cls_logits.argmax(1) == labels).sum() / counted
    options = {"label_smoothing": config.label_smoothing, "reduction": "none"}
    if config.bce_loss:
        options |= {"target_threshold": config.bce_target_thresh, "sum_classes": config.bce_sum}
    if teacher_labels is None:
        label_loss = binary_cross_entropy if config.bce_loss else cross_entropy
        loss = label_loss(cls_logits, target, **options).sum() / counted
        return Losses(loss, loss.detach(), None, top1)
    parts = distillation_loss(
        cls_logits, dist_logits, teacher_labels, target, mode=config.distill, alpha=config.alpha, tau=config.tau,
        kl_normalizer=config.kl_normalizer, return_parts=True, base="bce" if config.bce_loss else "ce", **options,
    )  # fmt: skip
    return Losses(*(part.sum() / counted for part in parts), top1)


def precision(config: OptimConfig, ranks: Ranks, begun: Precision | None, reporter: Reporter) -> Precision:
    """The precision of forward passes; "auto" is that of the checkpoint, `begun`, else what rank 0's device has."""
    chosen, reason = config.precision, "--precision"
    if chosen == "fp16" and ranks.device.type != "cuda":
        raise ValueError("--precision fp16 needs a CUDA GPU, this is a CPU: type --precision bf16 or --precision fp32")
    if chosen == "auto" and begun:
        chosen, reason = begun, "this run began with it"
    elif chosen == "auto":
        why = ranks.on_main(lambda: why_bf16(ranks.device))
        chosen = "bf16" if why else "fp32"
        reason = why or "bf16 would be no faster here: it needs a GPU that has it, or a processor with AMX tiles"
    names = {
        "bf16": "bf16 autocast, fp32 weights",
        "bf16-residual": "bf16 autocast, also of the sums between a deit_ model's blocks, fp32 weights",
        "fp16": "fp16 autocast, fp32 weights, scaled loss",
    }
    reporter.decide("precision", names.get(chosen, chosen), reason)
    return chosen


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    dtype = {"bf16": torch.bfloat16, "bf16-residual": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()
