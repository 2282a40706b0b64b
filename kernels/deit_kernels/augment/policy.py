"""Recipes: the numbers that plans are drawn from, and timm's strings for them.

    Policy.deit(224)                                 the paper's whole training recipe
    Policy.crop_and_flip(224)                        its first two stages only
    Policy.deit3(224)                                DeiT III's: 3-Augment, mixup and CutMix
    Policy.parse("rand-m9-mstd0.5-inc1", size=224)   crop, flip and the ops of a timm string
    Policy.eval(224)                                 evaluation

Every field can be replaced with `dataclasses.replace`. A stage is left out by None.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .auto_augment import NAMES, SUB_OPS, SUB_POLICIES, AutoAugment
from .rand_augment import LAYERS, OPS, RAND_OPS, RandAugment, require

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILTERS = ("bilinear", "bicubic")  # a row stores the index
CROPS = ("random_resized", "center", "simple")
ERASE_MODES = ("none", "const", "rand", "pixel")  # a row stores the index
MAX_OUTPUT = 1024  # side of the output: one line of it must fit the shared memory of a CUDA block
JITTERED = ("brightness", "contrast", "color")  # the ops of color_jitter, the last of a row

# A RandomOp: struct RandomOp of csrc/arithmetic/policy.h.
RANDOM_OP = np.dtype([("probability", np.float64), ("range", np.float64, 2), ("op", np.int32), ("uniform", np.int32)])

# A policy as the ops take it: struct Policy of csrc/arithmetic/policy.h.
POLICY = np.dtype(
    [
        ("seed", np.uint64),
        ("scale", np.float64, 2),
        ("ratio", np.float64, 2),
        ("crop_ratio", np.float64),
        ("flip", np.float64),
        ("op_probability", np.float64),
        ("magnitude", np.float64),
        ("magnitude_std", np.float64),
        ("magnitude_max", np.float64),
        ("weight", np.float64, len(RAND_OPS)),
        ("erase_probability", np.float64),
        ("erase_area", np.float64, 2),
        ("erase_ratio", np.float64, 2),
        ("size", np.int32),
        ("crop", np.int32),
        ("pad", np.int32),
        ("interpolation", np.int32),
        ("layers", np.int32),
        ("increasing", np.int32),
        ("fast", np.int32),
        ("erase", np.int32),
        ("fill", np.uint8, 8),
        ("color_jitter", np.float64, 2),
        ("sub_policies", np.int64),
        ("sub_policy", RANDOM_OP, (SUB_POLICIES, SUB_OPS)),
    ]
)


@dataclass(frozen=True)
class Erase:
    """Random erasing of one box after normalisation: timm 1.0's RandomErasing with count 1.

    Args:
        probability: that an image has a box erased.
        mode: "pixel" fills it with N(0, 1) for every value, "rand" with one random colour, "const" with 0.
        area: range of the box's share of the image's area.
        ratio: range of its height / width.

    Raises:
        ValueError: a number outside its range.
    """

    probability: float = 0.25
    mode: Literal["pixel", "rand", "const"] = "pixel"
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, f"probability lies in [0, 1], got {self.probability}")
        modes = ERASE_MODES[1:]
        require(self.mode in modes, f"mode is one of {modes}, got {self.mode!r}")
        require(0 <= self.area[0] <= self.area[1] <= 1, f"area is a range within [0, 1], got {self.area}")
        require(0.01 <= self.ratio[0] <= self.ratio[1] <= 100, f"ratio is a range in [0.01, 100], got {self.ratio}")


@dataclass(frozen=True)
class Mix:
    """Mixup or CutMix of each group of rows: timm 1.0's Mixup, mode "batch".

    Args:
        mixup_alpha, cutmix_alpha: of Beta(alpha, alpha), from which lam is drawn; 0 turns that kind off.
        probability: that a group is mixed at all.
        switch_probability: of CutMix, when both are on.
        box_rounding: "official" leaves a CutMix box of odd side one pixel short, as the official DeiT code with timm
            0.3.2 to 1.0.30 does; "timm" gives it its pixel, as timm does from 1.0.31 on.

    Raises:
        ValueError: a number outside its range.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5
    box_rounding: Literal["official", "timm"] = "official"

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            alpha = getattr(self, name)
            require(alpha == 0 or 0.01 <= alpha <= 100, f"{name} is 0 (off) or in [0.01, 100], got {alpha}")
        require(self.mixup_alpha > 0 or self.cutmix_alpha > 0, "a Mix has mixup_alpha or cutmix_alpha above 0")
        for name in ("probability", "switch_probability"):
            require(0 <= getattr(self, name) <= 1, f"{name} lies in [0, 1], got {getattr(self, name)}")
        roundings = ("official", "timm")
        require(self.box_rounding in roundings, f"box_rounding is one of {roundings}, got {self.box_rounding!r}")


@dataclass(frozen=True)
class Policy:
    """The numbers of an augmentation recipe.

    Args:
        size: side of the square output in pixels, 1 to 1024.
        crop: "random_resized" draws a box (timm 1.0 RandomResizedCropAndInterpolation) and resizes it to size × size;
            "center" resizes the shorter side to int(size / crop_ratio) and keeps the central window (torchvision's
            Resize and CenterCrop on Pillow images); "simple" resizes the shorter side to size, reflects `pad` pixels
            beyond every edge and keeps a random window (DeiT III's simple random crop).
        scale, ratio: ranges of the box's share of the image's area and of its width / height, for "random_resized".
        crop_ratio: in (0, 1], for "center".
        pad: pixels, below size, for "simple".
        interpolation: "bicubic" (Pillow's), "bilinear", or "random", a coin for each resize and each affine op.
            Resizing is antialiased and has a cubic of a = −0.5; affine ops are not and have a = −1.
        flip: probability of a horizontal flip.
        rand_augment, erase, mix: the later stages, or None. `mix` is drawn by `sample_mix`.
        affine: "exact" gives Pillow's pixels; "fast" has float32 coordinates and differs by one level here and there.
        auto_augment: ops in the place of `rand_augment`'s, or None.
        color_jitter: brightness, contrast and saturation each change by a factor within [1 − color_jitter,
            1 + color_jitter], 0 at least, one after the other in random order, after the ops before: torchvision's
            ColorJitter on Pillow images. An image has room for four ops: three for it leave one for the others.
        mean, std: per channel, of pixels scaled to [0, 1].

    Raises:
        ValueError: a number outside its range.
    """

    size: int = 224
    crop: Literal["random_resized", "center", "simple"] = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_ratio: float = 0.875
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    flip: float = 0.5
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    pad: int = 4
    rand_augment: RandAugment | None = None
    erase: Erase | None = None
    mix: Mix | None = None
    affine: Literal["exact", "fast"] = field(default="exact", kw_only=True)
    auto_augment: AutoAugment | None = field(default=None, kw_only=True)
    color_jitter: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        filters = (*FILTERS, "random")
        require(1 <= self.size <= MAX_OUTPUT, f"size is a side from 1 to {MAX_OUTPUT} pixels, got {self.size}")
        require(self.crop in CROPS, f"crop is one of {CROPS}, got {self.crop!r}")
        require(self.interpolation in filters, f"interpolation is one of {filters}, got {self.interpolation!r}")
        require(0 < self.scale[0] <= self.scale[1] <= 1, f"scale is a range within (0, 1], got {self.scale}")
        require(0.01 <= self.ratio[0] <= self.ratio[1] <= 100, f"ratio is a range in [0.01, 100], got {self.ratio}")
        require(0 < self.crop_ratio <= 1, f"crop_ratio is a share of the side in (0, 1], got {self.crop_ratio}")
        simple = self.crop == "simple"
        require(not simple or 0 <= self.pad < self.size, f"pad lies in [0, {self.size}), below size, got {self.pad}")
        require(0 <= self.flip <= 1, f"flip is a probability in [0, 1], got {self.flip}")
        require(len(self.mean) == len(self.std) == 3, f"mean and std have 3 channels, got {self.mean} and {self.std}")
        require(min(self.std) > 0, f"std is above 0, got {self.std}")
        require(self.affine in ("exact", "fast"), f'affine is "exact" or "fast", got {self.affine!r}')
        require(0 <= self.color_jitter <= 10, f"color_jitter lies in [0, 10], got {self.color_jitter}")
        both = self.rand_augment is not None and self.auto_augment is not None
        require(not both, "rand_augment and auto_augment exclude each other: one of them is None")
        chosen = self.rand_augment or self.auto_augment
        layers, room = chosen.layers if chosen else 0, LAYERS - (len(JITTERED) if self.color_jitter else 0)
        require(layers <= room, f"color_jitter leaves room for {room} op, and the ops before it are {layers}")

    @classmethod
    def deit(cls, size: int = 224) -> Policy:
        """DeiT's training recipe, whole (paper, Table 9; the official code's defaults).

        Random resized crop (area 8 to 100 %, ratio 3/4 to 4/3, bicubic), horizontal flip with probability 0.5,
        RandAugment "rand-m9-mstd0.5-inc1", ImageNet's mean and std, random erasing of pixels with probability 0.25,
        and mixup 0.8 or CutMix 1.0, which `sample_mix` draws.
        """
        return cls(size=size, rand_augment=RandAugment(), erase=Erase(), mix=Mix())

    @classmethod
    def deit3(cls, size: int = 224, *, src: bool = False, color_jitter: float = 0.3) -> Policy:
        """DeiT III's training recipe, whole (arXiv 2204.07118; the official code's `--ThreeAugment`).

        Random resized crop as in `deit`, or with `src` the simple random crop: the shorter side resized to `size`, 4
        pixels reflected beyond every edge, a random window. Horizontal flip with probability 0.5; 3-Augment, one of
        greyscale, solarise at 128 and Gaussian blur of a radius uniform in [0.1, 2]; colour jitter; ImageNet's mean and
        std; and mixup 0.8 or CutMix 1.0, which `sample_mix` draws.
        """
        crop: Literal["random_resized", "simple"] = "simple" if src else "random_resized"
        ops = AutoAugment.parse("3a")
        return cls(size=size, crop=crop, auto_augment=ops, color_jitter=color_jitter, mix=Mix())

    @classmethod
    def crop_and_flip(cls, size: int = 224) -> Policy:
        """The first two stages of `deit` and its normalisation, nothing else."""
        return cls(size=size)

    @classmethod
    def eval(cls, size: int = 224, crop_ratio: float = 0.875) -> Policy:
        """DeiT's and timm's evaluation: shorter side to int(size / crop_ratio), bicubic, then the central window."""
        return cls(size=size, crop="center", crop_ratio=crop_ratio, flip=0.0)

    @classmethod
    def parse(cls, text: str, size: int = 224) -> Policy:
        """`crop_and_flip` with the ops of a timm string, as timm's `create_transform(auto_augment=text)`.

        Strings that begin with "rand" are RandAugment's, "original" and "v0" AutoAugment's. "3a" is 3-Augment with its
        colour jitter, of DeiT III's strength 0.3; timm's own default is 0.4.

        Raises:
            ValueError: not a string that `RandAugment.parse` or `AutoAugment.parse` reads.
        """
        if text in NAMES:
            return cls(size=size, auto_augment=AutoAugment.parse(text), color_jitter=0.3 if text == "3a" else 0.0)
        return cls(size=size, rand_augment=RandAugment.parse(text))

    @property
    def draws(self) -> bool:
        """Whether anything of an image's plan is random."""
        crop = self.crop != "center" or 0 < self.flip or self.interpolation == "random"
        ops = self.rand_augment is not None or self.auto_augment is not None or self.color_jitter > 0
        return crop or ops or self.erase is not None

    def settings(self) -> dict[str, Any]:
        """The fields as JSON values: what images depend on.

        Fields that came later than the first label caches are left out while they change nothing, so that a cache of an
        older version keeps its key.
        """
        later = ("auto_augment", "color_jitter")
        return {name: value for name, value in asdict(self).items() if name not in later or value}

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour, 0 to 255, that affine ops put outside the image: the mean, as timm rounds it."""
        red, green, blue = (min(255, round(255 * channel)) for channel in self.mean)
        return red, green, blue

    def numbers(self, seed: int) -> NDArray[np.void]:
        """What rows are drawn from, as one record of `POLICY`."""
        record = self._numbers.copy()
        record["seed"] = seed
        return record

    @functools.cached_property
    def _numbers(self) -> NDArray[np.void]:
        """All of them but the seed: a batch asks for them, and AutoAugment has many."""
        record = np.zeros(1, POLICY)
        for name in ("scale", "ratio", "crop_ratio", "flip", "size", "pad"):
            record[name] = getattr(self, name)
        record["pad"] *= self.crop == "simple"
        record["crop"] = CROPS.index(self.crop)
        record["interpolation"] = (*FILTERS, "random").index(self.interpolation)
        record["fast"] = self.affine == "fast"
        record["fill"][0, :3] = self.fill
        ops = self.rand_augment or RandAugment(layers=0)
        record["op_probability"], record["layers"] = ops.probability, ops.layers
        for name in ("magnitude", "magnitude_std", "magnitude_max", "increasing"):
            record[name] = getattr(ops, name)
        for name, weight in ops.weights or ():
            record["weight"][0, OPS.index(name)] = weight
        record["color_jitter"] = max(0.0, 1.0 - self.color_jitter), 1.0 + self.color_jitter
        if self.auto_augment is not None:
            record["sub_policies"] = len(self.auto_augment.sub_policies)
            for place, chosen in enumerate(self.auto_augment.sub_policies):
                for layer, op in enumerate(chosen):
                    side = self.size if op.op.startswith("translate") else 1
                    bounds = op.low * side, op.high * side
                    record["sub_policy"][0, place, layer] = op.probability, bounds, OPS.index(op.op), op.uniform
        erase = self.erase or Erase(probability=0.0)
        record["erase"] = ERASE_MODES.index(erase.mode) if self.erase else 0
        record["erase_probability"], record["erase_area"], record["erase_ratio"] = (
            erase.probability, erase.area, erase.ratio,
        )  # fmt: skip
        return record
