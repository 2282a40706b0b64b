"""Augmentation: a plan says what happens to each image, `apply` executes it, exact to Pillow's pixels."""

from .auto_augment import AutoAugment, RandomOp
from .mix import MixPlan, sample_mix
from .op import apply, apply_out, resized_crop
from .plan import AugmentPlan, ImageBatch, sample_plan
from .policy import Erase, Mix, Policy
from .rand_augment import OPS, RandAugment
from .single_op import apply_op
from .transform import BatchTransform, Transform

__all__ = [
    "OPS",
    "AugmentPlan",
    "AutoAugment",
    "BatchTransform",
    "Erase",
    "ImageBatch",
    "Mix",
    "MixPlan",
    "Policy",
    "RandAugment",
    "RandomOp",
    "Transform",
    "apply",
    "apply_op",
    "apply_out",
    "resized_crop",
    "sample_mix",
    "sample_plan",
]
