"""One training step: what a batch does to the weights. Nothing in it waits for the device.

step = TrainingStep(config, model, teacher, ranks, reporter)
losses = step(batch, lr)            # scalars on the device
step.model, step.optimizer, step.ema
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deit_kernels import cross_entropy, distillation_loss

from .config import Config
from .data import Batch, Target
from .distributed import Ranks
from .model import VisionTransformer, drop_path_scales
from .optimizer import MovingAverage, create_optimizer
from .report import Reporter
from .teacher import Teacher

_SEED_BITS = 0x7FFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15  # spreads consecutive steps over all seeds


class Losses(NamedTuple):
    """Scalars on the device.

    Attributes:
        loss: what is minimised; its two terms are detached.
        label_term: its part from the true labels.
        teacher_term: its part from the teacher; None without one.
    """

    loss: Tensor
    label_term: Tensor
    teacher_term: Tensor | None


class TrainingStep:
    """Teacher, student, loss, backward, update, moving average.

    Args:
        model: the student, on its device.
        teacher: whose labels it learns; None for none.

    Attributes:
        model: the student itself: neither wrapped in DDP nor compiled.
        optimizer: over its parameters.
        ema: its moving average, or None.
        autocast: the precision of forward passes, for evaluations as well.
        peak_lr: the learning rate after warm-up.
    """

    def __init__(
        self, config: Config, model: nn.Module, teacher: Teacher | None, ranks: Ranks, reporter: Reporter
    ) -> None:
        self.model, self.teacher = model, teacher
        self.autocast = precision(config, ranks.device, reporter)
        self.peak_lr = config.lr * config.batch_size / 512
        reporter.decide("lr", f"{self.peak_lr:.2e}", f"--lr {config.lr:g} x batch {config.batch_size} / 512")
        self.optimizer = create_optimizer(config, model, self.peak_lr, fused=ranks.device.type == "cuda")
        self.ema = MovingAverage(model, config.ema_decay) if config.ema_decay else None
        self._config, self._ranks = config, ranks
        self._ours = isinstance(model, VisionTransformer)
        self._student = _wrapped(model, config, ranks, reporter)

    def __call__(self, batch: Batch, lr: float) -> Losses:
        """Learn one batch at the learning rate `lr`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.autocast:
            teacher_logits = self.teacher(batch.images) if self.teacher else None
            outputs = self._forward(batch)
        losses = losses_of(self._config, outputs, teacher_logits, batch.target)
        losses.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()
        return losses._replace(loss=losses.loss.detach())

    def _forward(self, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        config, ranks = self._config, self._ranks
        if config.dropout or not self._ours:  # dropout, and its like in timm's models: f(seed, step, rank) as well
            number = batch.step * ranks.world_size + ranks.rank + 1
            torch.manual_seed(config.seed + _GOLDEN * number & _SEED_BITS)
        if not self._ours:
            return self._student(batch.images)
        drop_path = None
        if config.drop_path:
            rates = self.model.drop_path_rates()
            drop_path = drop_path_scales(config.seed, batch.step, batch.positions.numpy(), rates)
            drop_path = drop_path.to(ranks.device, non_blocking=True)
        return self._student(batch.images, drop_path)


def losses_of(
    config: Config, outputs: Tensor | tuple[Tensor, Tensor], teacher_logits: Tensor | None, target: Target
) -> Losses:
    """What the configuration minimises.

    Args:
        outputs: logits (B, C) of one head, or of class and distillation head.
        teacher_logits: (B, C); None without a teacher.
        target: labels int64 (B,), IGNORE where there is no image, or those of mixed images.
    """
    cls_logits, dist_logits = outputs if isinstance(outputs, tuple) else (outputs, None)
    if teacher_logits is None:
        loss = cross_entropy(cls_logits, target, label_smoothing=config.label_smoothing)
        return Losses(loss, loss.detach(), None)
    parts = distillation_loss(
        cls_logits, dist_logits, teacher_logits, target, mode=config.distill, alpha=config.alpha, tau=config.tau,
        kl_normalizer=config.kl_normalizer, label_smoothing=config.label_smoothing, return_parts=True,
    )  # fmt: skip
    return Losses(*parts)


def precision(config: Config, device: torch.device, reporter: Reporter) -> AbstractContextManager:
    """The context of forward passes that --precision means on this device."""
    if config.precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        reason = "this GPU has it" if bf16 else "bf16 pays on a GPU that has it"
    else:
        bf16, reason = config.precision == "bf16", "--precision"
    reporter.decide("precision", "bf16 autocast, fp32 weights" if bf16 else "fp32", reason)
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def _wrapped(model: nn.Module, config: Config, ranks: Ranks, reporter: Reporter) -> nn.Module:
    """The model as the step calls it: in DDP among several ranks, compiled where that pays."""
    share = config.batch_size // ranks.world_size
    reporter.decide("processes", f"{ranks.world_size}, {share} images a step each", str(ranks.device))
    student = model
    if ranks.world_size > 1:
        student = DistributedDataParallel(
            model,
            device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    compiled = config.compile == "on" or (config.compile == "auto" and ranks.device.type == "cuda")
    reason = "--compile" if config.compile != "auto" else "on a GPU it pays" if compiled else "on a CPU it takes longer"
    reporter.decide("compile", "on" if compiled else "off", reason)
    return torch.compile(student) if compiled else student
