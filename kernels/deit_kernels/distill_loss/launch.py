"""Launch the kernels of the loss: `forward` and `backward` give what the functions of `reference.py` give."""

from __future__ import annotations

import torch
from torch import Tensor

from . import kernels, reference
from .cases import compile_cases, trace_cases
from .operands import MEAN_OPTIONS, Tiling, backward_arguments, forward_arguments
from .reference import LossCall

__all__ = ["backward", "compile_cases", "forward", "trace_cases"]


def forward(call: LossCall, tiling: Tiling | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, base term, distillation term, statistics, number of rows that count), as `reference.forward`."""
    rows = call.logits.shape[0]
    new = {"dtype": torch.float32, "device": call.logits.device}
    base, distill = torch.empty(rows, **new), torch.empty(rows, **new)
    loss = None if call.mean else torch.empty(rows, **new)
    statistics, count = torch.empty(rows, reference.STATISTICS, **new), torch.empty(() if call.mean else 0, **new)
    arguments, options = forward_arguments(call, loss, base, distill, statistics, tiling)
    with torch.cuda.device_of(call.logits):
        kernels.forward_kernel[(rows,)](*arguments, **options)
        if loss is not None:
            return loss, base, distill, statistics, count
        means = [torch.empty((), **new) for _ in range(3)]
        kernels.mean_kernel[(1,)](base, distill, statistics, *means, count, rows, call.alpha, **MEAN_OPTIONS)
    return *means, statistics, count


def backward(
    grad: Tensor, statistics: Tensor, count: Tensor, call: LossCall, need_cls: bool, need_dist: bool,
    tiling: Tiling | None = None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of the heads that need one: `reference.backward`'s results."""
    rows, classes = call.logits.shape
    base = call.cls is not None and call.alpha < 1 and need_cls
    distill = call.teacher is not None and call.alpha > 0 and (need_cls if call.dist is None else need_dist)
    grad_cls = _empty_like(call.cls) if need_cls else None
    grad_dist = _empty_like(call.dist) if need_dist else None
    arguments, options = backward_arguments(grad, statistics, count, call, base, distill, grad_cls, grad_dist, tiling)
    with torch.cuda.device_of(call.logits):
        kernels.backward_kernel[(rows, -(-classes // options["BLOCK"]))](*arguments, **options)
    return grad_cls, grad_dist


def _empty_like(logits: Tensor) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
