"""timm's token distillation on the fused loss; it lives in `deit_kernels.integrations.timm_task`."""

from deit_kernels.integrations.timm_task import TokenDistillationTask

__all__ = ["TokenDistillationTask"]
