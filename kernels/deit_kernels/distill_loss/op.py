"""The public loss functions, and the registered ops beneath them."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad

from .. import _extension
from ..dispatch import INTERPRETING, kernel_unavailable_reasons, report_fallback
from . import checks, reference
from .autograd import CrossEntropy, DistillLoss, cross_entropy_call
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

    Returns:
        float32 scalar or (B,) (float64 for float64 logits); with return_parts (loss, base term, distillation term).

    Raises:
        TypeError: something that must be a tensor is not.
        ValueError: an argument outside its range, shapes or devices that do not fit, a teacher or target that requires
            grad, a teacher that cannot serve the mode, soft mode without alpha, tau and kl_normalizer; for CPU tensors
            also a label outside [0, C) and a lam outside [0, 1]. On a GPU values are not checked: the loss and
            the gradient of such a row are NaN. So they are, on every device, where a hard teacher's row holds a NaN.
    """
    call = checks.distillation_call(
        cls_logits, dist_logits, teacher, target, mode=mode, alpha=alpha, tau=tau, kl_normalizer=kl_normalizer,
        label_smoothing=label_smoothing, teacher_smoothing=teacher_smoothing, ignore_index=ignore_index,
        reduction=reduction, return_parts=return_parts, base=base, target_threshold=target_threshold,
        sum_classes=sum_classes,
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
) -> Tensor:
    """Cross-entropy with labels, a MixedTarget or probabilities; the meaning of F.cross_entropy.

    Args:
        logits: (B, C).
        target: labels int64 (B,), a MixedTarget, or probabilities (B, C).
        label_smoothing, ignore_index, reduction: as in `distillation_loss`.

    Returns:
        float32 scalar or (B,) (float64 for float64 logits).

    Raises:
        TypeError, ValueError: as `distillation_loss`.
    """
    good = checks.are_plain(label_smoothing, ignore_index, reduction)
    if good and type(logits) is Tensor and checks.is_plain_labels(target) and logits.is_cpu:
        if not _needs_graph(logits):
            try:
                return _direct_cross_entropy(logits, target, label_smoothing, ignore_index, reduction == "mean")
            except ValueError:
                pass  # C++ refuses what the checks below refuse in better words; a wrong label it refuses again
    if not (good and checks.is_plain(logits, target)):
        checks.check_logits("logits", logits)
        target, partner, lam = checks.check_target(target, logits)
        label_smoothing = checks.check_smoothing(label_smoothing)
        checks.check_ignore_index(ignore_index)
        checks.check_reduction(reduction)
        if partner is not None or not logits.is_cpu:
            mean = reduction == "mean"
            return _apply(cross_entropy_call(logits, target, label_smoothing, ignore_index, mean, partner, lam))[0]
    arguments = logits, target, label_smoothing, ignore_index, reduction == "mean"
    return CrossEntropy.apply(*arguments) if _needs_graph(logits) else _cross_entropy_op(*arguments)


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor | MixedTarget,
    *,
    target_threshold: float | None = None,
    label_smoothing: float = 0.0,
    sum_classes: bool = False,
    ignore_index: int = -100,
    reduction: Literal["mean", "none"] = "mean",
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

    Returns:
        float32 scalar or (B,) (float64 for float64 logits).

    Raises:
        TypeError, ValueError: as `distillation_loss`; a smoothing that lifts every class above the threshold.
    """
    checks.check_logits("logits", logits)
    target, partner, lam = checks.check_target(target, logits)
    label_smoothing = checks.check_smoothing(label_smoothing)
    ignore_index, mean = checks.check_ignore_index(ignore_index), checks.check_reduction(reduction)
    call = cross_entropy_call(logits, target, label_smoothing, ignore_index, mean, partner, lam)._replace(
        binary=True, sum_classes=checks.check_sum_classes(sum_classes),
        target_threshold=checks.check_threshold(target_threshold, label_smoothing, logits),
    )  # fmt: skip
    return _apply(call)[0]


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
    checks.check_logits("student_logits", student_logits)
    checks.check_logits("teacher_logits", teacher_logits)
    checks.check_teacher_logits(teacher_logits, student_logits)
    checks.check_normalizer(kl_normalizer)
    call = LossCall(
        None, student_logits, teacher_logits, None, None, None, None, soft=True, alpha=1.0,
        tau=checks.check_tau(tau), numel=kl_normalizer == "numel", label_smoothing=0.0, teacher_smoothing=0.0,
        ignore_index=-100, mean=True,
    )  # fmt: skip
    return _apply(call)[0]


def _apply(call: LossCall) -> tuple[Tensor, Tensor, Tensor]:
    if (call.cls is not None and _needs_graph(call.cls)) or (call.dist is not None and _needs_graph(call.dist)):
        return DistillLoss.apply(*_distinct(*call[:7]), *call[7:])
    return _forward_op(*call)[:3]


def _needs_graph(logits: Tensor) -> bool:
    """Whether a Function has to see the call: to give a gradient, or to refuse what it does not support."""
    return (
        logits.requires_grad
        or torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or _are_functorch_transforms_active()
    )


def _distinct(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Dynamo traces no Function that gets one tensor twice, such as labels that are the teacher's as well."""
    if not torch.compiler.is_compiling():
        return tensors
    seen = [any(tensor is other for other in tensors[:i]) for i, tensor in enumerate(tensors)]
    return tuple(t.view(t.shape) if t is not None and again else t for t, again in zip(tensors, seen, strict=True))


# LossCall's fields are the arguments of forward and backward, so one fragment serves both. On the CPU a cross-entropy
# has forward ops of its own, with a gradient and without: an argument costs 0.1 µs, a result 0.3 µs, and a whole call
# of F.cross_entropy 2 µs.
_CALL_SCHEMA = (
    "Tensor? cls, Tensor? dist, Tensor? teacher, Tensor? teacher_probs, Tensor? target, Tensor? partner, Tensor? lam, "
    "bool soft, float alpha, float tau, bool numel, float label_smoothing, float teacher_smoothing, "
    "SymInt ignore_index, bool mean, bool binary, float? target_threshold, bool sum_classes"
)
_FORWARD, _BACKWARD = "deit_kernels::_distill_loss_fwd", "deit_kernels::_distill_loss_bwd"
_CROSS_ENTROPY, _CROSS_ENTROPY_ALONE = "deit_kernels::_cross_entropy_fwd", "deit_kernels::_cross_entropy"
_CROSS_ENTROPY_SCHEMA = "Tensor logits, Tensor target, float label_smoothing, SymInt ignore_index, bool mean"
_SCHEMAS = {
    _FORWARD: f"({_CALL_SCHEMA}) -> (Tensor loss, Tensor base, Tensor distill, Tensor statistics, Tensor count)",
    _BACKWARD: f"(Tensor grad, Tensor statistics, Tensor count, {_CALL_SCHEMA}, bool need_cls, bool need_dist) "
    "-> (Tensor grad_cls, Tensor grad_dist)",
    _CROSS_ENTROPY: f"({_CROSS_ENTROPY_SCHEMA}) -> (Tensor loss, Tensor statistics)",
    _CROSS_ENTROPY_ALONE: f"({_CROSS_ENTROPY_SCHEMA}) -> Tensor",
}


def _forward(*args: object) -> tuple[Tensor, ...]:
    call = LossCall(*args)
    if call.logits.device.type == "cpu":
        checks.check_values(call)
    return _implementation(call).forward(call)


def _backward(grad: Tensor, statistics: Tensor, count: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    call, (need_cls, need_dist) = LossCall(*args[:-2]), args[-2:]
    if call.mean and not count.numel():  # of a cross-entropy's own op
        count = (statistics[:, reference.ROW_WEIGHT] != 0).sum().to(statistics.dtype)
    gradients = _implementation(call).backward(grad, statistics, count, call, need_cls, need_dist)
    return tuple(statistics.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _cross_entropy_forward(*args: object) -> tuple[Tensor, ...]:
    loss, _, _, statistics, _ = _forward(*cross_entropy_call(*args))
    return loss, statistics


def _cross_entropy_alone(*args: object) -> Tensor:
    return _cross_entropy_forward(*args)[0]


for _name, _function in (
    (_FORWARD, _forward),
    (_BACKWARD, _backward),
    (_CROSS_ENTROPY, _cross_entropy_forward),
    (_CROSS_ENTROPY_ALONE, _cross_entropy_alone),
):
    torch.library.define(_name, _SCHEMAS[_name])
    torch.library.impl(_name, "default", _function)  # CPU tensors run C++ where the extension is built
    torch.library.define(f"{_name}_exact", _SCHEMAS[_name])  # to which it sends float64 logits
    torch.library.impl(f"{_name}_exact", "CPU", _function)
    if INTERPRETING:
        torch.library.impl(_name, "CPU", _function)

# The overloads themselves: to find one by its packet takes 0.4 µs a call, and what is written in Python of an overload
# another 0.2.
_forward_op = torch.ops.deit_kernels._distill_loss_fwd.default
_cross_entropy_op = torch.ops.deit_kernels._cross_entropy.default
_direct_cross_entropy = _cross_entropy_op._op


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
    report_fallback("distillation_loss", "; ".join(reasons), expected=call.logits.device.type == "cpu")
    return reference


@torch.library.register_fake(_FORWARD)
def _forward_fake(*args: object) -> tuple[Tensor, ...]:
    call = LossCall(*args)
    rows = call.logits.shape[0]
    shape = () if call.mean else (rows,)
    loss, base, distill = (call.logits.new_empty(shape, dtype=call.exact_dtype) for _ in range(3))
    return loss, base, distill, loss.new_empty(rows, reference.STATISTICS), loss.new_empty(() if call.mean else 0)


@torch.library.register_fake(_CROSS_ENTROPY)
def _cross_entropy_fake(*args: object) -> tuple[Tensor, ...]:
    loss, _, _, statistics, _ = _forward_fake(*cross_entropy_call(*args))
    return loss, statistics


@torch.library.register_fake(_CROSS_ENTROPY_ALONE)
def _cross_entropy_alone_fake(*args: object) -> Tensor:
    return _cross_entropy_fake(*args)[0]


@torch.library.register_fake(_BACKWARD)
def _backward_fake(grad: Tensor, statistics: Tensor, count: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    call, (need_cls, need_dist) = LossCall(*args[:-2]), args[-2:]
    return (
        call.cls.new_empty(call.cls.shape) if need_cls else statistics.new_empty(0),
        call.dist.new_empty(call.dist.shape) if need_dist else statistics.new_empty(0),
    )
