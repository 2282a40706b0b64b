"""Which images are trained and evaluated on, and what is done to them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from deit_kernels.augment import Erase, Mix, Policy

from ..model import IMAGENET_NORMALISATION, Normalisation
from ..names import flag
from .marks import Fraction, Later, Local, Part, Ref, Shared, label, span

Order = Literal["grouped", "official"]
OFFICIAL_CROP_RATIO = 0.875  # of the official code, at 384 pixels too: int(256 / 224 · 384)


@dataclass(frozen=True)
class DataConfig(Part):
    # Data
    data: Shared[Ref] = ""  # folder (train/, val/ of classes, tar shards, parquet, CIFAR), or mnist5k, photos, digits
    image_size: Annotated[Shared[int], span(1, 4096), label(6)] = 224  # side of training and evaluation crops, pixels
    crop_scale: Shared[tuple[float, float]] = (0.08, 1.0)  # random crop's share of the image's area, least and most
    simple_random_crop: Later[Shared[bool]] = False  # resize the shorter side, reflect 4 pixels, crop; no crop_scale
    flip: Shared[Fraction] = 0.5  # probability of a horizontal flip
    rand_augment: str = ""  # timm's string: rand-m9-mstd0.5-inc1, 3a (DeiT III), original (AutoAugment); empty: none
    color_jitter: Annotated[Later[float | None], span(0, 10)] = None  # of brightness, contrast, saturation; 3a: 0.3
    erase: Fraction = 0.0  # probability that a random box is filled with noise
    mixup: float = 0.0  # alpha of mixup's Beta distribution; 0: no mixup
    cutmix: float = 0.0  # alpha of CutMix's; 0: no CutMix; with both, each group of rows has one of them
    mix_prob: Fraction = 1.0  # probability that a group of rows is mixed at all
    mix_switch_prob: Fraction = 0.5  # probability of CutMix where both are on
    crop_ratio: Annotated[Shared[float], span(0.05, 1)] = 0.875  # evaluation: crop side / resized side; official: 0.875
    repeats: Annotated[int, span(1, 64), label(3)] = 1  # repeated augmentation: crops of one image in a batch
    order: Annotated[Shared[Order], label(4)] = "grouped"  # copies side by side, decoded once; or official index lists
    exif_orientation: Annotated[Shared[bool], label(5)] = False  # turn images as EXIF says; timm and torchvision do not
    in_memory: Local[Shared[bool]] = False  # decode the whole set once and keep the pixels: for small sets
    bad_images: Shared[Literal["skip", "fail"]] = "skip"  # an unreadable image is named and left out, or ends the run
    threads: Annotated[Local[Shared[int]], span(0, 1024)] = 0  # decoding threads of each process; 0: one a core

    def training_policy(self, normalisation: Normalisation) -> Policy:
        """Random crop, flip, and the stages that the configuration names.

        Raises:
            ValueError: --rand-augment is not a string of timm's that is known here.
        """
        mixes = self.mixup > 0 or self.cutmix > 0
        ops = Policy.parse(self.rand_augment) if self.rand_augment else Policy()
        return Policy(
            size=self.image_size,
            crop="simple" if self.simple_random_crop else "random_resized",
            scale=self.crop_scale,
            flip=self.flip,
            mean=normalisation[0],
            std=normalisation[1],
            rand_augment=ops.rand_augment,
            auto_augment=ops.auto_augment,
            color_jitter=ops.color_jitter if self.color_jitter is None else self.color_jitter,
            erase=Erase(self.erase) if self.erase else None,
            mix=Mix(self.mixup, self.cutmix, self.mix_prob, self.mix_switch_prob) if mixes else None,
        )

    def preprocessing(self, normalisation: Normalisation) -> Preprocessing:
        """What evaluation does to an image, in the run and wherever its model is used."""
        mean, std = normalisation
        return Preprocessing(
            self.image_size, self.crop_ratio, mean=mean, std=std, exif_orientation=self.exif_orientation
        )

    def check(self) -> None:
        super().check()
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"--crop-scale takes two shares, 0 < least <= most <= 1, got {self.crop_scale}")
        if self.simple_random_crop and self.crop_scale != DataConfig.crop_scale:
            given = " ".join(f"{share:g}" for share in self.crop_scale)
            raise ValueError(
                f"--crop-scale is {given}, but --simple-random-crop draws no share of the image: add --crop-scale 0.08 "
                "1, the default, or leave --simple-random-crop out"
            )
        if self.rand_augment:
            try:
                ops = Policy.parse(self.rand_augment)
            except ValueError as error:
                raise ValueError(f"--rand-augment: {error}") from error
            try:
                replace(ops, color_jitter=self.color_jitter or 0.0)
            except ValueError as error:
                raise ValueError(f"--color-jitter beside --rand-augment {self.rand_augment}: {error}") from error
        for name in ("mixup", "cutmix"):
            try:
                Mix(getattr(self, name) or 1.0, 1.0)
            except ValueError as error:
                raise ValueError(f"{flag(name)} is 0 (off) or in [0.01, 100], got {getattr(self, name)}") from error
        if not self.data:
            raise ValueError("no data: type --data FOLDER, or --data photos for the built-in photographs")


@dataclass(frozen=True)
class Preprocessing:
    """What evaluation does to an image file: the one object from the run to everything that uses its model.

    The shorter side is resized, the central square kept and normalised. All fields are JSON values.

    Args:
        image_size: side of the square, pixels.
        crop_ratio: the square's side / the shorter side after resizing.
        interpolation: of the resizing, which is Pillow's, antialiased.
        mean, std: of red, green and blue, for pixels in [0, 1].
        exif_orientation: the image is first turned as its EXIF orientation says.

    Raises:
        ValueError: a number outside its range.
    """

    image_size: int = 224
    crop_ratio: float = OFFICIAL_CROP_RATIO
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, ...] = IMAGENET_NORMALISATION[0]
    std: tuple[float, ...] = IMAGENET_NORMALISATION[1]
    exif_orientation: bool = False

    def __post_init__(self) -> None:
        _ = self.policy  # which checks the numbers

    def __str__(self) -> str:
        turned = ", turned as their EXIF orientation says" if self.exif_orientation else ""
        return f"{self.image_size} pixels, crop ratio {self.crop_ratio:g}, {self.interpolation}{turned}"

    @functools.cached_property
    def policy(self) -> Policy:
        """What follows the decoding, as the augmentation op takes it."""
        policy = Policy.eval(self.image_size, self.crop_ratio)
        return replace(policy, interpolation=self.interpolation, mean=self.mean, std=self.std)

    @property
    def resized(self) -> int:
        """The shorter side after resizing, pixels."""
        return int(self.image_size / self.crop_ratio)

    @property
    def normalisation(self) -> Normalisation:
        return self.mean, self.std
