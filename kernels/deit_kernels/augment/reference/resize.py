"""Joins a plan with a batch, crops, resizes and flips, with the pixels of Pillow; see `csrc/arithmetic/resample.h`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..plan import MAX_SIDE, ROW, heaviest_first
from ..policy import ERASE_MODES, FILTERS
from .ops import calls_are_good

PRECISION = 22  # bits of Pillow's fixed-point weights


def check_rows(rows: NDArray[np.void], data_bytes: int, size: int) -> None:
    """Raise ValueError for the first row that would read outside its image or the buffer."""
    height, width = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
    offset, filter, flip = rows["offset"], rows["filter"], rows["flip"]
    top, left, box_height, box_width = rows["box"].T.astype(np.int64)
    window, resized, pad = (rows[name].astype(np.int64) for name in ("window", "resized", "pad"))
    pad = pad[:, None]
    reflects = (pad == 0) | ((pad > 0) & (pad < resized) & (resized <= MAX_SIDE))
    window_fits = reflects & (window >= -pad) & (window + size <= resized + pad)
    ops, erased = rows["ops"], rows["erased"].astype(np.int64)
    erased_fits = (erased >= 0).all(1) & (erased[:, :2] + erased[:, 2:] <= size).all(1)
    sides = np.stack([height, width])
    checks: Sequence[tuple[str, Any]] = (
        ("an image's sides lie in [1, 2**24 - 1]", (sides >= 1).all(0) & (sides <= MAX_SIDE).all(0)),
        ("the image leaves the data buffer", (offset >= 0) & (offset <= data_bytes - 3 * height * width)),
        ("the box is empty", (box_height >= 1) & (box_width >= 1)),
        (
            "the box leaves the image",
            (top >= 0) & (top + box_height <= height) & (left >= 0) & (left + box_width <= width),
        ),
        ("the window leaves the resized image", window_fits.all(1)),
        ("the filter or flip is unknown", (filter >= 0) & (filter < len(FILTERS)) & (flip >= 0) & (flip <= 1)),
        ("an op, its filter or its mode is unknown", calls_are_good(ops).all(1)),
        (
            "the erased box leaves the output, or its mode is unknown",
            erased_fits & (rows["erase"] >= 0) & (rows["erase"] < len(ERASE_MODES)),
        ),
    )
    good = np.all([passed for _, passed in checks], axis=0)
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
    if len(table) <= np.iinfo(np.uint16).max:
        order = heaviest_first(table)
        table["order"] = order
        table["turn"][order] = np.arange(len(order))
    return placed


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near, far = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def resize_weights(
    before: int, after: int, outputs: NDArray[np.int64], filter: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """What `outputs` of a resize read: sources and their fixed-point weights, (count, taps).

    Outputs with fewer taps than the longest are filled up with weights of 0.

    Source: Pillow 12 src/libImaging/Resample.c, precompute_coeffs and normalize_coeffs_8bpc. The sums run tap by tap,
    since the order of a floating-point sum decides its last bit.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    support = (1.0, 2.0)[filter] * stretch
    centre = (outputs + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    taps = np.minimum((centre + support + 0.5).astype(np.int64), before) - first
    source = first[:, None] + np.arange(taps.max())
    inside = source < (first + taps)[:, None]
    weight = (_bilinear, _bicubic)[filter]((source - centre[:, None] + 0.5) * (1.0 / stretch)) * inside
    total = np.zeros(len(outputs))
    for column in weight.T:
        total = total + column
    weight = weight / np.where(total == 0.0, 1.0, total)[:, None]
    fixed = np.trunc(weight * (1 << PRECISION) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)
    return np.minimum(source, before - 1), fixed


def reflected(start: int, count: int, resized: int) -> NDArray[np.int64]:
    """[start, start + count), mirrored at the first and last pixel: torchvision's padding_mode="reflect"."""
    at = np.abs(start + np.arange(count))
    return np.where(at >= resized, 2 * (resized - 1) - at, at)


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
    across = resize_weights(box_width, resized_width, reflected(window_left, size, resized_width), int(row["filter"]))
    down = resize_weights(box_height, resized_height, reflected(window_top, size, resized_height), int(row["filter"]))
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
