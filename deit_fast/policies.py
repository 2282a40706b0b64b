"""What a configuration does to images: the augmentation policies of training and evaluation."""

from __future__ import annotations

from dataclasses import replace

from deit_kernels.augment import Erase, Mix, Policy, RandAugment

from .classifiers import Normalisation
from .config import Config


def training_policy(config: Config, normalisation: Normalisation) -> Policy:
    """Random resized crop, flip, and the stages that the configuration names.

    Args:
        normalisation: (mean, std) of the channels red, green, blue, for pixels in [0, 1].

    Raises:
        ValueError: --rand-augment is no string of timm's that is known here.
    """
    mixes = config.mixup > 0 or config.cutmix > 0
    return Policy(
        size=config.image_size,
        scale=config.crop_scale,
        flip=config.flip,
        mean=normalisation[0],
        std=normalisation[1],
        rand_augment=RandAugment.parse(config.rand_augment) if config.rand_augment else None,
        erase=Erase(config.erase) if config.erase else None,
        mix=Mix(config.mixup, config.cutmix, config.mix_prob, config.mix_switch_prob) if mixes else None,
    )


def evaluation_policy(config: Config, normalisation: Normalisation) -> Policy:
    """The shorter side resized, then the central crop."""
    policy = Policy.eval(config.image_size, config.crop_ratio)
    return replace(policy, mean=normalisation[0], std=normalisation[1])
