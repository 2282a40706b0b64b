"""One op by name, for users who want no plan.

    solarized = apply_op(images, "solarize", 128)                    # uint8 (B, H, W, 3)
    rotated = apply_op(images, "rotate", torch.tensor([15.0, -30.0], dtype=torch.float64))

The arguments are made into rows in NumPy, so that `torch.compile` breaks its graph here; `apply` keeps it whole.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .plan import MAX_SIDE, OP
from .policy import FILTERS
from .rand_augment import MAX_DEVIATION, OPS, nearest


def apply_op(
    images: Tensor,
    op: str,
    arg: Tensor | float = 0.0,
    *,
    interpolation: Literal["bicubic", "bilinear"] = "bicubic",
    fill: tuple[int, int, int] = (124, 116, 104),
    fast: bool = False,
) -> Tensor:
    """One op on every image, equal to Pillow's and timm's pixels.

    Args:
        images: uint8 (B, H, W, 3), contiguous.
        op: "auto_contrast", "equalize", "invert" take no arg; "rotate" degrees counter-clockwise; "posterize" bits
            kept, 0 to 8 (0 gives zeros); "solarize" threshold, 0 to 256; "solarize_add" addend, 0 to 255, of levels
            below 128; "color", "contrast", "brightness", "sharpness" factor, 1 changes nothing; "shear_x", "shear_y"
            factor; "translate_x", "translate_y" pixels, to the left or up; "gaussian_blur" standard deviation, 0 to
            100 pixels, which Pillow calls its radius. "color" of factor 0 is greyscale.
        arg: float64 (B,) in host memory, or one number for all.
        interpolation: of the affine ops, "bicubic" (a = −1) or "bilinear".
        fill: colour of what lies outside the image, for the affine ops.
        fast: affine ops with float32 coordinates: not Pillow's pixels, but within one level for nearly all.

    Returns:
        uint8 (B, H, W, 3).

    Raises:
        ValueError: an unknown op, the nearest are named; an argument outside its range; a wrong type or shape.
    """
    if op not in OPS[1:]:
        raise ValueError(f"there is no op {op!r}: did you mean {nearest(op, OPS[1:])}?")
    if interpolation not in FILTERS:
        raise ValueError(f"interpolation is one of {FILTERS}, got {interpolation!r}")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3 or not images.is_contiguous():
        raise ValueError(f"images are contiguous uint8 (B, H, W, 3), got {images.dtype} {tuple(images.shape)}")
    count, height, width = images.shape[:3]
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ValueError(f"an image's sides lie in [1, {MAX_SIDE}], got {height} x {width}")
    if min(fill) < 0 or max(fill) > 255 or len(fill) != 3:
        raise ValueError(f"fill is three levels, 0 to 255, got {fill}")
    args = np.asarray(arg, np.float64)
    if args.shape not in ((), (count,)):
        raise ValueError(f"arg is one number or one for each of the {count} images, got {args.shape}")
    ranges = {"posterize": (0, 8), "solarize": (0, 256), "solarize_add": (0, 255), "gaussian_blur": (0, MAX_DEVIATION)}
    whole = op in ("posterize", "solarize", "solarize_add")
    low, high = ranges.get(op, (-1e9, 1e9))
    bad = ~((args >= low) & (args <= high)) | (whole & (args != np.rint(args)))
    if bad.any():
        kind = f"{'an integer' if whole else 'a number'} in [{low}, {high:g}]" if op in ranges else "a finite number"
        raise ValueError(f"the argument of {op} is {kind}, got {args[bad].flat[0]}")
    calls = np.zeros(count, OP)
    calls["op"], calls["arg"], calls["fill"] = OPS.index(op), args, fill
    calls["filter"], calls["fast"] = FILTERS.index(interpolation), fast
    for call in calls:
        call["matrix"] = matrix(op, float(call["arg"]), height, width)
    rows = torch.from_numpy(calls.view(np.uint8).reshape(count, OP.itemsize))
    return torch.ops.deit_kernels._augment_op(images, rows.to(images.device))


def matrix(op: str, arg: float, height: int, width: int) -> tuple[float, ...]:
    """The map from output to source coordinates, by Python's own sine and rounding: an image rotates as in Pillow."""
    if op != "rotate":
        moved = {"shear_x": (1, arg), "shear_y": (3, arg), "translate_x": (2, arg), "translate_y": (5, arg)}
        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        place, value = moved.get(op, (0, 1.0))
        matrix[place] = value
        return tuple(matrix)
    degrees = arg % 360.0
    angle = -math.radians(degrees)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cosine, sine, cosine * -x + sine * -y + 0.0 + x, -sine, cosine, -sine * -x + cosine * -y + 0.0 + y
