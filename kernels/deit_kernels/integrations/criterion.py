"""The distillation criterion in the official DeiT's call form, on the fused loss.

    criterion = DistillationLoss(SoftTargetCrossEntropy(), teacher, "hard", alpha=0.5, tau=1.0)
    loss = criterion(images, model(images), labels)

It replaces `losses.DistillationLoss` of the official code line for line. Where the base criterion is a cross-entropy
(`nn.CrossEntropyLoss`, timm's `LabelSmoothingCrossEntropy` and `SoftTargetCrossEntropy`) or a binary one
(`nn.BCEWithLogitsLoss`, timm's `BinaryCrossEntropy`), both terms run in one kernel; any other base criterion is called
as it is and only the distillation term is ours. So is one with weights of classes, which the official code's
distillation term does not have; an `nn.CrossEntropyLoss` with them and without a teacher is ours.
For timm's training script see `timm_task.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from ..distill_loss import MixedTarget, binary_cross_entropy, cross_entropy, distillation_loss, kl_divergence

Criterion = Callable[[Tensor, Any], Tensor]  # of logits and labels, a MixedTarget or probabilities


class DistillationLoss(nn.Module):
    """(1 − alpha) · base_criterion(outputs, labels) + alpha · distillation(outputs_kd, teacher_model(inputs)).

    Soft distillation is divided by rows × classes, as the official code does it; the paper's formula is
    `deit_kernels.distillation_loss(..., kl_normalizer="batch")`.

    Args:
        base_criterion: called with (outputs, labels); the five above are fused instead.
        teacher_model: gives logits (B, C) for `inputs`; runs without gradient, in the mode (train or eval) it is in.
        distillation_type: "none" returns the base criterion alone.
        alpha: weight of the distillation term, in [0, 1].
        tau: temperature of soft distillation.

    Raises:
        ValueError: distillation_type is none of the three, or alpha or tau is out of range.
    """

    def __init__(
        self,
        base_criterion: nn.Module,
        teacher_model: nn.Module,
        distillation_type: Literal["none", "soft", "hard"],
        alpha: float,
        tau: float,
    ) -> None:
        super().__init__()
        if distillation_type not in ("none", "soft", "hard"):
            raise ValueError(f"distillation_type must be 'none', 'soft' or 'hard', got {distillation_type!r}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is a weight in [0, 1], got {alpha}")
        if not tau > 0:
            raise ValueError(f"tau is a temperature above 0, got {tau}")
        self.base_criterion = base_criterion
        self.teacher_model = teacher_model
        self.distillation_type = distillation_type
        self.alpha = alpha
        self.tau = tau

    def forward(self, inputs: Tensor, outputs: Tensor | tuple[Tensor, Tensor], labels: Tensor | MixedTarget) -> Tensor:
        """The loss of one batch.

        Args:
            inputs: what the teacher sees, usually the images (B, 3, H, W).
            outputs: logits (B, C) of the class and the distillation token; without distillation one tensor will do.
            labels: what the base criterion takes; where it is fused, a MixedTarget too.

        Returns:
            float32 scalar.

        Raises:
            ValueError: distillation is on and the model gave one tensor.
        """
        outputs, outputs_kd = (outputs, None) if isinstance(outputs, Tensor) else outputs
        if self.distillation_type == "none":
            return _base_loss(self.base_criterion, outputs, labels)
        if outputs_kd is None:
            raise ValueError(
                f"distillation_type={self.distillation_type!r} needs a model that returns (class logits, distillation "
                "logits) in training, got one tensor: use a model with _distilled in its name, or type 'none'"
            )
        with torch.no_grad():
            teacher_logits = self.teacher_model(inputs)
        loss, _, _ = token_loss(
            self.base_criterion, outputs, outputs_kd, teacher_logits, labels,
            mode=self.distillation_type, weights=(1 - self.alpha, self.alpha), tau=self.tau, kl_normalizer="numel",
        )  # fmt: skip
        return loss


def token_loss(
    base_criterion: Criterion,
    cls_logits: Tensor,
    dist_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | MixedTarget,
    *,
    mode: Literal["soft", "hard"],
    weights: tuple[float, float],
    tau: float,
    kl_normalizer: Literal["batch", "numel"],
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, base term, distillation term), the terms detached; one kernel where the base criterion can be fused.

    Args:
        weights: of the base and the distillation term, not negative and not both 0; they need not sum to 1.
    """
    base_weight, distill_weight = weights
    total = base_weight + distill_weight
    fused = fused_options(base_criterion, cls_logits, labels)
    if fused is not None:
        soft: dict[str, Any] = {"tau": tau, "kl_normalizer": kl_normalizer} if mode == "soft" else {}
        loss, base, distill = distillation_loss(
            cls_logits, dist_logits, teacher_logits, labels, mode=mode, alpha=distill_weight / total, return_parts=True,
            **soft, **fused,
        )  # fmt: skip
        if 0 in weights:  # an unused head would get no gradient: no weight decay either, and an error of DDP
            loss = loss + cls_logits[:0].sum() + dist_logits[:0].sum()
        return (loss if total == 1 else total * loss), base, distill
    base = base_criterion(cls_logits, labels)
    if mode == "soft":
        distill = kl_divergence(dist_logits, teacher_logits, tau=tau, kl_normalizer=kl_normalizer)
    else:
        distill = cross_entropy(dist_logits, teacher_logits.argmax(1))
    return base_weight * base + distill_weight * distill, base.detach(), distill.detach()


def fused_options(
    criterion: Criterion, logits: Tensor | None = None, labels: Tensor | MixedTarget | None = None, alone: bool = False
) -> dict[str, Any] | None:
    """What `criterion` is in `deit_kernels.distillation_loss`'s terms; None where it has to be called instead.

    What a binary cross-entropy does depends on the labels: without them it is None. With weights of classes a
    cross-entropy is one of ours only `alone`, without a distillation term.

    One difference: a row that `nn.CrossEntropyLoss` ignores is left out of the distillation term as well.
    """
    # A subclass may compute anything, so only the classes themselves are taken for what they are.
    if type(criterion) is nn.CrossEntropyLoss and criterion.reduction == "mean" and (alone or criterion.weight is None):
        options = {"label_smoothing": criterion.label_smoothing, "ignore_index": criterion.ignore_index}
        return options | ({} if criterion.weight is None else {"weight": criterion.weight})
    if type(criterion) is LabelSmoothingCrossEntropy:
        return {"label_smoothing": criterion.smoothing}
    own = type(criterion) in (nn.BCEWithLogitsLoss, BinaryCrossEntropy)
    if own and logits is not None and labels is not None:
        return _binary_options(criterion, logits, labels)
    return {} if type(criterion) is SoftTargetCrossEntropy else None


def _binary_options(
    criterion: Any,
    logits: Tensor,
    labels: Tensor | MixedTarget,  # nn.BCEWithLogitsLoss or timm's BinaryCrossEntropy
) -> dict[str, Any] | None:
    timms = isinstance(criterion, BinaryCrossEntropy)
    summed = timms and criterion.sum_classes
    if criterion.weight is not None or criterion.pos_weight is not None:
        return None
    if criterion.reduction != "mean" and not summed:
        return None
    options: dict[str, Any] = {"base": "bce", "sum_classes": summed}
    if isinstance(labels, Tensor) and labels.is_floating_point():
        smooths = timms and getattr(criterion, "smooth_dense", False) and criterion.smoothing > 0
        if labels.shape != logits.shape or smooths:
            return None
        smoothing = 0.0  # timm takes probabilities to be smoothed already
    elif isinstance(labels, MixedTarget) or (timms and labels.dtype == torch.int64 and labels.dim() == 1):
        smoothing = criterion.smoothing if timms else 0.0
    else:
        return None
    threshold = criterion.target_threshold if timms else None
    if threshold is not None and not smoothing / logits.shape[1] <= threshold < 1:
        return None  # all targets would be the same, which is refused by ours
    return options | {"label_smoothing": smoothing, "target_threshold": threshold}


def _base_loss(criterion: Criterion, logits: Tensor, labels: Tensor | MixedTarget) -> Tensor:
    fused = fused_options(criterion, logits, labels, alone=True)
    if fused is None:
        return criterion(logits, labels)
    binary = fused.pop("base", "ce") == "bce"
    return (binary_cross_entropy if binary else cross_entropy)(logits, labels, **fused)
