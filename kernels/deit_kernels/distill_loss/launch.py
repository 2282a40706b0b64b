"""Launch the kernels of the loss: `forward` and `backward` give what the functions of `reference.py` give.

Before a launch a call becomes `Operands`, tensors that the kernels read in place, and a `Tiling`, how a row is cut.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import kernels
from .reference import LossCall, kl_scale

_POINTERS = 10  # the first fields of Operands
_LONGEST_TILE = 4096  # 16 classes a thread of 8 warps; three float32 rows of them fit the registers without spilling
MEAN_OPTIONS = {"ROWS": 4096, "BLOCK": 1024, "num_warps": 4, "num_stages": 1}


class Tiling(NamedTuple):
    """How a row is cut: see tiles.py for `step` and `edge`, which keep the loads 128 bits wide."""

    block: int
    step: int
    edge: bool

    @property
    def options(self) -> dict[str, int]:
        """Constexprs and launch options; 8 classes a thread fill one 128-bit load of 16-bit logits."""
        warps = min(max(self.block // 256, 1), 8)
        return {"STEP": self.step, "EDGE": self.edge, "BLOCK": self.block, "num_warps": warps, "num_stages": 1}


class Operands(NamedTuple):
    """A call as the kernels take it: tensors they can read in place, as they are passed, and the form they need."""

    cls: Tensor | None
    student: Tensor | None
    teacher: Tensor | None
    dense: Tensor | None
    labels: Tensor | None
    partner: Tensor | None
    lam: Tensor | None
    weight: Tensor | None
    teacher_labels: Tensor | None
    teacher_probs: Tensor | None
    base: str
    target: str
    distill: str

    @property
    def one_head(self) -> bool:
        """Both terms are on the same logits, which are then read once."""
        return self.cls is not None and self.cls is self.student

    @property
    def constexprs(self) -> dict[str, Any]:
        """The kernels' form."""
        listed = self.teacher_probs.shape[1] if self.teacher_probs is not None else 1
        return {
            "BASE": self.base,
            "TARGET": self.target,
            "DISTILL": self.distill,
            "ONE_HEAD": self.one_head,
            "TOPK_BLOCK": _power_of_2(listed),
        }


def forward(call: LossCall, tiling: Tiling | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, base term, distillation term, statistics, divisor of the mean), as `reference.forward`."""
    rows = call.logits.shape[0]
    new: dict[str, Any] = {"dtype": torch.float32, "device": call.logits.device}
    base, distill = torch.empty(rows, **new), torch.empty(rows, **new)
    loss = None if call.mean else torch.empty(rows, **new)
    statistics, count = torch.empty(rows, call.statistics, **new), torch.empty(() if call.mean else 0, **new)
    arguments, options = forward_arguments(call, loss, base, distill, statistics, tiling)
    with torch.cuda.device_of(call.logits):
        kernels.forward_kernel[(rows,)](*arguments, **options)
        if loss is not None:
            return loss, base, distill, statistics, count
        return *mean(call, base, distill, statistics, count), statistics, count


def mean(
    call: LossCall, base: Tensor, distill: Tensor, statistics: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, base term, distillation term) over the rows that count; what they are divided by goes to `count`."""
    new: dict[str, Any] = {"dtype": torch.float32, "device": base.device}
    options = {"STATISTICS": call.statistics, "BY_WEIGHTS": call.divides_by_weights} | MEAN_OPTIONS
    counts = None
    while (rows := base.shape[0]) > MEAN_OPTIONS["ROWS"]:  # a first launch adds up the rows of each program
        programs = -(-rows // MEAN_OPTIONS["ROWS"])
        sums = [torch.empty(programs, **new) for _ in range(3)]
        kernels.mean_kernel[(programs,)](base, distill, statistics, counts, None, *sums, rows, call.alpha, **options)
        base, distill, counts = sums
    means = torch.empty((), **new), torch.empty((), **new), torch.empty((), **new)
    kernels.mean_kernel[(1,)](base, distill, statistics, counts, *means, count, rows, call.alpha, **options)
    return means


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


def operands(call: LossCall) -> Operands:
    """What forward reads."""
    dense = call.target is not None and call.target.dtype != torch.int64
    target = "none" if call.target is None else "dense" if dense else "labels" if call.partner is None else "mixed"
    labelled = call.teacher is not None and call.teacher.dtype == torch.int64
    soft = "topk" if labelled else "soft"
    hard = "labels" if labelled else "logits"
    cls = _rows(call.cls)
    return Operands(
        cls=cls,
        student=None if call.teacher is None else cls if call.dist is None else _rows(call.dist),
        teacher=None if labelled else _rows(call.teacher),
        dense=_rows(call.target) if dense else None,
        labels=None if dense else _packed(call.target),
        partner=_packed(call.partner),
        lam=_packed(call.lam),
        weight=_packed(call.weight),
        teacher_labels=_packed(call.teacher) if labelled else None,
        teacher_probs=_packed(call.teacher_probs),
        base="none" if cls is None else ("sum" if call.sum_classes else "mean") if call.binary else "softmax",
        target=target,
        distill="none" if call.teacher is None else soft if call.soft else hard,
    )


def backward_operands(call: LossCall, base: bool, distill: bool) -> Operands:
    """What backward reads: no head without a gradient to compute, no hard teacher (the statistics hold its label)."""
    given = operands(call)
    if not base:
        given = given._replace(cls=None, dense=None, labels=None, partner=None, lam=None, base="none", target="none")
    if not distill:
        given = given._replace(student=None, teacher=None, teacher_labels=None, teacher_probs=None, distill="none")
    elif not call.soft:
        given = given._replace(teacher=None, teacher_labels=None, distill="labels")
    return given


def forward_arguments(
    call: LossCall, loss: Tensor | None, base: Tensor, distill: Tensor, statistics: Tensor, tiling: Tiling | None = None
) -> tuple[tuple, dict[str, Any]]:
    """Positional arguments of the forward kernel, and its constexprs with the launch options."""
    given = operands(call)
    tiling = tiling or choose_tiling(call, given, gradients=False)
    outputs = (loss, base, distill, statistics)
    arguments = (*given[:_POINTERS], *outputs, *_shape(call, given, tiling), *_weights(call), call.ignore_index)
    form = {
        "SMOOTH_TARGET": call.label_smoothing > 0,
        "SMOOTH_TEACHER": call.teacher_smoothing > 0,
        "ONE_TILE": call.logits.shape[1] <= tiling.block and not tiling.edge,
        "STATISTICS": call.statistics,
    }
    return arguments, given.constexprs | form | tiling.options


def backward_arguments(
    grad: Tensor, statistics: Tensor, count: Tensor, call: LossCall, base: bool, distill: bool,
    grad_cls: Tensor | None, grad_dist: Tensor | None, tiling: Tiling | None = None,
) -> tuple[tuple, dict[str, Any]]:  # fmt: skip
    """Positional arguments of the backward kernel, and its constexprs with the launch options."""
    given = backward_operands(call, base, distill)
    tiling = tiling or choose_tiling(call, given, gradients=True)
    arguments = (
        grad, count if call.mean else None, statistics.contiguous(), *given[:_POINTERS],
        grad_cls if base and not given.one_head else None, grad_cls if call.dist is None and distill else grad_dist,
        grad.stride(0) if grad.dim() else 0, *_shape(call, given, tiling), *_weights(call),
    )  # fmt: skip
    return arguments, given.constexprs | {"STATISTICS": call.statistics} | tiling.options


def choose_tiling(call: LossCall, given: Operands, *, gradients: bool) -> Tiling:
    """One tile up to 4096 classes, and the widest loads that the strides allow."""
    classes = call.logits.shape[1]
    matrices = [matrix for matrix in (given.cls, given.student, given.teacher, given.dense) if matrix is not None]
    strides = [_stride(matrix, classes) for matrix in matrices] + ([classes] if gradients else [])
    if classes % 8 == 0 and all(stride % 8 == 0 for stride in strides):
        step, edge = 8, False
    else:
        # A short row is read before 2-byte loads matter; an edge needs rows that start at equal places modulo 8.
        step, edge = 1, classes > _LONGEST_TILE and all((stride - strides[0]) % 8 == 0 for stride in strides)
    return Tiling(min(max(_power_of_2(classes), 16), _LONGEST_TILE), step, edge)


def _shape(call: LossCall, given: Operands, tiling: Tiling) -> tuple[int, ...]:
    """Row strides and classes in units of `step`, and K of a TopK. An absent tensor has any stride of its kind."""
    classes = call.logits.shape[1]
    matrices = given.cls, given.student, given.teacher, given.dense
    some = next(matrix for matrix in matrices if matrix is not None)
    strides = (_stride(some if matrix is None else matrix, classes) for matrix in matrices)
    listed = 0 if given.teacher_probs is None else given.teacher_probs.shape[1]
    return *(stride // tiling.step for stride in strides), classes // tiling.step, listed


def _weights(call: LossCall) -> tuple[float | None, ...]:
    return call.alpha, 1 / call.tau, kl_scale(call), call.label_smoothing, call.teacher_smoothing, call.target_threshold


def _stride(matrix: Tensor, classes: int) -> int:
    return matrix.stride(0) if matrix.shape[0] > 1 else classes  # the stride of a single row says nothing


def _rows(matrix: Tensor | None) -> Tensor | None:
    """`matrix` if its classes lie side by side, whatever the stride of its rows; else a copy."""
    return matrix if matrix is None or matrix.stride(1) == 1 else matrix.contiguous()


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()  # triton.next_power_of_2 costs the host 5 µs a call


def _packed(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _empty_like(logits: Tensor | None) -> Tensor | None:
    return None if logits is None else torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
