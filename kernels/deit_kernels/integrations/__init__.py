"""Our ops inside other people's code, each in the place of what it replaces.

    from deit_kernels.integrations import patch_timm, register_huggingface
    from deit_kernels.integrations.criterion import DistillationLoss        # the official losses.DistillationLoss
    from deit_kernels.integrations.timm_task import TokenDistillationTask   # timm.task.TokenDistillationTask

The first line needs neither timm nor transformers, until one of the two functions is called; the others import timm.
"""

from typing import Any

from .models import Patch, packed_timm_attention, patch_timm, register_huggingface

__all__ = ["Patch", "patch_timm", "register_huggingface"]


def __getattr__(name: str) -> Any:
    if name == "PackedTimmAttention":  # of a pickled model
        return packed_timm_attention()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
