"""Drop-in PyTorch ops for training vision transformers with distillation.

    from deit_kernels import attention_qkvpacked, distillation_loss, augment

Needs torch and numpy. Importing registers the ops and loads the compiled extension; triton is imported
only when a CUDA tensor reaches an op. `kernels/README.md` states the supported ranges and what stays stable.
"""

from importlib.metadata import PackageNotFoundError, version

from . import augment
from .distill_loss import MixedTarget, TopK, binary_cross_entropy, cross_entropy, distillation_loss, kl_divergence
from .short_attention import attention, attention_qkvpacked, attention_unsupported_reasons

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

try:
    __version__ = version("deit-kernels")
except PackageNotFoundError:  # the folder lies on the path, and is not installed
    __version__ = "0.0.0+unknown"
