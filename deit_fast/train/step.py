"""One training step: what a batch does to the weights. Nothing in it waits for the device.

    step = TrainingStep(config, model, teacher, ranks, autocast, reporter)
    result = step(batch, lr)            # scalars on the device
    step.model, step.optimizer, step.ema

When the loss or a gradient of any rank is NaN or infinite, every rank skips the step, by a flag on the device: weights,
moments, average and batch-norm statistics keep their bits. The learning rate depends on the number of the step alone
and goes on. So a single bad batch costs one step; after `--skip-limit` of them in a row the run ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from deit_kernels import MixedTarget, TopK, binary_cross_entropy, cross_entropy, distillation_loss

from ..config import Config, DistillConfig
from ..data import IGNORE, Batch, Target
from ..data.memory import to_device
from ..model import VisionTransformer, drop_path_scales
from ..ranks.group import Ranks, compiles
from ..run.report import Reporter
from .fit import Fit
from .meter import Clock, Losses, StepResult
from .optimizer import MovingAverage, create_optimizer

_SEED_BITS = 0x7FFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15  # spreads consecutive steps over all seeds


class TrainingStep:
    """Teacher, student, loss, backward, update, moving average."""

    def __call__(self, batch: Batch, lr: float) -> StepResult:
        """Learn one batch at the learning rate `lr`.

        Raises:
            ValueError: one image at a time is too much for the device's memory.
            OfOneRank: of several ranks this one ran out of memory, in a later step than its first.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        # Labelled rows of the global batch, or their weights, ÷ world size: dividing each rank's sum by it makes DDP's
        # mean the global mean, also where one rank has more unreadable images than another.
        counted = self._ranks.begin_total(self._count(batch.target))
        # A forward pass changes batch norm's statistics before anyone knows whether the step is skipped.
        statistics = [buffer.clone() for buffer in self._buffers]
        losses = self.fit(batch, partial(self._learn, counted=counted), partial(self._forget, statistics))
        with self.clock("optimiser"):
            return self._update(losses, statistics)

    def _learn(self, batch: Batch, counted: Callable[[], Tensor]) -> Losses:
        """Add the gradient of these rows: of the sum of their losses ÷ (`counted` ÷ world size)."""
        with self.clock("teacher"):
            teacher_labels = self.teacher(batch) if self.teacher else None
        with self.clock("forward"), self._autocast:
            outputs = self._forward(batch)
        with record_function("loss"):
            divisor = (total := counted()).where(total > 0, 1.0) / self._ranks.world_size
            losses = self._losses(outputs, teacher_labels, batch.target, divisor)
        with self.clock("backward"):
            loss = self.scaler.scale(losses.loss) if self.scaler else losses.loss
            # From a NaN every gradient becomes NaN, and ranks exchange gradients: all notice a bad loss of any rank.
            loss.backward(torch.where(losses.loss.detach().isfinite(), 1.0, math.nan))
        return losses._replace(loss=losses.loss.detach())

    def _update(self, losses: Losses, statistics: list[Tensor]) -> StepResult:
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
            # Fused optimizers, and Lamb, read it on the device.
            self.optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self._buffers, statistics, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))
        if self.ema:
            self.ema.update(finite)
        return StepResult(losses, grad_norm, finite)

    def _forward(self, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        model, seed = self.model, self._config.seed
        # So dropout, also that of timm's models, depends on the seed and on the rows' place in the stream only.
        if not isinstance(model, VisionTransformer) or model.config.dropout:
            number = batch.step * self._config.batch_size + batch.positions.numpy()[0].item() + 1
            torch.manual_seed((seed + _GOLDEN * number) & _SEED_BITS)
        if not isinstance(model, VisionTransformer) or not model.config.drop_path_rate:
            return self._student(batch.images)
        scales = drop_path_scales(seed, batch.step, batch.positions.numpy(), model.drop_path_rates())
        return self._student(batch.images, to_device(scales, self._ranks.device))

    def _forget(self, statistics: list[Tensor]) -> None:
        """Undo `_learn`."""
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self._buffers, statistics, strict=True):
            buffer.copy_(before)

    def __init__(
        self, config: Config, model: nn.Module, teacher: Callable[[Batch], Tensor | TopK] | None, ranks: Ranks,
        autocast: AbstractContextManager, reporter: Reporter, class_weights: Tensor | None = None,
    ) -> None:  # fmt: skip
        optim = config.optim
        weight = None if class_weights is None else class_weights.float().to(ranks.device)
        self.model = model  # the student itself, on its device: neither wrapped in DDP nor compiled
        self.teacher = teacher  # gives the teacher's labels of a batch's rows; None without distillation
        self.peak_lr = optim.lr * (1 if optim.unscale_lr else optim.batch_size / 512)  # after warm-up
        scaled = "--unscale-lr" if optim.unscale_lr else f"x batch {optim.batch_size} / 512"
        reporter.decide("lr", f"{self.peak_lr:.2e}", f"--lr {optim.lr:g} {scaled}")
        self.optimizer = create_optimizer(optim, model, self.peak_lr)
        self.ema = MovingAverage(model, optim.ema_decay) if optim.ema_decay else None
        self.scaler = torch.amp.GradScaler(ranks.device.type) if optim.precision == "fp16" else None
        self.clock = Clock(ranks.device, "teacher", "forward", "backward", "optimiser")
        self._config, self._ranks, self._autocast = optim, ranks, autocast
        self._buffers = list(model.buffers())  # found once, not in every step
        self._losses: Callable[..., Losses] = partial(losses_of, config.distill, weight=weight)
        self._count: Callable[[Target], Tensor] = partial(count_of, None if config.distill.bce_loss else weight)
        self.fit = Fit(optim.batch_size, optim.micro_batch, config.data.image_size, ranks, reporter)
        compiled = compiles(optim.compile, ranks.device)
        decided = "on a GPU it pays" if compiled else "on a CPU it takes longer"
        reporter.decide("compile", "on" if compiled else "off", "--compile" if optim.compile != "auto" else decided)
        self._student: Any = model
        if compiled:
            # Every batch has the same shape. Our model has no graph break; others may have some.
            whole = isinstance(model, VisionTransformer)
            self._student = torch.compile(model, fullgraph=whole, dynamic=False, mode=optim.compile_mode)
            self._losses = torch.compile(self._losses, fullgraph=True, dynamic=False)
            if self.ema:
                self.ema.compile()
        if ranks.world_size > 1:
            # DDP averages the gradients over ranks while backward goes on, in the memory that they lie in. Before each
            # forward it broadcasts rank 0's batch-norm statistics; a transformer has none, so nothing is sent.
            # static_graph stays off: a micro-batch under no_sync() would change the graph.
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            self._student = DistributedDataParallel(self._student, device_ids=devices, gradient_as_bucket_view=True)
            self.fit.no_sync = self._student.no_sync


def count_of(weight: Tensor | None, target: Target) -> Tensor:
    """How many rows have a label; with weights of the classes also the sum of the rows' weights, the divisor (2,)."""
    labels, partner, lam = target if isinstance(target, MixedTarget) else (target, target, 1.0)
    rows = (labels != IGNORE).float()
    if weight is None:
        return rows.sum()
    of_row = lam * weight[labels.clamp_min(0)] + (1 - lam) * weight[partner.clamp_min(0)]
    return torch.stack([rows.sum(), (rows * of_row).sum()])


def losses_of(
    config: DistillConfig, outputs: Tensor | tuple[Tensor, Tensor], teacher_labels: Tensor | TopK | None,
    target: Target, counted: Tensor | None = None, weight: Tensor | None = None,
) -> Losses:  # fmt: skip
    """The losses that the configuration names.

    Args:
        outputs: logits (B, C) of one head, or of class and distillation head.
        teacher_labels: logits (B, C), labels int64 (B,), or a TopK; None without a teacher.
        target: true labels int64 (B,), IGNORE where there is no image, or those of mixed images.
        counted: `count_of` what the sums over the rows are divided by; None: of this target, for its mean.
        weight: of the classes (C,).
    """
    cls_logits, dist_logits = outputs if isinstance(outputs, tuple) else (outputs, None)
    labels = target if isinstance(target, Tensor) else target.labels
    if counted is None:
        counted = count_of(None if config.bce_loss else weight, target)
    rows, divisor = counted.expand(2)
    top1 = (cls_logits.argmax(1) == labels).sum() / rows
    options: dict[str, Any] = {"label_smoothing": config.label_smoothing, "reduction": "none", "weight": weight}
    if config.bce_loss:
        options |= {"target_threshold": config.bce_target_thresh, "sum_classes": config.bce_sum}
    if teacher_labels is None:
        label_loss = binary_cross_entropy if config.bce_loss else cross_entropy
        loss = label_loss(cls_logits, target, **options).sum() / divisor
        return Losses(loss, loss.detach(), torch.zeros_like(loss), top1)
    assert config.distill != "none"
    parts = distillation_loss(
        cls_logits, dist_logits, teacher_labels, target, mode=config.distill, alpha=config.alpha, tau=config.tau,
        kl_normalizer=config.kl_normalizer, return_parts=True, base="bce" if config.bce_loss else "ce", **options,
    )  # fmt: skip
    loss, label_term, teacher_term = (part.sum() / divisor for part in parts)
    return Losses(loss, label_term, teacher_term, top1)
