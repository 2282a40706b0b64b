"""The public loss functions, their derivatives, and the two ops beneath them.

`deit_kernels::distillation_loss_forward` and `deit_kernels::distillation_loss_backward` run every loss of this package,
on every device. Their names are stable, so that a policy of selective checkpointing can list them. A third op,
`_cross_entropy`, is the short way of a cross-entropy of CPU tensors that needs no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.autograd import Function, forward_ad

from .. import _extension
from ..dispatch import INTERPRETING, kernel_unavailable_reasons, report_fallback
from ..systems import folded, mapped, register_splits
from . import checks, reference
from .reference import LossCall, MixedTarget, TopK

__all__ = ["MixedTarget", "TopK", "binary_cross_entropy", "cross_entropy", "distillation_loss", "kl_divergence"]


def distillation_loss(
    cls_logits: Tensor,
    dist_logits: Tensor | None,
    teacher: Tensor | TopK,
    target: Tensor | MixedTarget,
    *,
    mode: Literal["hard", "soft"] = "hard",
    alpha: float | None = None,
    tau: float | None = None,
    kl_normalizer: Literal["batch", "numel"] | None = None,
    label_smoothing: float = 0.0,
    teacher_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Literal["mean", "none"] = "mean",
    return_parts: bool = False,
    base: Literal["ce", "bce"] = "ce",
    target_threshold: float | None = None,
    sum_classes: bool = False,
    weight: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """(1 − alpha) · CE(cls_logits, target) + alpha · distillation(dist_logits, teacher): DeiT, eq. 2 (soft), 3 (hard).

    Hard distillation is the cross-entropy with the teacher's arg-max (ties: the lowest class), soft distillation
    τ² · KL(softmax(teacher / τ) ‖ softmax(dist_logits / τ)). Computed in float32 whatever the input, autocast or not.
    With base="bce", DeiT III's, the first term is `binary_cross_entropy`.

    Args:
        cls_logits: (B, C) of the class token, float16, bfloat16, float32 or float64.
        dist_logits: (B, C) of the distillation token; None puts both terms on cls_logits.
        teacher: logits (B, C); labels int64 (B,) (hard); TopK (soft).
        target: labels int64 (B,), a MixedTarget, or probabilities (B, C), whose rows need not sum to 1.
        alpha: weight of the distillation term, the paper's λ; 0.5 by default in hard mode. A term of weight 0 is not
            computed, and its head gets no gradient.
        tau, kl_normalizer: soft mode's temperature and the divisor of its KL ("batch": rows, "numel": rows × classes).
        label_smoothing, teacher_smoothing: ε of 1 − ε + ε/C and ε/C, on the target (probabilities too, as
            F.cross_entropy) and on a hard teacher's label.
        ignore_index: a row one of whose labels (target, partner or teacher) is this counts in neither term.
        reduction: "mean" over the rows that count (NaN when none does, as F.cross_entropy), or "none".
        return_parts: also return the two terms, detached.
        base: "ce", or "bce" for a binary cross-entropy in its place.
        target_threshold, sum_classes: as in `binary_cross_entropy`; of base="bce" only.
        weight: of the classes (C,), floating-point, finite, at least 0. The first term is that of `cross_entropy` or
            `binary_cross_entropy` with it. A row's distillation term, soft or hard, is multiplied by the weight of its
            target before smoothing: w[label], lam · w[label] + (1 − lam) · w[partner label], or Σ w t. A mean divides
            both terms by what it divides the first by.

    Returns:
        float32 scalar or (B,) (float64 for float64 logits); with return_parts (loss, base term, distillation term).

    Raises:
        TypeError: something that must be a tensor is not.
        ValueError: an argument outside its range, shapes or devices that do not fit, a teacher or target that requires
            grad, a teacher that cannot serve the mode, soft mode without alpha, tau and kl_normalizer; for CPU tensors
            also a label outside [0, C), a lam outside [0, 1], a weight that is no weight. On a GPU values are not
            checked: the loss and the gradient of such a row are NaN. So they are, on every device, where a hard
            teacher's row holds a NaN.
    """
    call = checks.distillation_call(
        cls_logits, dist_logits, teacher, target, mode=mode, alpha=alpha, tau=tau, kl_normalizer=kl_normalizer,
        label_smoothing=label_smoothing, teacher_smoothing=teacher_smoothing, ignore_index=ignore_index,
        reduction=reduction, return_parts=return_parts, base=base, target_threshold=target_threshold,
        sum_classes=sum_classes, weight=weight,
    )  # fmt: skip
    loss, base_term, distill_term = _apply(call)
    return (loss, base_term.detach(), distill_term.detach()) if return_parts else loss


def cross_entropy(
    logits: Tensor,
    target: Tensor | MixedTarget,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Literal["mean", "none"] = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with labels, a MixedTarget or probabilities; the meaning of F.cross_entropy.

    Args:
        logits: (B, C).
        target: labels int64 (B,), a MixedTarget, or probabilities (B, C).
        label_smoothing, ignore_index, reduction: as in `distillation_loss`.
        weight: of the classes (C,): −Σ w t log p of the smoothed target t. A mean over rows with labels divides by the
            sum of w[label], of a MixedTarget lam · w[label] + (1 − lam) · w[partner label]; with probabilities by the
            number of rows.

    Returns:
        float32 scalar or (B,) (float64 for float64 logits).

    Raises:
        TypeError, ValueError: as `distillation_loss`.
    """
    mean = reduction == "mean"
    if weight is None and _IN_CPP and type(logits) is Tensor and logits.is_cpu and not _needs_graph(logits):
        if checks.is_plain(target, label_smoothing, ignore_index, reduction):
            try:
                return _direct_cross_entropy(logits, target, label_smoothing, ignore_index, mean)
            except ValueError:
                pass  # float64; or C++ refuses what the checks below refuse in better words, or refuses it again
    return _apply(checks.cross_entropy_call(logits, target, label_smoothing, ignore_index, reduction, weight))[0]


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor | MixedTarget,
    *,
    target_threshold: float | None = None,
    label_smoothing: float = 0.0,
    sum_classes: bool = False,
    ignore_index: int = -100,
    reduction: Literal["mean", "none"] = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """A sigmoid for every class, and the mean of −t log p − (1 − t) log(1 − p): F.binary_cross_entropy_with_logits.

    DeiT III's loss is target_threshold=0.0: both classes of a mixed image are right. A logit that is infinite on the
    target's side costs 0.

    Args:
        logits: (B, C).
        target: labels int64 (B,), a MixedTarget, or probabilities (B, C).
        target_threshold: t is 1 where the target, smoothed before, is above this number in [0, 1), and 0 elsewhere.
        label_smoothing: ε of 1 − ε + ε/C and ε/C, timm's, on probabilities too.
        sum_classes: sum a row over its classes, timm's, instead of their mean.
        ignore_index: a row one of whose labels is this does not count.
        reduction: "mean" over the rows that count, or "none".
        weight: of the classes (C,): what each class costs is multiplied by its own; the divisors stay.

    Returns:
        float32 scalar or (B,) (float64 for float64 logits).

    Raises:
        TypeError, ValueError: as `distillation_loss`; a smoothing that lifts every class above the threshold.
    """
    call = checks.cross_entropy_call(logits, target, label_smoothing, ignore_index, reduction, weight)
    return _apply(call._replace(**checks.binary_options(target_threshold, sum_classes, label_smoothing, logits)))[0]


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    tau: float = 1.0,
    kl_normalizer: Literal["batch", "numel"] = "batch",
) -> Tensor:
    """τ² · KL(softmax(teacher / τ) ‖ softmax(student / τ)), over rows ("batch") or rows × classes ("numel").

    Args:
        student_logits, teacher_logits: (B, C).

    Returns:
        float32 scalar (float64 for float64 logits).

    Raises:
        TypeError, ValueError: as `distillation_loss`.
    """
    return _apply(checks.kl_call(student_logits, teacher_logits, tau, kl_normalizer))[0]


def _apply(call: LossCall) -> tuple[Tensor, ...]:
    """(loss, base term, distillation term), with a graph where somebody needs one."""
    if (call.cls is not None and _needs_graph(call.cls)) or (call.dist is not None and _needs_graph(call.dist)):
        function = _TransformedLoss if _is_transformed() else _Loss
        return function.apply(*_distinct(*call[:_TENSORS]), call[_TENSORS:])[:3]
    return _forward_op(*call)[:3]


def _needs_graph(logits: Tensor) -> bool:
    """Whether a Function has to see the call: to give a gradient, or to refuse what it does not support."""
    return (
        logits.requires_grad
        or torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or _are_functorch_transforms_active()
    )


def _distinct(*tensors: Any) -> tuple[Any, ...]:
    """Dynamo traces no Function that gets one tensor twice, such as labels that are the teacher's as well."""
    if not torch.compiler.is_compiling():
        return tensors
    seen = [any(tensor is other for other in tensors[:i]) for i, tensor in enumerate(tensors)]
    return tuple(t.view(t.shape) if t is not None and again else t for t, again in zip(tensors, seen, strict=True))


_TENSORS = 8  # the first fields of a LossCall


def _is_transformed() -> bool:
    """Whether a transform of torch.func or forward mode is on. Dynamo traces no Function that has a `jvp`."""
    if torch.compiler.is_compiling():
        return False
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


class _Loss(Function):
    """The forward op, of the eight tensors of a call and a tuple of its options.

    Autograd stays outside the ops: half the call cost of torch.library.register_autograd.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        output = _forward_op(*args[:-1], *args[-1])
        _Loss.save(ctx, args, output)
        return output[:3]

    @staticmethod
    def save(ctx: Any, inputs: tuple, output: Any) -> None:
        _, base, distill, statistics, count = output
        *tensors, ctx.options = inputs
        ctx.save_for_backward(statistics, count, *tensors)
        ctx.mark_non_differentiable(base, distill, statistics, count)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        no_gradient = (None,) * (_TENSORS - 2 + 1)
        if grad is None:
            return None, None, *no_gradient
        statistics, count, *tensors = ctx.saved_tensors
        call = LossCall(*tensors, *ctx.options)
        need_cls = ctx.needs_input_grad[0] and (call.alpha < 1 or call.dist is None)
        need_dist = ctx.needs_input_grad[1] and call.alpha > 0
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # somebody differentiates the gradient
        args = grad, statistics, count, *call, need_cls, need_dist
        grad_cls, grad_dist = _Gradient.apply(*args) if again else _backward_op(*args)
        return grad_cls if need_cls else None, grad_dist if need_dist else None, *no_gradient


class _TransformedLoss(_Loss):
    """The form that torch.func needs. Its `setup_context` makes a call 30 µs longer."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return _forward_op(*args[:-1], *args[-1])

    setup_context = staticmethod(_Loss.save)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(
            "the losses have no forward-mode derivative (jvp, jacfwd, hessian): use torch.func.grad, vjp or jacrev, "
            "and for a Hessian jacrev(jacrev(loss))"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple]:
        """All samples in one call, a loss a row; the mean of each sample's rows after it."""
        call = _folded(info, in_dims[:-1], args[:-1], args[-1])
        rows = call._replace(mean=False)
        *losses, statistics, count = _TransformedLoss.apply(*rows[:_TENSORS], rows[_TENSORS:])
        *losses, statistics = (rows.unflatten(0, (info.batch_size, -1)) for rows in (*losses, statistics))
        if not call.mean:
            return (*losses, statistics, count), (0, 0, 0, 0, None)
        count = reference.divisors(call, statistics[..., reference.ROW_WEIGHT].flatten())
        count = count.unflatten(0, (info.batch_size, -1)).sum(1)
        return (*(rows.sum(1) / count for rows in losses), statistics, count), (0,) * 5


def _folded(info: Any, dims: tuple[int | None, ...], tensors: Any, options: Any) -> LossCall:
    """The call of all samples of a vmap."""
    *rows, weight = tensors
    if dims[-1] is not None:
        raise NotImplementedError("vmap takes one weight for all samples: pass it with in_dims=None, or loop over them")
    return LossCall(*folded(info, dims[:-1], rows), *(weight, *options))


class _Gradient(Function):
    """The backward op. Its own derivative is computed by the reference."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return _backward_op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        grad, _, _, *call, need_cls, need_dist = inputs
        ctx.save_for_backward(grad, *call[:_TENSORS])
        ctx.options, ctx.needed = call[_TENSORS:], [field for field, need in enumerate((need_cls, need_dist)) if need]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        grad, *tensors = ctx.saved_tensors
        heads = [tensors[field] for field in ctx.needed]

        def loss(*heads: Tensor) -> Tensor:
            given = list(tensors)
            for field, head in zip(ctx.needed, heads, strict=True):
                given[field] = head
            return reference.loss(LossCall(*given, *ctx.options))

        def gradients(grad: Tensor, *heads: Tensor) -> tuple[Tensor, ...]:
            return torch.func.vjp(loss, *heads)[1](grad)

        of_grad, *of_heads = torch.func.vjp(gradients, grad, *heads)[1](tuple(cotangents[f] for f in ctx.needed))
        by_field = dict(zip(ctx.needed, of_heads, strict=True))
        return of_grad, None, None, by_field.get(0), by_field.get(1), *(None,) * len(LossCall._fields)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple]:
        grad, statistics, count, *fields, need_cls, need_dist = args
        tensors = in_dims[3 : 3 + _TENSORS]
        call = _folded(info, tensors, fields[:_TENSORS], fields[_TENSORS:])
        grad = mapped(info, in_dims[0], grad)
        if call.mean:
            grad = (grad / mapped(info, in_dims[2], count))[:, None]
        (statistics,) = folded(info, in_dims[1:2], [statistics])
        grad = grad.expand(info.batch_size, len(statistics) // info.batch_size).flatten()
        count = statistics.new_empty(0)
        found = _Gradient.apply(grad, statistics, count, *call._replace(mean=False), need_cls, need_dist)
        needs = need_cls, need_dist
        results = [g.unflatten(0, (info.batch_size, -1)) if need else g for g, need in zip(found, needs, strict=True)]
        return tuple(results), tuple(0 if need else None for need in needs)


# LossCall's fields are the arguments of forward and backward, so one fragment serves both.
_CALL_SCHEMA = (
    "Tensor? cls, Tensor? dist, Tensor? teacher, Tensor? teacher_probs, Tensor? target, Tensor? partner, Tensor? lam, "
    "Tensor? weight, bool soft, float alpha, float tau, bool numel, float label_smoothing, float teacher_smoothing, "
    "SymInt ignore_index, bool mean, bool binary, float? target_threshold, bool sum_classes"
)
_SCHEMAS = {
    "distillation_loss_forward": f"({_CALL_SCHEMA}) -> "
    "(Tensor loss, Tensor base, Tensor distill, Tensor statistics, Tensor count)",
    "distillation_loss_backward": f"(Tensor grad, Tensor statistics, Tensor count, {_CALL_SCHEMA}, "
    "bool need_cls, bool need_dist) -> (Tensor grad_cls, Tensor grad_dist)",
    # An argument costs 0.1 µs, a result 0.3 µs, and a whole call of F.cross_entropy 2 µs.
    "_cross_entropy": "(Tensor logits, Tensor target, float label_smoothing, SymInt ignore_index, bool mean) -> Tensor",
}


def _forward(*args: Any) -> tuple[Tensor, ...]:
    call = LossCall(*args)
    if call.logits.device.type == "cpu":
        checks.check_values(call)
    return _implementation(call).forward(call)


def _backward(grad: Tensor, statistics: Tensor, count: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    call, (need_cls, need_dist) = LossCall(*args[:-2]), args[-2:]
    grad_cls, grad_dist = _implementation(call).backward(grad, statistics, count, call, need_cls, need_dist)
    absent = statistics.new_empty(0)
    return absent if grad_cls is None else grad_cls, absent if grad_dist is None else grad_dist


for _name, _function in (("distillation_loss_forward", _forward), ("distillation_loss_backward", _backward)):
    for _op in (f"deit_kernels::{_name}", f"deit_kernels::{_name}.exact"):  # C++ sends float64 logits to `exact`
        torch.library.define(_op, _SCHEMAS[_name])
        torch.library.impl(_op, "default", _function)  # CPU tensors run C++ where the extension is built
    if INTERPRETING:
        torch.library.impl(f"deit_kernels::{_name}", "CPU", _function)
torch.library.define("deit_kernels::_cross_entropy", _SCHEMAS["_cross_entropy"])

# The overloads themselves: to find one by its packet takes 0.4 µs a call, and what is written in Python of an overload
# another 0.2.
_forward_op = torch.ops.deit_kernels.distillation_loss_forward.default
_backward_op = torch.ops.deit_kernels.distillation_loss_backward.default
_direct_cross_entropy = torch.ops.deit_kernels._cross_entropy.default._op
_IN_CPP = _extension.cpu_missing is None and not INTERPRETING  # there shapes are checked too


def _row_splits(results: list[int | None], before: list[int | None]) -> Callable[..., list]:
    """How DTensors split an op along the rows: its results, the arguments before the call's. A mean takes all rows."""
    given = before + [0] * (_TENSORS - 1) + [None]  # each part of the rows takes the weights of all classes

    def splits(*args: Any) -> list[tuple[list[int | None], list[int | None]]]:
        call = LossCall(*args[len(before) :][: len(LossCall._fields)])
        return [] if call.mean else [(results, given + [None] * (len(args) - len(given)))]

    return splits


register_splits(_forward_op, _row_splits([0, 0, 0, 0, None], []))
register_splits(_backward_op, _row_splits([0, 0], [0, 0, None]))


def _implementation(call: LossCall) -> ModuleType:
    """`launch` where its kernels can run, else `reference`: both have the same two functions."""
    reasons = list(kernel_unavailable_reasons(call.logits.device))
    if call.exact_dtype == torch.float64:
        reasons.append("float64 logits")
    elif call.logits.is_cpu and not INTERPRETING and _extension.cpu_missing:
        reasons.append(_extension.cpu_missing)
    if INTERPRETING and any(head is not None and head.dtype == torch.bfloat16 for head in (call.cls, call.dist)):
        reasons.append("Triton's interpreter rounds bfloat16 wrongly")
    if not reasons:
        from . import launch  # imports triton, which a process without a GPU never needs

        return launch
    report_fallback("distillation_loss", "; ".join(reasons), call.logits.device.type == "cpu")
    return reference


@torch.library.register_fake("deit_kernels::distillation_loss_forward")
def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    call = LossCall(*args)
    rows = call.logits.shape[0]
    shape = () if call.mean else (rows,)
    loss, base, distill = (call.logits.new_empty(shape, dtype=call.exact_dtype) for _ in range(3))
    return loss, base, distill, loss.new_empty(rows, call.statistics), loss.new_empty(() if call.mean else 0)


@torch.library.register_fake("deit_kernels::distillation_loss_backward")
def _backward_fake(grad: Tensor, statistics: Tensor, count: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    call, (need_cls, need_dist) = LossCall(*args[:-2]), args[-2:]
    return (
        statistics.new_empty(0) if call.cls is None or not need_cls else call.cls.new_empty(call.cls.shape),
        statistics.new_empty(0) if call.dist is None or not need_dist else call.dist.new_empty(call.dist.shape),
    )


@torch.library.register_fake("deit_kernels::_cross_entropy")
def _cross_entropy_fake(logits: Tensor, target: Tensor, smoothing: float, ignore_index: int, mean: bool) -> Tensor:
    return logits.new_empty(() if mean else logits.shape[0], dtype=torch.float32)
