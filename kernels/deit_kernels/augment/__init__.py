"""Augmentation: a plan says what happens to each image, `apply` executes it, exact to Pillow's pixels."""

from .op import apply, apply_out, resized_crop
from .plan import AugmentPlan, ImageBatch, Policy, sample_plan

__all__ = ["AugmentPlan", "ImageBatch", "Policy", "apply", "apply_out", "resized_crop", "sample_plan"]
