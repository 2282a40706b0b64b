"""What a call of the losses may hold: types, shapes, devices and host values, checked before anything runs.

`distillation_call` never looks into a tensor, so it costs no synchronisation and keeps a compiled graph whole.
`check_values` looks into CPU tensors and runs inside the op, where C++ has not done so in the same words; on a GPU the
kernels give such rows a NaN loss instead.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import torch
from torch import Tensor

from .reference import LossCall, MixedTarget, TopK

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_CLASSES = 2**24  # class numbers pass through float32

_SOFT_NEEDS = (
    "soft distillation has no defaults, because the paper and the official code differ. Type one of:\n"
    '  alpha=0.1, tau=3.0, kl_normalizer="batch"    the paper (arXiv 2012.12877, eq. 2)\n'
    '  alpha=0.5, tau=1.0, kl_normalizer="numel"    the official code\'s defaults'
)


def distillation_call(
    cls_logits: Tensor,
    dist_logits: Tensor | None,
    teacher: Tensor | TopK,
    target: Tensor | MixedTarget,
    *,
    mode: str,
    alpha: float | None,
    tau: float | None,
    kl_normalizer: str | None,
    label_smoothing: float,
    teacher_smoothing: float,
    ignore_index: int,
    reduction: str,
    return_parts: bool,
    base: str = "ce",
    target_threshold: float | None = None,
    sum_classes: bool = False,
    weight: Tensor | None = None,
) -> LossCall:
    """The checked call of `distillation_loss`, without terms of weight 0."""
    _one_of("mode", mode, ("hard", "soft"))
    if mode == "soft" and (alpha is None or tau is None or kl_normalizer is None):
        raise ValueError(_SOFT_NEEDS)
    alpha = 0.5 if alpha is None else _within("alpha", alpha, "a weight")
    tau = 1.0 if tau is None else check_tau(tau)
    kl_normalizer = kl_normalizer or "batch"
    check_normalizer(kl_normalizer)
    _within("label_smoothing", label_smoothing, "a share of probability")
    _within("teacher_smoothing", teacher_smoothing, "a share of probability")
    if mode == "soft" and teacher_smoothing:
        raise ValueError(
            f'teacher_smoothing smooths a hard teacher\'s label; with mode="soft" it must be 0, got {teacher_smoothing}'
        )
    check_logits("cls_logits", cls_logits)
    if dist_logits is cls_logits:
        dist_logits = None
    if dist_logits is not None:
        check_logits("dist_logits", dist_logits, like=cls_logits)
    true, partner, lam = check_target(target, cls_logits)
    taught, teacher_probs = _check_teacher(teacher, cls_logits, mode, tau)
    _one_of("base", base, ("ce", "bce"))
    if base == "bce":
        binary = binary_options(target_threshold, sum_classes, label_smoothing, cls_logits)
    elif target_threshold is not None or sum_classes:
        raise ValueError('target_threshold and sum_classes belong to a binary cross-entropy: add base="bce"')

    # A term of weight 0 is computed only when it is asked for as a part.
    with_base, with_distill = alpha < 1 or return_parts, alpha > 0 or return_parts
    if not with_base and dist_logits is None:
        dist_logits = cls_logits
    call = LossCall(
        cls_logits if with_base else None,
        dist_logits if with_distill else None,
        taught if with_distill else None,
        teacher_probs if with_distill else None,
        # Labels say which rows count, and any target how much.
        true if with_base or weight is not None or true.dtype == torch.int64 else None,
        partner, lam, check_weight(weight, cls_logits),
        soft=mode == "soft", alpha=alpha, tau=tau, numel=kl_normalizer == "numel",
        label_smoothing=float(label_smoothing), teacher_smoothing=float(teacher_smoothing),
        ignore_index=check_ignore_index(ignore_index), mean=check_reduction(reduction),
    )  # fmt: skip
    # With weights it decides the divisor of the other term too.
    return call._replace(**binary) if base == "bce" and (with_base or weight is not None) else call


def cross_entropy_call(
    logits: Tensor, target: Tensor | MixedTarget, label_smoothing: float, ignore_index: int, reduction: str,
    weight: Tensor | None = None,
) -> LossCall:  # fmt: skip
    """The checked call of a base term alone."""
    check_logits("logits", logits)
    true, partner, lam = check_target(target, logits)
    return LossCall(
        cls=logits, target=true, partner=partner, lam=lam, weight=check_weight(weight, logits),
        label_smoothing=_within("label_smoothing", label_smoothing, "a share of probability"),
        ignore_index=check_ignore_index(ignore_index), mean=check_reduction(reduction),
    )  # fmt: skip


def kl_call(student_logits: Tensor, teacher_logits: Tensor, tau: float, kl_normalizer: str) -> LossCall:
    """The checked call of a soft distillation term alone."""
    check_logits("student_logits", student_logits)
    check_logits("teacher_logits", teacher_logits)
    check_teacher_logits(teacher_logits, student_logits)
    check_normalizer(kl_normalizer)
    return LossCall(
        dist=student_logits, teacher=teacher_logits, soft=True, alpha=1.0, tau=check_tau(tau),
        numel=kl_normalizer == "numel",
    )  # fmt: skip


def is_plain(target: object, smoothing: float, ignore_index: int, reduction: str) -> TypeGuard[Tensor]:
    """True for labels on the CPU, and options that no check below refuses; C++ checks shapes itself."""
    return (
        type(target) is Tensor
        and target.dtype is torch.int64
        and target.is_cpu
        and type(smoothing) is float
        and 0 <= smoothing <= 1
        and type(ignore_index) is int
        and (reduction == "mean" or reduction == "none")
    )


def _is_like(matrix: object, logits: Tensor) -> TypeGuard[Tensor]:
    """True where `matrix` is one more float32 matrix on the CPU beside logits that have been checked."""
    return (
        type(matrix) is Tensor
        and matrix.dtype is torch.float32
        and matrix.is_cpu
        and logits.is_cpu
        and matrix.shape == logits.shape
    )


def check_logits(name: str, logits: Tensor, like: Tensor | None = None) -> None:
    """Logits are floating (B, C); the second head has the shape and device of the first."""
    if like is not None and _is_like(logits, like):
        return
    _tensor(name, logits)
    if logits.dim() != 2 or logits.dtype not in _FLOATS:
        raise ValueError(f"{name} must be floating-point logits of shape (B, C), got {_describe(logits)}")
    if not 1 <= logits.shape[1] < _MOST_CLASSES:
        raise ValueError(f"{name} must have 1 to {_MOST_CLASSES - 1} classes, got {_describe(logits)}")
    if like is not None and (logits.shape != like.shape or logits.device != like.device):
        raise ValueError(
            f"{name} must have the shape and device of the first logits {_describe(like)}, got {_describe(logits)}"
        )


def check_target(target: Tensor | MixedTarget, logits: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(labels or probabilities, partner labels, lam) of a target that fits the logits."""
    if _is_like(target, logits) and not target.requires_grad:
        return target, None, None
    if isinstance(target, MixedTarget):
        _check_rows("target.labels", target.labels, logits, torch.int64)
        _check_rows("target.partner_labels", target.partner_labels, logits, torch.int64)
        _check_rows("target.lam", target.lam, logits, *_FLOATS)
        return target.labels, target.partner_labels, target.lam
    _tensor("target", target, "labels int64 (B,), a MixedTarget, or probabilities (B, C)")
    if target.dtype == torch.int64:
        _check_rows("target", target, logits, torch.int64)
    elif target.dtype not in _FLOATS or target.dim() != 2:
        raise ValueError(
            f"target must be labels int64 (B,), a MixedTarget, or probabilities (B, C), got {_describe(target)}"
        )
    elif target.shape != logits.shape:
        raise ValueError(
            f"target holds probabilities {tuple(target.shape)} for logits {tuple(logits.shape)}: give both one shape"
        )
    else:
        _check_constant("target", target, logits)
    return target, None, None


def check_weight(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    """Weights of classes are floating-point (C,)."""
    if weight is None:
        return None
    _tensor("weight", weight)
    if weight.dtype not in _FLOATS or weight.shape != logits.shape[1:]:
        raise ValueError(
            f"weight must be floating-point of shape ({logits.shape[1]},), one a class, got {_describe(weight)}"
        )
    _check_constant("weight", weight, logits)
    return weight


def check_reduction(reduction: str) -> bool:
    """True for "mean"."""
    _one_of("reduction", reduction, ("mean", "none"))
    return reduction == "mean"


def check_normalizer(kl_normalizer: str) -> None:
    _one_of("kl_normalizer", kl_normalizer, ("batch", "numel"))


def binary_options(
    target_threshold: float | None, sum_classes: bool, label_smoothing: float, logits: Tensor
) -> dict[str, Any]:
    """What a binary cross-entropy changes in a call. Some targets must be above a threshold, and not all."""
    if not isinstance(sum_classes, bool):
        raise ValueError(f"sum_classes must be True or False, got {sum_classes!r}")
    options = {"binary": True, "target_threshold": target_threshold, "sum_classes": sum_classes}
    if target_threshold is None:
        return options
    if not (_is_number(target_threshold) and 0 <= target_threshold < 1):
        raise ValueError(
            f"target_threshold is a probability above which a target is 1: a Python number in [0, 1) or None, "
            f"got {target_threshold!r}"
        )
    spread = label_smoothing / logits.shape[1]
    if spread > target_threshold:
        raise ValueError(
            f"label_smoothing={label_smoothing} gives every class {spread:.3g}, which is above "
            f"target_threshold={target_threshold}: every target would be 1. Type label_smoothing=0"
        )
    return options | {"target_threshold": float(target_threshold)}


def check_ignore_index(ignore_index: int) -> int:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, torch.SymInt)):
        raise ValueError(f"ignore_index is an integer, got {ignore_index!r}")
    return ignore_index


def check_tau(tau: float) -> float:
    if not (_is_number(tau) and tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau is a temperature: a finite Python number above 0, got {tau!r}")
    return float(tau)


def check_teacher_logits(teacher: Tensor, logits: Tensor) -> None:
    """A teacher's logits have the rows and classes of the student's, and no gradient."""
    if _is_like(teacher, logits) and not teacher.requires_grad:
        return
    if teacher.shape[1] != logits.shape[1]:
        raise ValueError(
            f"teacher knows {teacher.shape[1]} classes and the student {logits.shape[1]}: "
            "both must be trained for the same classes, in the same order"
        )
    if teacher.shape[0] != logits.shape[0]:
        raise ValueError(f"teacher has {teacher.shape[0]} rows and the student {logits.shape[0]}")
    _check_constant("teacher", teacher, logits)


def check_values(call: LossCall) -> None:
    """Look into the weights of classes, labels, mixing weights and TopK of CPU tensors.

    Raises:
        ValueError: a weight of a class that is negative, infinite or NaN, no weight above 0; in a row that counts a
            label outside [0, C), lam outside [0, 1], a TopK whose classes are outside [0, C) or repeated or whose
            probabilities are outside [0, 1].
    """
    rows, classes = call.logits.shape
    if call.weight is not None:
        bad = ~((call.weight >= 0) & (call.weight < torch.inf))
        if bad.any():
            number = int(bad.nonzero()[0])
            raise ValueError(
                f"weight holds {call.weight[number].item()} for class {number}; weights are finite and at least 0"
            )
        if not call.weight.any():
            raise ValueError("weight holds 0 for every class; at least one is above 0")
    counts = torch.ones(rows, dtype=torch.bool)
    for _, labels in call.label_tensors:
        counts &= labels != call.ignore_index
    allowed = f"labels are in [0, {classes}) or ignore_index={call.ignore_index}"
    for name, labels in call.label_tensors:
        _reject(name, labels, counts & ((labels < 0) | (labels >= classes)), allowed)
    if call.lam is not None:
        _reject("target.lam", call.lam, counts & ~((call.lam >= 0) & (call.lam <= 1)), "it is a weight in [0, 1]")
    if call.teacher is not None and call.teacher_probs is not None:
        ordered = call.teacher.sort(1).values
        outside = (ordered[:, 0] < 0) | (ordered[:, -1] >= classes)
        _reject("teacher.indices", call.teacher, counts & outside, f"classes are in [0, {classes})")
        _reject(
            "teacher.indices", call.teacher, counts & (ordered.diff(dim=1) == 0).any(1), "a class may occur once a row"
        )
        outside = ~((call.teacher_probs >= 0) & (call.teacher_probs <= 1)).all(1)
        _reject("teacher.probs", call.teacher_probs, counts & outside, "probabilities are in [0, 1]")


def _check_teacher(teacher: Tensor | TopK, logits: Tensor, mode: str, tau: float) -> tuple[Tensor, Tensor | None]:
    if isinstance(teacher, TopK):
        if mode == "hard":
            raise ValueError(
                'teacher is a TopK, which serves mode="soft"; for mode="hard" pass its labels: '
                "teacher.indices.gather(1, teacher.probs.argmax(1, keepdim=True))[:, 0]"
            )
        if teacher.tau != tau:
            raise ValueError(
                f"teacher is a TopK taken at tau={teacher.tau}, which cannot serve tau={tau}: pass tau={teacher.tau}"
            )
        for name, part, dtypes in (("indices", teacher.indices, (torch.int64,)), ("probs", teacher.probs, _FLOATS)):
            _tensor(f"teacher.{name}", part)
            if part.dim() != 2 or part.dtype not in dtypes or part.shape[0] != logits.shape[0]:
                raise ValueError(
                    f"teacher.{name} must be {_names(dtypes)} of shape ({logits.shape[0]}, K), got {_describe(part)}"
                )
            _check_constant(f"teacher.{name}", part, logits)
        if teacher.indices.shape != teacher.probs.shape or not 1 <= teacher.indices.shape[1] <= logits.shape[1]:
            raise ValueError(
                f"teacher.indices and teacher.probs must have one shape (B, K), 1 <= K <= {logits.shape[1]} classes, "
                f"got {tuple(teacher.indices.shape)} and {tuple(teacher.probs.shape)}"
            )
        return teacher.indices, teacher.probs
    _tensor("teacher", teacher, "logits (B, C), labels int64 (B,), or a TopK")
    if teacher.dtype == torch.int64:
        if mode == "soft":
            raise ValueError(
                'teacher holds labels, which carry no distribution: use mode="hard" or pass the teacher\'s logits'
            )
        _check_rows("teacher", teacher, logits, torch.int64)
    elif teacher.dim() != 2 or teacher.dtype not in _FLOATS:
        raise ValueError(f"teacher must be logits (B, C), labels int64 (B,), or a TopK, got {_describe(teacher)}")
    else:
        check_teacher_logits(teacher, logits)
    return teacher, None


def _check_rows(name: str, values: Tensor, logits: Tensor, *dtypes: torch.dtype) -> None:
    _tensor(name, values)
    if values.dtype not in dtypes or values.shape != logits.shape[:1]:
        raise ValueError(
            f"{name} must be {_names(dtypes)} of shape ({logits.shape[0]},), one a row, got {_describe(values)}"
        )
    _check_constant(name, values, logits)


def _check_constant(name: str, values: Tensor, logits: Tensor) -> None:
    if values.requires_grad:
        raise ValueError(
            f"{name} requires grad, but the loss gives it none: pass {name}.detach(), or make it under torch.no_grad()"
        )
    if values.device != logits.device:
        raise ValueError(f"{name} is on {values.device} and the logits are on {logits.device}: move one of them")


def _reject(name: str, values: Tensor, bad_rows: Tensor, allowed: str) -> None:
    if bad_rows.any():
        row = int(bad_rows.nonzero()[0])
        raise ValueError(f"{name} holds {values[row].tolist()} in row {row}; {allowed}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")


def _within(name: str, value: float, what: str) -> float:
    if not (_is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{name} is {what}: a Python number in [0, 1], got {value!r}")
    return float(value)


def _is_number(value: object) -> bool:
    # A tensor is refused: comparing one that lives on a GPU would wait for the device.
    return isinstance(value, (int, float))


def _tensor(name: str, value: object, allowed: str = "a tensor") -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be {allowed}, got {type(value).__name__}")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return "int64" if dtypes == (torch.int64,) else "floating-point"


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"
