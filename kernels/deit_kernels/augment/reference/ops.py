"""The ops in NumPy, each equal to Pillow's and timm's pixels.

In C++ they are `csrc/arithmetic/colour.h`, `histogram.h`, `affine.h` and `blur.h`.

Source: Pillow 12 ImageOps, ImageEnhance, libImaging/{Convert,Blend,Filter,Geometry,BoxBlur}.c; timm 1.0 auto_augment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..plan import OP
from ..policy import FILTERS
from ..rand_augment import MAX_DEVIATION, OPS

Image = NDArray[np.uint8]
LEVELS = np.arange(256)


def calls_are_good(calls: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which calls are of a known op, filter and mode."""
    op = calls["op"]
    return (op >= 0) & (op < len(OPS)) & (calls["filter"] < len(FILTERS)) & (calls["fast"] <= 1)


def gray(image: Image) -> NDArray[np.int32]:
    """ITU-R 601 in 16-bit fixed point, (H, W): Pillow's convert("L")."""
    return (image.astype(np.int32) @ np.array([19595, 38470, 7471], np.int32) + 0x8000) >> 16


def blend(degenerate: NDArray[np.int32] | int, image: NDArray, factor: float) -> Image:
    """Away from `degenerate` by `factor`, in float32, clipped and truncated."""
    image, degenerate = np.asarray(image, np.int32), np.asarray(degenerate, np.int32)
    with np.errstate(invalid="ignore", over="ignore"):
        value = degenerate.astype(np.float32) + np.float32(factor) * (image - degenerate).astype(np.float32)
    return np.where(value > 0, np.minimum(value, np.float32(255)), np.float32(0)).astype(np.uint8)


def clamped(value: float, low: int, high: int) -> int:
    """`value` rounded down, inside [low, high]; NaN is low."""
    return (int(value) if value < high else high) if value > low else low


def auto_contrast_table(count: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Stretches the levels in use to [0, 255]."""
    used = np.flatnonzero(count)
    if used[0] == used[-1]:
        return LEVELS.astype(np.uint8)
    scale = 255.0 / float(used[-1] - used[0])
    return np.clip((LEVELS * scale + -float(used[0]) * scale).astype(np.int64), 0, 255).astype(np.uint8)


def equalize_table(count: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Spreads the levels so that each is used about equally often."""
    used = np.flatnonzero(count)
    step = int(count.sum() - count[used[-1]]) // 255
    if len(used) <= 1 or step == 0:
        return LEVELS.astype(np.uint8)
    below = step // 2 + np.cumsum(count) - count
    return np.minimum(below // step, 255).astype(np.uint8)


def by_histogram(image: Image, op: str) -> Image:
    """auto_contrast and equalize: each channel through the table of its histogram."""
    make = auto_contrast_table if op == "auto_contrast" else equalize_table
    channels = [make(np.bincount(channel.reshape(-1), minlength=256))[channel] for channel in image.transpose(2, 0, 1)]
    return np.stack(channels, axis=-1)


def by_table(image: Image, op: str, arg: float) -> Image:
    """The ops that are one table of 256 levels."""
    table: NDArray
    if op == "invert":
        table = 255 - LEVELS
    elif op == "posterize":
        table = LEVELS & (0xFF00 >> clamped(arg, 0, 8))
    elif op == "solarize":
        table = np.where(clamped(arg, 0, 256) > LEVELS, LEVELS, 255 - LEVELS)
    elif op == "solarize_add":
        table = np.where(LEVELS < 128, np.minimum(LEVELS + clamped(arg, 0, 255), 255), LEVELS)
    else:
        mean = int(gray(image).sum() / (image.shape[0] * image.shape[1]) + 0.5) if op == "contrast" else 0
        table = blend(mean, LEVELS, arg)
    return table.astype(np.uint8)[image]


def sharpen(image: Image, factor: float) -> Image:
    """Away from the 3 × 3 mean with a centre of weight 5; the outermost pixels stay as they are."""
    height, width = image.shape[:2]
    if height < 3 or width < 3:
        return image
    wide = image.astype(np.int32)
    inner = wide[1:-1, 1:-1]
    total = 4 * inner + sum(wide[y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3))
    result = image.copy()
    result[1:-1, 1:-1] = blend((2 * total + 13) // 26, inner, factor)
    return result


def _polynomial(taps: list[NDArray], d: NDArray) -> NDArray:
    if len(taps) == 2:
        return taps[0] + (taps[1] - taps[0]) * d
    v1, v2, v3, v4 = taps
    return v2 + (v3 - v1 + ((v1 - v2) * 2 + v3 - v4 + (v2 - v1 - v3 + v4) * d) * d) * d


def affine(image: Image, call: np.void) -> Image:
    """Interpolated at the matrix' image of every pixel's centre; the fill colour where that is outside."""
    real: Any = np.float32 if call["fast"] else np.float64
    height, width = image.shape[:2]
    with np.errstate(invalid="ignore", over="ignore"):
        matrix = call["matrix"].astype(real)
        x, y = (np.arange(side, dtype=real) + real(0.5) for side in (width, height))
        at_x = matrix[0] * x[None] + matrix[1] * y[:, None] + matrix[2]
        at_y = matrix[3] * x[None] + matrix[4] * y[:, None] + matrix[5]
    inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    left, above = at_x[inside] - real(0.5), at_y[inside] - real(0.5)
    column, row = np.floor(left).astype(np.int64), np.floor(above).astype(np.int64)
    dx, dy = (left - column.astype(real))[:, None], (above - row.astype(real))[:, None]
    steps = (-1, 0, 1, 2) if FILTERS[call["filter"]] == "bicubic" else (0, 1)
    lines = []
    for down in steps:
        line = np.clip(row + down, 0, height - 1)
        taps = [image[line, np.clip(column + right, 0, width - 1)].astype(real) for right in steps]
        lines.append(_polynomial(taps, dx))
    value = _polynomial(lines, dy)
    result = np.empty_like(image)
    result[:] = call["fill"]
    result[inside] = np.clip(value, 0, 255).astype(np.uint8)
    return result


def box_blur(deviation: float) -> tuple[int, int, int]:
    """A box's radius, and the weights × 2**24 of a pixel inside and of the next pixel on each side."""
    sigma = np.float32(min(max(deviation, 0.0), MAX_DEVIATION) if deviation == deviation else 0.0)
    one, two, three, six = (np.float32(number) for number in (1, 2, 3, 6))
    variance = sigma * sigma / three
    length = np.float32(np.sqrt(12.0 * float(variance) + 1.0))
    whole = np.float32(np.floor((float(length) - 1.0) / 2.0))
    part = (two * whole + one) * (whole * (whole + one) - three * variance)
    part = part / (six * (variance - (whole + one) * (whole + one)))
    box = whole + part
    radius, inner = int(box), int(np.float32(2**24) / (box * two + one))
    return radius, inner, (2**24 - (2 * radius + 1) * inner) // 2


def gaussian_blur(image: Image, deviation: float) -> Image:
    """Three box blurs along the lines, then three along the columns; pixels beyond the edge repeat it."""
    radius, inner, outer = box_blur(deviation)
    for axis in (1, 1, 1, 0, 0, 0):
        at, count = np.arange(image.shape[axis])[:, None], image.shape[axis]
        taps = np.clip(at + np.arange(-radius - 1, radius + 2), 0, count - 1)
        levels = np.moveaxis(image, axis, 0).astype(np.int64)
        inside = sum(levels[tap] for tap in taps.T[1:-1])
        total = inside * inner + (levels[taps[:, 0]] + levels[taps[:, -1]]) * outer
        image = np.moveaxis((total + 2**23 >> 24).astype(np.uint8), 0, axis)
    return image


def run_call(image: Image, call: np.void) -> Image:
    """One op on one image (H, W, 3)."""
    op, arg = OPS[call["op"]], float(call["arg"])
    if op == "none":
        return image
    if op in ("auto_contrast", "equalize"):
        return by_histogram(image, op)
    if op in ("invert", "posterize", "solarize", "solarize_add", "contrast", "brightness"):
        return by_table(image, op, arg)
    if op == "color":
        return blend(gray(image)[..., None], image, arg)
    if op == "sharpness":
        return sharpen(image, arg)
    if op == "gaussian_blur":
        return gaussian_blur(image, arg)
    return affine(image, call)


def run_ops(images: Tensor, calls: Tensor) -> Tensor:
    """uint8 (B, H, W, 3), each through its call, uint8 (B, OP.itemsize)."""
    table = calls.numpy().view(OP)[:, 0]
    good = calls_are_good(table)
    if not good.all():
        raise ValueError(f"call {int(np.argmin(good))}: an op, its filter or its mode is unknown")
    result = images.clone()
    for image, call in zip(result.numpy(), table, strict=True):
        image[:] = run_call(image, call)
    return result
