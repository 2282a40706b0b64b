"""The losses written out in plain PyTorch: the CPU implementation and the oracle of the kernels (accepts float64)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MixedTarget(NamedTuple):
    """A mixup or CutMix target that is never built: lam · onehot(labels) + (1 − lam) · onehot(partner_labels).

    Attributes:
        labels, partner_labels: int64 (B,).
        lam: float32 (B,) in [0, 1].
    """

    labels: Tensor
    partner_labels: Tensor
    lam: Tensor


class TopK(NamedTuple):
    """The K largest probabilities of a teacher at temperature tau; the rest of the mass is spread evenly.

    Attributes:
        indices: int64 (B, K), distinct classes in each row.
        probs: float (B, K), their probabilities at temperature tau.
        tau: the temperature at which they were taken.
    """

    indices: Tensor
    probs: Tensor
    tau: float


def exact(logits: Tensor) -> Tensor:
    """Logits in the type that losses are computed in: float64 stays, everything else becomes float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def label_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Per-row −Σ t·log softmax with t = 1 − ε + ε/C on the label and ε/C elsewhere (B,)."""
    log_probs = exact(logits).log_softmax(-1)
    nll = -log_probs.gather(1, labels[:, None])[:, 0]
    return nll if smoothing == 0 else (1 - smoothing) * nll - smoothing * log_probs.mean(-1)


def dense_cross_entropy(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Per-row cross-entropy with a probability vector, smoothed as `F.cross_entropy` does (B,)."""
    log_probs = exact(logits).log_softmax(-1)
    target = target.to(log_probs.dtype)
    if smoothing:
        target = (1 - smoothing) * target + smoothing / target.shape[-1]
    # A zero target takes nothing from a class of logit −inf; 0 · −inf would be NaN.
    return -torch.where(target == 0, 0.0, target * log_probs).sum(-1)


def topk_probabilities(teacher: TopK, classes: int) -> Tensor:
    """The dense distribution that a TopK stands for (B, C)."""
    probs = exact(teacher.probs)
    rest = (1 - probs.sum(-1, keepdim=True)).clamp_min(0) / max(classes - probs.shape[1], 1)
    return rest.expand(-1, classes).scatter(1, teacher.indices, probs)


def kl_rows(student_logits: Tensor, teacher_probs: Tensor, teacher_log_probs: Tensor, tau: float) -> Tensor:
    """Per-row τ² · KL(teacher ‖ softmax(student / τ)) (B,)."""
    student_log_probs = (exact(student_logits) / tau).log_softmax(-1)
    terms = teacher_probs * (teacher_log_probs - student_log_probs)
    return torch.where(teacher_probs == 0, 0.0, terms).sum(-1) * tau**2
