"""The losses as autograd functions, and their second derivatives, which come from the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .reference import LossCall


def cross_entropy_call(
    logits: Tensor, target: Tensor, label_smoothing: float, ignore_index: int, mean: bool,
    partner: Tensor | None = None, lam: Tensor | None = None,
) -> LossCall:  # fmt: skip
    """A cross-entropy alone, as one of the general calls."""
    return LossCall(
        logits, None, None, None, target, partner, lam, soft=False, alpha=0.0, tau=1.0, numel=False,
        label_smoothing=label_smoothing, teacher_smoothing=0.0, ignore_index=ignore_index, mean=mean,
    )  # fmt: skip


class DistillLoss(torch.autograd.Function):
    """Autograd stays outside the ops: half the call cost of torch.library.register_autograd."""

    @staticmethod
    def forward(ctx, *args: object) -> tuple[Tensor, Tensor, Tensor]:
        loss, base, distill, statistics, count = torch.ops.deit_kernels._distill_loss_fwd(*args)
        ctx.save_for_backward(statistics, count, *args[:7])
        ctx.options = args[7:]
        ctx.mark_non_differentiable(base, distill)
        ctx.set_materialize_grads(False)
        return loss, base, distill

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        no_gradient = (None,) * (len(LossCall._fields) - 2)
        if grad is None:
            return None, None, *no_gradient
        statistics, count, *tensors = ctx.saved_tensors
        call = LossCall(*tensors, *ctx.options)
        need_cls = ctx.needs_input_grad[0] and (call.alpha < 1 or call.dist is None)
        need_dist = ctx.needs_input_grad[1] and call.alpha > 0
        return *_gradients(grad, statistics, count, call, need_cls, need_dist), *no_gradient


class CrossEntropy(torch.autograd.Function):
    """The same of a cross-entropy of labels or probabilities, whose forward op is smaller."""

    @staticmethod
    def forward(ctx, *args: object) -> Tensor:
        loss, statistics = torch.ops.deit_kernels._cross_entropy_fwd(*args)
        ctx.save_for_backward(statistics, *args[:2])
        ctx.options = args[2:]
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        statistics, *tensors = ctx.saved_tensors
        count = statistics.new_empty(0)
        gradient, _ = _gradients(grad, statistics, count, cross_entropy_call(*tensors, *ctx.options), True, False)
        return gradient, None, None, None, None


def _gradients(
    grad: Tensor, statistics: Tensor, count: Tensor, call: LossCall, need_cls: bool, need_dist: bool
) -> tuple[Tensor | None, Tensor | None]:
    # create_graph=True: someone differentiates again.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _differentiable_gradients(grad, call, need_cls, need_dist)
    grad_cls, grad_dist = torch.ops.deit_kernels._distill_loss_bwd(grad, statistics, count, *call, need_cls, need_dist)
    return grad_cls if need_cls else None, grad_dist if need_dist else None


def _differentiable_gradients(
    grad: Tensor, call: LossCall, need_cls: bool, need_dist: bool
) -> tuple[Tensor | None, ...]:
    base, distill, weight = reference.loss_terms(call)
    terms = (reference.reduced(rows, weight, call.mean) for rows in (base, distill))
    loss = reference.weighted(*terms, call.alpha)
    heads = [head for head, needed in ((call.cls, need_cls), (call.dist, need_dist)) if needed]
    gradients = iter(torch.autograd.grad(loss, heads, grad, create_graph=True))
    return next(gradients) if need_cls else None, next(gradients) if need_dist else None
