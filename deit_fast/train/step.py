"""One training step: what a batch does to the weights. Nothing in it waits for the device.

    step = TrainingStep(config, model, teacher, ranks, autocast, reporter)
    with step.steady():
        result = step(batch, lr)        # scalars on the device
    step.model, step.optimizer, step.ema

A process's rows go through the model `--micro-batch` at a time: the gradient is that of all of them together, whatever
the size. Where memory does not suffice it is halved, and the step repeated.

A step whose loss or gradient is no number on any rank is left out on every rank, by a flag on the device: weights,
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

from deit_kernels import TopK, cross_entropy, distillation_loss

from ..command import OfOneRank
from ..config import Config
from ..data import IGNORE, Batch, Target
from ..data.batch import parts, slices
from ..data.memory import to_device
from ..model import VisionTransformer, drop_path_scales
from ..ranks.group import Ranks, compiles, has_bf16
from ..run.report import Reporter
from .counters import Statistics, Stopwatch, gradient_of
from .optimizer import MovingAverage, create_optimizer

_SEED_BITS = 0x7FFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15  # spreads consecutive steps over all seeds


_WARM_UP_STEPS = 3  # by then every buffer, graph and cache that lives as long as the run is there


class Losses(NamedTuple):
    """Scalars on the device.

    Attributes:
        loss: what is minimised; the others are detached.
        label_term: its part from the true labels.
        teacher_term: its part from the teacher; None without one.
        top1: share of the rows whose class token (or only head) has the largest logit at the label.
    """

    loss: Tensor
    label_term: Tensor
    teacher_term: Tensor | None
    top1: Tensor


class StepResult(NamedTuple):
    """What a step leaves to be logged, on the device.

    Attributes:
        losses: detached. Their mean over ranks is the loss of the global batch, however its rows that count are spread.
        grad_norm: float32 scalar, the Euclidean norm of the gradient of all parameters; the same on every rank.
        finite: bool scalar, whether it is a number; the same on every rank. Where it is not, the step was left out.
    """

    losses: Losses
    grad_norm: Tensor
    finite: Tensor


class TrainingStep:
    """Teacher, student, loss, backward, update, moving average.

    Args:
        model: the student, on its device.
        teacher: the labels of a batch's rows that it gives the student; None for none.
        autocast: see `precision`.

    Attributes:
        model: the student itself: neither wrapped in DDP nor compiled.
        optimizer: over its parameters.
        ema: its moving average, or None.
        scaler: of the loss, for fp16; None in other precisions.
        peak_lr: the learning rate after warm-up.
        teacher_watch: the time that the teacher's labels take.
        slices: equal parts in which this rank's rows go through the model.
    """

    def __init__(
        self, config: Config, model: nn.Module, teacher: Callable[[Batch], Tensor | TopK] | None, ranks: Ranks,
        autocast: AbstractContextManager, reporter: Reporter,
    ) -> None:  # fmt: skip
        self.model, self.teacher = model, teacher
        self.peak_lr = config.lr * config.batch_size / 512
        reporter.decide("lr", f"{self.peak_lr:.2e}", f"--lr {config.lr:g} x batch {config.batch_size} / 512")
        # Fused: one pass over the weights, no wait for the step counter, and a flag on the device can skip the update.
        self.optimizer = create_optimizer(config, model, self.peak_lr)
        self.ema = MovingAverage(model, config.ema_decay) if config.ema_decay else None
        self.scaler = torch.amp.GradScaler(ranks.device.type) if config.precision == "fp16" else None
        self._config, self._ranks, self._autocast, self._reporter = config, ranks, autocast, reporter
        self._ours = isinstance(model, VisionTransformer)
        self._rows = config.batch_size // ranks.world_size
        self.slices = slices(self._rows, config.micro_batch)
        share = f", {self._rows // self.slices} at once" if self.slices > 1 else ""
        reporter.decide("processes", f"{ranks.world_size}, {self._rows} images a step each{share}", str(ranks.device))
        compiled = compiles(config.compile, ranks.device)
        decided = "on a GPU it pays" if compiled else "on a CPU it takes longer"
        reporter.decide("compile", "on" if compiled else "off", "--compile" if config.compile != "auto" else decided)
        self._losses = partial(losses_of, config)
        student = model
        if compiled:
            # Every batch has the same shape. Ours has no graph break; what others have is their own.
            student = torch.compile(model, fullgraph=self._ours, dynamic=False)
            self._losses = torch.compile(self._losses, fullgraph=True, dynamic=False)
        self._student = _parallel(student, ranks)
        self.teacher_watch = Stopwatch(ranks.device)
        self._steps = 0
        self._statistics = Statistics(model)

    @contextmanager
    def steady(self) -> Iterator[None]:
        """For the loop: after the first steps, what is in memory stays there and the garbage collector skips it."""
        try:
            yield
        finally:
            gc.unfreeze()

    def __call__(self, batch: Batch, lr: float) -> StepResult:
        """Learn one batch at the learning rate `lr`.

        Raises:
            ValueError: one image at a time is too much for the device's memory; among ranks, the first step fitted and
                this one does not.
        """
        self._steps += 1
        if self._steps == 1 and self._ranks.world_size > 1:
            self._fit(batch)
        elif self._steps == _WARM_UP_STEPS:
            gc.freeze()  # without a collection before it, which hung with compiled models among ranks (torch 2.14)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        counted = self._counted(batch)
        self._statistics.remember()
        while (losses := self._gradients(batch, counted)) is None:
            self._halve()
            self._statistics.restore_unless(torch.zeros((), dtype=torch.bool, device=self._ranks.device))
        with record_function("optimiser"):
            return self._update(losses)

    def _update(self, losses: Losses) -> StepResult:
        """Move weights and average along the gradients, which are gone afterwards; nothing where one is no number."""
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

    def _counted(self, batch: Batch) -> Tensor:
        """The rows of the global batch that have a label, divided by the ranks; at least 1 in all.

        A sum over a rank's rows divided by this has the global batch's mean as its mean over ranks, and so have its
        gradients, which DDP averages: also where one rank has more unreadable images than another.
        """
        counted = self._ranks.total((batch.labels != IGNORE).sum().float())
        return counted.clamp_min(1) / self._ranks.world_size

    def _gradients(self, batch: Batch, counted: Tensor, alone: bool = False) -> Losses | None:
        """Forward and backward of all rows; None, and no gradients, when the device's memory does not suffice.

        Args:
            counted: what the sum over this rank's rows is divided by.
            alone: leave the other ranks' gradients out.

        Raises:
            OfOneRank: it does not suffice, and the other ranks already wait for these gradients.
        """
        total: Losses | None = None
        try:
            for index, part in enumerate(parts(batch, self._rows // self.slices)):
                last = index == self.slices - 1
                hold = self._ranks.world_size > 1 and (alone or not last)
                with self._student.no_sync() if hold else nullcontext():
                    losses = self._learn(part, counted)
                total = losses if total is None else Losses(*map(_sum, total, losses))
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

    def _learn(self, batch: Batch, counted: Tensor) -> Losses:
        with record_function("teacher"), self.teacher_watch:
            taught = self.teacher(batch) if self.teacher else None
        with record_function("forward"), self._autocast:
            outputs = self._forward(batch)
        with record_function("loss"):
            losses = self._losses(outputs, taught, batch.target, counted)
        with record_function("backward"):
            (self.scaler.scale(losses.loss) if self.scaler else losses.loss).backward(gradient_of(losses.loss))
        return losses._replace(loss=losses.loss.detach())

    def _forward(self, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        config, ranks = self._config, self._ranks
        # Dropout, and its like in timm's models, is a function of seed and place in the stream as well.
        if config.dropout or not self._ours:
            number = batch.step * config.batch_size + batch.positions.numpy()[0].item() + 1
            torch.manual_seed(config.seed + _GOLDEN * number & _SEED_BITS)
        if not self._ours:
            return self._student(batch.images)
        drop_path = None
        if config.drop_path:
            rates = self.model.drop_path_rates()
            scales = drop_path_scales(config.seed, batch.step, batch.positions.numpy(), rates)
            drop_path = to_device(scales, ranks.device)
        return self._student(batch.images, drop_path)

    def _fit(self, batch: Batch) -> None:
        """Try one batch on every rank alone and agree on the slices: later, a rank without memory would leave the rest
        waiting for its gradients."""
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        while True:
            losses = self._gradients(batch, torch.ones((), device=self._ranks.device), alone=True)
            self.optimizer.zero_grad(set_to_none=True)
            missing = torch.tensor(float(losses is None), device=self._ranks.device)
            if not self._ranks.total(missing).item():
                break
            self._halve()
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _halve(self) -> None:
        """Half as many rows at once.

        Raises:
            ValueError: it is one already.
        """
        rows = self._rows // self.slices
        if rows == 1:
            raise ValueError(
                f"not even one image at a time of {self._config.image_size} x {self._config.image_size} pixels fits "
                f"into the memory of {self._ranks.device}: type a smaller --model or --image-size"
            )
        if self._ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        self.slices = slices(self._rows, rows // 2)
        self._reporter.say(
            f"out of memory with {rows} images at once: {self._rows // self.slices} from now on, and still "
            f"{self._config.batch_size} a step (--micro-batch {self._rows // self.slices} says so from the start)"
        )


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None else first + second


def losses_of(
    config: Config,
    outputs: Tensor | tuple[Tensor, Tensor],
    taught: Tensor | TopK | None,
    target: Target,
    counted: Tensor | None = None,
) -> Losses:
    """What the configuration minimises.

    Args:
        outputs: logits (B, C) of one head, or of class and distillation head.
        taught: what the teacher says: logits (B, C), labels int64 (B,), or a TopK; None without a teacher.
        target: labels int64 (B,), IGNORE where there is no image, or those of mixed images.
        counted: what the sum over the rows is divided by; None: the number of rows with a label, for their mean.
    """
    cls_logits, dist_logits = outputs if isinstance(outputs, tuple) else (outputs, None)
    labels = target if isinstance(target, Tensor) else target.labels
    if counted is None:
        counted = (labels != IGNORE).sum()
    top1 = (cls_logits.argmax(1) == labels).sum() / counted
    options = {"label_smoothing": config.label_smoothing, "reduction": "none"}
    if taught is None:
        loss = cross_entropy(cls_logits, target, **options).sum() / counted
        return Losses(loss, loss.detach(), None, top1)
    parts = distillation_loss(
        cls_logits, dist_logits, taught, target, mode=config.distill, alpha=config.alpha, tau=config.tau,
        kl_normalizer=config.kl_normalizer, return_parts=True, **options,
    )  # fmt: skip
    return Losses(*(part.sum() / counted for part in parts), top1)


def precision(config: Config, device: torch.device, reporter: Reporter) -> AbstractContextManager:
    """The context of forward passes that --precision means on this device.

    Raises:
        ValueError: fp16 on a CPU.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
    reason = "--precision"
    if dtype is torch.float16 and device.type != "cuda":
        raise ValueError("--precision fp16 needs a CUDA GPU, this is a CPU: type --precision bf16 or --precision fp32")
    if config.precision == "auto":
        yes, no = (torch.bfloat16, "this GPU has it"), (None, "bf16 pays on a GPU that has it")
        dtype, reason = yes if has_bf16(device) else no
    names = {torch.bfloat16: "bf16 autocast, fp32 weights", torch.float16: "fp16 autocast, fp32 weights, scaled loss"}
    reporter.decide("precision", names.get(dtype, "fp32"), reason)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def _parallel(student: nn.Module, ranks: Ranks) -> nn.Module:
    """The model as the step calls it: among several ranks, its gradients are their mean.

    They are exchanged while backward goes on, out of the memory that they lie in. Batch norm's statistics are rank 0's
    at every rank, by a broadcast before each forward; a transformer has none, so nothing is sent. The graph is not
    declared static: a micro-batch whose gradients stay at home would contradict it.
    """
    if ranks.world_size == 1:
        return student
    return DistributedDataParallel(
        student,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
