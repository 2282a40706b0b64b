"""The augmentation in NumPy, exact: what C++ and CUDA must equal bit for bit, and what runs where they are not built.

`sample_rows` draws a plan, `place_rows` joins it with a batch, `resize_rows` crops, resizes and flips to uint8,
`finish` normalises into the layout asked for. Images stay uint8 between stages, as they do in a Pillow pipeline.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..philox import Stream, philox, uniform
from .exact_math import exp, log
from .plan import FILTERS, MAX_SIDE, ROW

PRECISION = 22  # bits of Pillow's fixed-point weights
CROP_TRIES = 10


class Draw(IntEnum):
    """The fourth counter word: which numbers of an image's stream a decision uses. Each stage owns a block of 16."""

    CROP = 0  # try t uses CROP + t: area, ratio, top, left
    FLIP = 16  # first word: flip


def _one_of(word: NDArray[np.uint32], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """An integer in [0, count): the high half of word × count."""
    return ((word.astype(np.uint64) * count.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def random_boxes(
    keys: NDArray[np.int64], seed: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> NDArray[np.int64]:
    """Boxes (B, 4) as top, left, height, width for keys (B, 5) of epoch, sample, copy, height, width."""
    height, width = keys[:, 3], keys[:, 4]
    log_low, log_high = log(ratio[0]), log(ratio[1])

    # The fallback of ten rejected tries: the largest central box whose ratio is allowed.
    shape = width / height
    box_height = np.where(shape < ratio[0], np.maximum(np.rint(width / ratio[0]), 1), height).astype(np.int64)
    box_width = np.where(shape > ratio[1], np.maximum(np.rint(height * ratio[1]), 1), width).astype(np.int64)
    boxes = np.stack([(height - box_height) // 2, (width - box_width) // 2, box_height, box_width], axis=1)

    pending = np.arange(len(keys))
    for attempt in range(CROP_TRIES):
        epoch, sample, copy, high, wide = keys[pending].T
        bits = philox(seed, Stream.PLAN, epoch, sample, copy, Draw.CROP + attempt)
        unit = uniform(bits)
        area = (scale[0] + (scale[1] - scale[0]) * unit[:, 0]) * (wide * high)
        aspect = exp(log_low + (log_high - log_low) * unit[:, 1])
        box_width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        box_height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = (1 <= box_width) & (box_width <= wide) & (1 <= box_height) & (box_height <= high)
        top = _one_of(bits[:, 2], np.where(fits, high - box_height + 1, 1))
        left = _one_of(bits[:, 3], np.where(fits, wide - box_width + 1, 1))
        boxes[pending[fits]] = np.stack([top, left, box_height, box_width], axis=1)[fits]
        pending = pending[~fits]
    return boxes


def sample_rows(
    keys: Tensor,
    seed: int,
    size: int,
    crop: str,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    crop_ratio: float,
    filter: int,
    flip: float,
) -> Tensor:
    """Plan rows uint8 (B, ROW.itemsize), not placed, for int64 keys (B, 5); see `sample_plan`."""
    key = keys.numpy()
    rows = np.zeros(len(key), ROW)
    height, width = key[:, 3], key[:, 4]
    rows["offset"], rows["height"], rows["width"], rows["filter"] = -1, height, width, filter
    if crop == "random_resized":
        rows["box"] = random_boxes(key, seed, scale, ratio)
        rows["resized"] = size
    else:
        short = int(size / crop_ratio)
        rows["box"][:, 2], rows["box"][:, 3] = height, width
        shorter = np.minimum(height, width)
        resized = np.stack([(short * side / shorter).astype(np.int64) for side in (height, width)], axis=1)
        rows["resized"] = resized
        rows["window"] = np.rint((resized - size) / 2.0)
    bits = philox(seed, Stream.PLAN, key[:, 0], key[:, 1], key[:, 2], Draw.FLIP)
    rows["flip"] = uniform(bits[:, 0]) < flip
    return torch.from_numpy(rows.view(np.uint8).reshape(len(key), ROW.itemsize))


def check_rows(rows: NDArray[np.void], data_bytes: int, size: int) -> None:
    """Raise ValueError for the first row that would read outside its image or the buffer."""
    height, width = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
    offset, filter, flip = rows["offset"], rows["filter"], rows["flip"]
    top, left, box_height, box_width = rows["box"].T.astype(np.int64)
    window, resized = rows["window"].astype(np.int64), rows["resized"].astype(np.int64)
    sides = np.stack([height, width])
    checks = (
        ("an image's sides lie in [1, 2**24 - 1]", (sides >= 1).all(0) & (sides <= MAX_SIDE).all(0)),
        ("the image leaves the data buffer", (offset >= 0) & (offset <= data_bytes - 3 * height * width)),
        ("the box is empty", (box_height >= 1) & (box_width >= 1)),
        (
            "the box leaves the image",
            (top >= 0) & (top + box_height <= height) & (left >= 0) & (left + box_width <= width),
        ),
        ("the window leaves the resized image", (window >= 0).all(1) & (window + size <= resized).all(1)),
        ("the filter or flip is unknown", (filter >= 0) & (filter < len(FILTERS)) & (flip >= 0) & (flip <= 1)),
    )
    good = np.logical_and.reduce([passed for _, passed in checks])
    if not good.all():
        index = int(np.argmin(good))
        raise ValueError(f"row {index}: {next(text for text, passed in checks if not passed[index])}: {rows[index]}")


def place_rows(rows: Tensor, offset: Tensor, height: Tensor, width: Tensor, data_bytes: int, size: int) -> Tensor:
    """A checked copy of the rows with the images' offsets; see `AugmentPlan.place`."""
    placed = rows.clone()
    table = placed.numpy().view(ROW)[:, 0]
    other = (table["height"] != height.numpy()) | (table["width"] != width.numpy())
    if other.any():
        index = int(np.argmax(other))
        raise ValueError(
            f"row {index}: the plan was drawn for an image of {table['height'][index]} x {table['width'][index]}, "
            f"the batch holds one of {height[index]} x {width[index]}"
        )
    table["offset"] = offset.numpy()
    check_rows(table, data_bytes, size)
    return placed


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near, far = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def resize_weights(
    before: int, after: int, start: int, count: int, filter: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """What the outputs [start, start + count) of a resize read: sources and their fixed-point weights, (count, taps).

    Outputs with fewer taps than the longest are filled up with weights of 0.

    Source: Pillow 12 src/libImaging/Resample.c, precompute_coeffs and normalize_coeffs_8bpc. The sums run tap by tap,
    since the order of a floating-point sum decides its last bit.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    support = (1.0, 2.0)[filter] * stretch
    centre = (start + np.arange(count) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    taps = np.minimum((centre + support + 0.5).astype(np.int64), before) - first
    source = first[:, None] + np.arange(taps.max())
    inside = source < (first + taps)[:, None]
    weight = (_bilinear, _bicubic)[filter]((source - centre[:, None] + 0.5) * (1.0 / stretch)) * inside
    total = np.zeros(count)
    for column in weight.T:
        total = total + column
    weight = weight / np.where(total == 0.0, 1.0, total)[:, None]
    fixed = np.trunc(weight * (1 << PRECISION) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)
    return np.minimum(source, before - 1), fixed


def resize_pass(image: NDArray[np.uint8], source: NDArray[np.int64], weight: NDArray[np.int32]) -> NDArray[np.uint8]:
    """One pass over the first axis, (before, …) -> (count, …)."""
    lines = image.reshape(len(image), -1).astype(np.int32)
    total = np.full((len(source), lines.shape[1]), 1 << (PRECISION - 1), np.int32)
    for tap in range(source.shape[1]):
        total += weight[:, tap, None] * lines[source[:, tap]]
    levels = np.clip(total >> PRECISION, 0, 255)
    return levels.astype(np.uint8).reshape(len(source), *image.shape[1:])


def resize_row(data: NDArray[np.uint8], row: np.void, size: int) -> NDArray[np.uint8]:
    """One image (size, size, 3): crop, horizontal pass, vertical pass, flip."""
    height, width = int(row["height"]), int(row["width"])
    image = data[row["offset"] :][: height * width * 3].reshape(height, width, 3)
    top, left, box_height, box_width = row["box"].tolist()
    image = image[top : top + box_height, left : left + box_width]
    (resized_height, resized_width), (window_top, window_left) = row["resized"].tolist(), row["window"].tolist()
    # A pass between equal sizes has the weights 0 and 1 and copies, so Pillow's skipping it needs no case of its own.
    across = resize_weights(box_width, resized_width, window_left, size, int(row["filter"]))
    down = resize_weights(box_height, resized_height, window_top, size, int(row["filter"]))
    lines = resize_pass(image.transpose(1, 0, 2), *across).transpose(1, 0, 2)
    image = resize_pass(lines, *down)
    return image[:, ::-1] if row["flip"] else image


def resize_rows(data: Tensor, rows: Tensor, size: int) -> Tensor:
    """uint8 (B, size, size, 3) for placed rows."""
    table = rows.numpy().view(ROW)[:, 0]
    check_rows(table, data.numel(), size)
    images = np.empty((len(table), size, size, 3), np.uint8)
    for index, row in enumerate(table):
        images[index] = resize_row(data.numpy(), row, size)
    return torch.from_numpy(images)


def normalised_levels(mean: list[float], std: list[float], dtype: torch.dtype) -> Tensor:
    """What the 256 pixel values become in each channel, (3, 256): (x / 255 − mean) / std in float32, then rounded.

    Source: torchvision's ToTensor and Normalize.
    """
    unit = np.arange(256, dtype=np.float32) / np.float32(255)
    levels = (unit - np.float32(mean)[:, None]) / np.float32(std)[:, None]
    return torch.from_numpy(levels).to(dtype)


def finish(images: Tensor, mean: list[float], std: list[float], dtype: torch.dtype, layout: str, patch: int) -> Tensor:
    """Normalise uint8 (B, S, S, 3) into `layout`; see `apply`."""
    levels = normalised_levels(mean, std, dtype)
    bits = levels.view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
    pixels = images.numpy()
    values = np.stack([bits[channel][pixels[..., channel]] for channel in range(3)], axis=-1)
    batch, size = pixels.shape[:2]
    if layout == "patches":
        grid = size // patch
        values = values.reshape(batch, grid, patch, grid, patch, 3).transpose(0, 1, 3, 5, 2, 4)
        values = values.reshape(batch, grid * grid, 3 * patch * patch)
    else:
        values = values.transpose(0, 3, 1, 2)
    if layout == "nchw":
        values = np.ascontiguousarray(values)
    return torch.from_numpy(values).view(dtype)
