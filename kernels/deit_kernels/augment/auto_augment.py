"""Ops that an image gets together, one group of several: AutoAugment's sub-policies and DeiT III's three augmentations.

AutoAugment.parse("original")        # timm's string for the policy of the paper
AutoAugment.parse("3a")              # one of greyscale, solarise and Gaussian blur
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .rand_augment import OPS, nearest, require

SUB_POLICIES, SUB_OPS = 25, 2  # at most: the numbers that a plan is drawn from have room for as many
MAX_ARGUMENT = 1000


class RandomOp(NamedTuple):
    """An op, the probability that it is applied, and where its argument comes from.

    Fields:
        op: name, of OPS.
        probability: that it is applied at all.
        low, high: bounds of its argument; of "translate_x" and "translate_y" as a share of the output's side.
        uniform: the argument is uniform between them; else it is either of them, with probability 1/2 each.
    """

    op: str
    probability: float = 1.0
    low: float = 0.0
    high: float = 0.0
    uniform: bool = False


# timm 1.0's auto_augment_policy_original and _v0: of each sub-policy its ops as name, probability, magnitude.
ORIGINAL = (
    "posterize 0.4 8, rotate 0.6 9; solarize 0.6 5, auto_contrast 0.6 5; equalize 0.8 8, equalize 0.6 3; "
    "posterize 0.6 7, posterize 0.6 6; equalize 0.4 7, solarize 0.2 4; equalize 0.4 4, rotate 0.8 8; "
    "solarize 0.6 3, equalize 0.6 7; posterize 0.8 5, equalize 1.0 2; rotate 0.2 3, solarize 0.6 8; "
    "equalize 0.6 8, posterize 0.4 6; rotate 0.8 8, color 0.4 0; rotate 0.4 9, equalize 0.6 2; "
    "equalize 0.0 7, equalize 0.8 8; invert 0.6 4, equalize 1.0 8; color 0.6 4, contrast 1.0 8; "
    "rotate 0.8 8, color 1.0 2; color 0.8 8, solarize 0.8 7; sharpness 0.4 7, invert 0.6 8; "
    "shear_x 0.6 5, equalize 1.0 9; color 0.4 0, equalize 0.6 3; equalize 0.4 7, solarize 0.2 4; "
    "solarize 0.6 5, auto_contrast 0.6 5; invert 0.6 4, equalize 1.0 8; color 0.6 4, contrast 1.0 8; "
    "equalize 0.8 8, equalize 0.6 3"
)
V0 = (
    "equalize 0.8 1, shear_y 0.8 4; color 0.4 9, equalize 0.6 3; color 0.4 1, rotate 0.6 8; "
    "solarize 0.8 3, equalize 0.4 7; solarize 0.4 2, solarize 0.6 2; color 0.2 0, equalize 0.8 8; "
    "equalize 0.4 8, solarize_add 0.8 3; shear_x 0.2 9, rotate 0.6 8; color 0.6 1, equalize 1.0 2; "
    "invert 0.4 9, rotate 0.6 0; equalize 1.0 9, shear_y 0.6 3; color 0.4 7, equalize 0.6 0; "
    "posterize 0.4 6, auto_contrast 0.4 7; solarize 0.6 8, color 0.6 9; solarize 0.2 4, rotate 0.8 9; "
    "rotate 1.0 7, translate_y 0.8 9; shear_x 0.0 0, solarize 0.8 4; shear_y 0.8 0, color 0.6 4; "
    "color 1.0 0, rotate 0.6 2; equalize 0.8 4, equalize 0.0 8; equalize 1.0 4, auto_contrast 0.6 2; "
    "shear_y 0.4 7, solarize_add 0.6 7; posterize 0.8 2, solarize 0.6 10; solarize 0.6 8, equalize 0.6 1; "
    "color 0.8 6, rotate 0.4 5"
)
# Bits that posterize keeps at a magnitude, by the policy's name; those ending in r are Google's research code's.
KEPT_BITS = {
    "original": lambda bits: 4 + bits,
    "originalr": lambda bits: 4 - bits,
    "v0": lambda bits: bits,
    "v0r": lambda bits: 4 - bits,
}
NAMES = (*KEPT_BITS, "3a")


@dataclass(frozen=True)
class AutoAugment:
    """One sub-policy an image, all equally likely: timm 1.0's `auto_augment_transform`.

    Args:
        sub_policies: 1 to 25 of them, each of 0 to 2 `RandomOp`, applied in order.

    Raises:
        ValueError: a number outside its range, an unknown op.
    """

    sub_policies: tuple[tuple[RandomOp, ...], ...]

    def __post_init__(self) -> None:
        count = len(self.sub_policies)
        require(1 <= count <= SUB_POLICIES, f"sub_policies are 1 to {SUB_POLICIES}, got {count}")
        for ops in self.sub_policies:
            require(len(ops) <= SUB_OPS, f"a sub-policy has at most {SUB_OPS} ops, got {len(ops)}")
            for op in ops:
                require(op.op in OPS[1:], f"there is no op {op.op!r}: did you mean {nearest(op.op, OPS[1:])}?")
                require(0 <= op.probability <= 1, f"probability of {op.op} lies in [0, 1], got {op.probability}")
                within = -MAX_ARGUMENT <= op.low <= op.high <= MAX_ARGUMENT
                limits = f"a range in [-{MAX_ARGUMENT}, {MAX_ARGUMENT}]"
                require(within, f"low and high of {op.op} are {limits}, got {op.low} to {op.high}")

    @property
    def layers(self) -> int:
        """The most ops that an image gets."""
        return max(len(ops) for ops in self.sub_policies)

    @classmethod
    def parse(cls, text: str) -> AutoAugment:
        """Read a timm string: "original" (AutoAugment's paper), "v0", the variants "originalr" and "v0r", or "3a".

        Raises:
            ValueError: another string; the nearest known ones are named.
        """
        require(text in NAMES, f"{text!r} is unknown: did you mean {nearest(text, NAMES)}?")
        if text == "3a":
            grey, solarised = RandomOp("color"), RandomOp("solarize", low=128, high=128)
            return cls(((grey,), (solarised,), (RandomOp("gaussian_blur", low=0.1, high=2.0, uniform=True),)))
        policies = (ORIGINAL if text.startswith("original") else V0).split("; ")
        return cls(tuple(tuple(_random_op(op, text) for op in policy.split(", ")) for policy in policies))


def _random_op(text: str, policy: str) -> RandomOp:
    """The op of "rotate 0.6 9": timm's magnitude of 0 to 10 as an argument."""
    op, probability, magnitude = text.split()
    share = float(magnitude) / 10.0
    low = high = 0.0
    if op == "posterize":
        low = high = KEPT_BITS[policy](int(share * 4))
    elif op == "solarize":
        low = high = min(256, int(share * 256))
    elif op == "solarize_add":
        low = high = min(128, int(share * 110))
    elif op in ("color", "contrast", "sharpness"):
        low = high = share * 1.8 + 0.1
    elif op in ("rotate", "shear_x", "shear_y", "translate_y"):
        high = share * {"rotate": 30.0, "translate_y": 0.45}.get(op, 0.3)
        low = -high
    return RandomOp(op, float(probability), low, high)
