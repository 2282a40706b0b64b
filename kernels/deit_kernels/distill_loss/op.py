"""The public loss functions: what is checked, and which terms a call is made of."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .reference import (
    MixedTarget,
    TopK,
    dense_cross_entropy,
    exact,
    kl_rows,
    label_cross_entropy,
    topk_probabilities,
)

__all__ = ["MixedTarget", "TopK", "cross_entropy", "distillation_loss", "kl_divergence"]

_SOFT_NEEDS = (
    "soft distillation has no defaults, because the paper and the official code differ. Type one of:\n"
    '  alpha=0.1, tau=3.0, kl_normalizer="batch"    the paper (arXiv 2012.12877, eq. 2)\n'
    '  alpha=0.5, tau=1.0, kl_normalizer="numel"    the official code\'s defaults'
)


def _target_rows(logits: Tensor, target: Tensor | MixedTarget, smoothing: float, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Per-row cross-entropy and which rows count."""
    if isinstance(target, MixedTarget):
        keep = (target.labels != ignore_index) & (target.partner_labels != ignore_index)
        first = label_cross_entropy(logits, target.labels.where(keep, 0), smoothing)
        second = label_cross_entropy(logits, target.partner_labels.where(keep, 0), smoothing)
        lam = target.lam.to(first.dtype)
        rows = lam * first + (1 - lam) * second
    elif target.dtype == torch.int64:
        keep = target != ignore_index
        rows = label_cross_entropy(logits, target.where(keep, 0), smoothing)
    else:
        keep = torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
        rows = dense_cross_entropy(logits, target, smoothing)
    return rows, keep


def _reduce(rows: Tensor, keep: Tensor, reduction: str) -> Tensor:
    rows = torch.where(keep, rows, 0.0)
    return rows if reduction == "none" else rows.sum() / keep.sum()


def _teacher_rows(
    logits: Tensor, teacher: Tensor | TopK, mode: str, tau: float, normalizer: str, smoothing: float
) -> Tensor:
    classes = logits.shape[1]
    if mode == "hard":
        labels = teacher if teacher.dtype == torch.int64 else teacher.argmax(-1)
        return label_cross_entropy(logits, labels, smoothing)
    if isinstance(teacher, TopK):
        probs = topk_probabilities(teacher, classes)
        log_probs = probs.log()
    else:
        log_probs = (exact(teacher) / tau).log_softmax(-1)
        probs = log_probs.exp()
    rows = kl_rows(logits, probs, log_probs, tau)
    return rows / classes if normalizer == "numel" else rows


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
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """(1 − alpha) · CE(cls_logits, target) + alpha · distillation(dist_logits, teacher): DeiT, eq. 2 (soft) and 3 (hard).

    Args:
        cls_logits: (B, C) of the class token.
        dist_logits: (B, C) of the distillation token; None puts both terms on cls_logits.
        teacher: logits (B, C); labels int64 (B,) (hard); TopK (soft).
        target: labels int64 (B,), a MixedTarget, or probabilities (B, C).
        alpha: weight of the distillation term, the paper's λ; 0.5 by default in hard mode.
        tau, kl_normalizer: temperature and divisor of the KL term ("batch": rows, "numel": rows × classes), soft mode only.
        label_smoothing, teacher_smoothing: ε of 1 − ε + ε/C and ε/C, on the target and on a hard teacher label.
        ignore_index: rows with this label count in neither term.
        reduction: "mean" over the rows that count, or "none".
        return_parts: also return the two terms, detached.

    Returns:
        float32 scalar or (B,) (float64 for float64 logits); with return_parts (loss, base term, distillation term).

    Raises:
        ValueError: an argument outside its range, or soft mode without alpha, tau and kl_normalizer.
    """
    if mode not in ("hard", "soft"):
        raise ValueError(f'mode is "hard" or "soft", got {mode!r}')
    if mode == "soft" and (alpha is None or tau is None or kl_normalizer is None):
        raise ValueError(_SOFT_NEEDS)
    if mode == "soft" and not isinstance(teacher, TopK) and teacher.dtype == torch.int64:
        raise ValueError('teacher holds labels, which carry no distribution: use mode="hard" or pass the teacher\'s logits')
    alpha = 0.5 if alpha is None else alpha
    tau = 1.0 if tau is None else tau
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a weight in [0, 1], got {alpha}")
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau is a temperature above 0, got {tau}")
    student = cls_logits if dist_logits is None else dist_logits
    base_rows, keep = _target_rows(cls_logits, target, label_smoothing, ignore_index)
    distill_rows = _teacher_rows(student, teacher, mode, tau, kl_normalizer or "batch", teacher_smoothing)
    base, distill = _reduce(base_rows, keep, reduction), _reduce(distill_rows, keep, reduction)
    loss = (1 - alpha) * base + alpha * distill
    return (loss, base.detach(), distill.detach()) if return_parts else loss


def cross_entropy(
    logits: Tensor,
    target: Tensor | MixedTarget,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Cross-entropy with labels, a MixedTarget or probabilities; smoothing as in `distillation_loss`.

    Args:
        logits: (B, C).
        target: labels int64 (B,), a MixedTarget, or probabilities (B, C).

    Returns:
        float32 scalar or (B,).
    """
    return _reduce(*_target_rows(logits, target, label_smoothing, ignore_index), reduction)


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    tau: float = 1.0,
    kl_normalizer: Literal["batch", "numel"] = "batch",
) -> Tensor:
    """τ² · KL(softmax(teacher/τ) ‖ softmax(student/τ)), over rows ("batch") or rows × classes ("numel").

    Args:
        student_logits, teacher_logits: (B, C).

    Returns:
        float32 scalar.
    """
    return _teacher_rows(student_logits, teacher_logits, "soft", tau, kl_normalizer, 0.0).mean()
