"""RandAugment's numbers, the names of its ops, and timm's strings.

RandAugment.parse("rand-m9-mstd0.5-inc1")        # DeiT's, the same as RandAugment()
"""

from __future__ import annotations

import difflib
import math
import string
from dataclasses import dataclass
from typing import Any

LAYERS = 4  # ops in a row of a plan

OPS = (
    "none", "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color",
    "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "gaussian_blur",
)  # fmt: skip
"""The ops, the first 15 in the order of timm's RandAugment; a row stores the index."""
RAND_OPS = OPS[:-1]  # those that RandAugment draws, and "none"
MAX_DEVIATION = 100.0  # of gaussian_blur, in pixels

# timm 1.0's _RAND_WEIGHTED_0, the set named "weights".
TIMM_WEIGHTS = {
    "rotate": 3.0, "shear_x": 2.0, "shear_y": 2.0, "translate_x": 1.0, "translate_y": 1.0, "color": 0.25,
    "sharpness": 0.25, "auto_contrast": 0.25, "solarize": 0.05, "solarize_add": 0.05, "contrast": 0.05,
    "brightness": 0.05, "equalize": 0.05, "posterize": 0.05, "invert": 0.05,
}  # fmt: skip


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def nearest(word: str, known: tuple[str, ...]) -> str:
    """The known words most like `word`, for an error message."""
    return " or ".join(difflib.get_close_matches(word, known, n=2, cutoff=0.5) or known)


@dataclass(frozen=True)
class RandAugment:
    """Some random ops an image, each applied with a probability: timm 1.0's `rand_augment_transform`.

    Args:
        magnitude: mean strength, in tenths of the ops' ranges.
        magnitude_std: its standard deviation; inf draws it from [0, magnitude] instead.
        magnitude_max: upper bound of the drawn magnitude; the lower is 0.
        layers: ops an image, 0 to 4.
        probability: that each of them is applied.
        increasing: every op grows stronger with the magnitude; else timm's first definitions.
        weights: chance of each op by name, drawn without replacement; None: all alike, with replacement.

    Raises:
        ValueError: a number outside its range, an unknown op.
    """

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    magnitude_max: float = 10.0
    layers: int = 2
    probability: float = 0.5
    increasing: bool = True
    weights: tuple[tuple[str, float], ...] | None = None

    def __post_init__(self) -> None:
        require(0 <= self.magnitude <= 100, f"magnitude lies in [0, 100], got {self.magnitude}")
        require(self.magnitude_std >= 0, f"magnitude_std is 0 or more, got {self.magnitude_std}")
        require(0 < self.magnitude_max <= 100, f"magnitude_max lies in (0, 100], got {self.magnitude_max}")
        require(0 <= self.layers <= LAYERS, f"layers is a number of ops, 0 to {LAYERS}, got {self.layers}")
        require(0 <= self.probability <= 1, f"probability lies in [0, 1], got {self.probability}")
        for name, weight in self.weights or ():
            require(name in RAND_OPS[1:], f"there is no op {name!r}: did you mean {nearest(name, RAND_OPS[1:])}?")
            require(0 <= weight < math.inf, f"the weight of {name} is 0 or more, got {weight}")
        if self.weights is not None:
            positive = sum(weight > 0 for _, weight in self.weights)
            require(positive >= max(1, self.layers), f"{self.layers} layers need as many ops of a weight above 0")

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """Read a timm string, such as "rand-m9-mstd0.5-inc1".

        Sections, in any order: m magnitude (10), mstd its deviation (0; above 100: uniform), mmax its upper bound (10),
        n ops an image (2), p probability (0.5), inc 1 for the increasing ops (0), tweights timm's
        weighted set, which holds increasing ops.

        Raises:
            ValueError: another kind of string, an unknown section or number; the nearest known ones are named.
        """
        head, *sections = text.split("-")
        if head != "rand":
            reason = "timm's AugMix, which is not built" if head == "augmix" else "unknown"
            raise ValueError(f'{text!r} is {reason}: type "rand-m9-mstd0.5-inc1", "3a", "original" or "v0"')
        fields: dict[str, Any] = {"magnitude": 10.0, "magnitude_std": 0.0, "increasing": False}
        kinds = {
            "m": ("magnitude", int), "mstd": ("magnitude_std", float), "mmax": ("magnitude_max", int),
            "n": ("layers", int), "p": ("probability", float), "inc": ("increasing", int),
        }  # fmt: skip
        for section in sections:
            if section.startswith("t"):
                require(
                    section == "tweights",
                    f"{section!r} in {text!r}: the only named set of this version is tweights; without it the 15 ops",
                )
                fields["weights"] = tuple(TIMM_WEIGHTS.items())
                continue
            key = section[: len(section) - len(section.lstrip(string.ascii_lowercase))]
            value = section.removeprefix(key)
            require(key in kinds, f"{section!r} in {text!r}: did you mean {nearest(key, tuple(kinds))}?")
            name, kind = kinds[key]
            try:
                fields[name] = kind(value)
            except ValueError as error:
                raise ValueError(f"{section!r} in {text!r}: {key} takes a number, such as {key}1") from error
        if fields["magnitude_std"] > 100:
            fields["magnitude_std"] = math.inf
        # The weighted set holds the increasing ops whatever inc says.
        fields["increasing"] = bool(fields["increasing"]) or "weights" in fields
        return cls(**fields)
