"""The losses of DeiT: cross-entropy with smoothed and mixed targets, soft and hard distillation."""

from .op import MixedTarget, TopK, binary_cross_entropy, cross_entropy, distillation_loss, kl_divergence

__all__ = ["MixedTarget", "TopK", "binary_cross_entropy", "cross_entropy", "distillation_loss", "kl_divergence"]
