"""The official DeiT's distillation criterion on the fused loss; it lives in `deit_kernels.integrations.criterion`."""

from deit_kernels.integrations.criterion import DistillationLoss, fused_options, token_loss

__all__ = ["DistillationLoss", "fused_options", "token_loss"]
