"""Drop-in PyTorch ops for training vision transformers with distillation.

    from deit_kernels import attention_qkvpacked, distillation_loss, augment

Needs torch and numpy. Importing registers the ops and loads the compiled extension; triton is imported
only when a CUDA tensor reaches an op. `kernels/README.md` states the supported ranges and what stays stable.
"""

from . import augment
from .short_attention import attention, attention_qkvpacked, attention_unsupported_reasons
from .distill_loss import MixedTarget, TopK, binary_cross_entropy, cross_entropy, distillation_loss, kl_divergence

__all__ = [
    "MixedTarget",
    "TopK",
    "attention",
    "attention_qkvpacked",
    "attention_unsupported_reasons",
    "augment",
    "binary_cross_entropy",
    "cross_entropy",
    "distillation_loss",
    "kl_divergence",
]
