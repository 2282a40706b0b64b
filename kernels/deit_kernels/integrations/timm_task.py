"""timm's token distillation with the loss in one kernel: a drop-in for its `TokenDistillationTask`, timm >= 1.0.25.

    from deit_kernels.integrations.timm_task import TokenDistillationTask   # instead of: from timm.task import …
    task = TokenDistillationTask(student, teacher, criterion=SoftTargetCrossEntropy(), distill_type="hard")
    task(images, labels)["loss"].backward()

timm's own training script takes it where that name is imported.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor

from .criterion import token_loss

try:
    from timm.task import TokenDistillationTask as _TimmTask
except ImportError as error:
    raise ImportError(
        f"TokenDistillationTask needs timm 1.0.25 or newer, this is {timm.__version__}: run pip install -U timm"
    ) from error


class TokenDistillationTask(_TimmTask):
    """timm's task, its arguments and its results; only the computation of the loss is replaced.

    The KL is divided by the rows (timm's "batchmean") and multiplied by temperature²; hard labels are the teacher's
    arg-max. `criterion` is fused when it is a plain cross-entropy, binary or not (see `criterion.fused_options`), else
    called as is.

    Raises:
        ValueError: as timm's task, or a loss weight is negative, or both are 0.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        weights = (self.task_loss_weight, self.distill_loss_weight)
        if min(weights) < 0 or sum(weights) == 0:
            raise ValueError(
                f"task_loss_weight and distill_loss_weight must be at least 0, one above it, got {weights}"
            )

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One batch, images normalised for the student: {"loss", "output", "task_loss", "distill_loss"}, as timm's.

        The two terms are detached: they are there to be logged.
        """
        main_logits, dist_logits = self.trainable_module(input)
        mean, std = self.get_buffer("student_mean"), self.get_buffer("student_std")
        with torch.no_grad():
            teacher_logits = self.teacher(self.teacher.normalize_input(input, mean, std))
        loss, task_loss, distill_loss = token_loss(
            self.criterion, main_logits, dist_logits, teacher_logits, target,
            mode="soft" if self.distill_type == "soft" else "hard",
            weights=(self.task_loss_weight, self.distill_loss_weight), tau=self.temperature, kl_normalizer="batch",
        )  # fmt: skip
        return {"loss": loss, "output": main_logits, "task_loss": task_loss, "distill_loss": distill_loss}
