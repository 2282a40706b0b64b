"""The last stage in NumPy: normalise, erase, mix, and the layout; see `csrc/arithmetic/{normalise,noise,mix}.h`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..mix import MIX, MODES
from ..plan import ROW
from .noise import noise


def normalised_levels(mean: list[float], std: list[float]) -> NDArray[np.float32]:
    """What the 256 levels become in each channel, (3, 256): (x / 255 − mean) / std in float32.

    Source: torchvision's ToTensor and Normalize.
    """
    unit = np.arange(256, dtype=np.float32) / np.float32(255)
    return (unit - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def values_of(image: NDArray[np.uint8], row: np.void, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The normalised image (S, S, 3) with its erased box filled."""
    values = np.stack([levels[channel][image[..., channel]] for channel in range(3)], axis=-1)
    if row["erase"]:
        top, left, height, width = row["erased"].tolist()
        y, x = np.mgrid[top : top + height, left : left + width]
        values[top : top + height, left : left + width] = noise(row, y * len(image) + x)
    return values


def check_mix(mix: NDArray[np.void], size: int) -> None:
    """Raise ValueError for the first row that mixes what is not there."""
    box = mix["box"].astype(np.int64)
    with np.errstate(invalid="ignore"):
        lam_fits = (mix["lam"] >= 0) & (mix["lam"] <= 1)
    checks: Sequence[tuple[str, Any]] = (
        ("the partner is outside the batch", (mix["partner"] >= 0) & (mix["partner"] < len(mix))),
        ("the mode is unknown", (mix["mode"] >= 0) & (mix["mode"] < len(MODES))),
        ("lam is outside [0, 1]", lam_fits),
        ("the box leaves the output", (box >= 0).all(1) & (box[:, :2] + box[:, 2:] <= size).all(1)),
    )
    good = np.all([passed for _, passed in checks], axis=0)
    if not good.all():
        index = int(np.argmin(good))
        raise ValueError(f"mix row {index}: {next(text for text, passed in checks if not passed[index])}")


def checked_mix(mix: Tensor, size: int) -> Tensor:
    """A copy of the rows, all of which mix what is there."""
    check_mix(mix.numpy().view(MIX)[:, 0], size)
    return mix.clone()


def mixed(own: NDArray[np.float32], partner: NDArray[np.float32], mix: np.void) -> NDArray[np.float32]:
    """One image (S, S, 3) with its partner, in float32: timm's x · lam + partner · (1 − lam), or the pasted box."""
    mode = MODES[mix["mode"]]
    if mode == "mixup":
        return own * np.float32(mix["lam"]) + partner * np.float32(1.0 - mix["lam"])
    if mode == "cutmix":
        top, left, height, width = mix["box"].tolist()
        own = own.copy()
        own[top : top + height, left : left + width] = partner[top : top + height, left : left + width]
    return own


def finish(
    images: Tensor,
    rows: Tensor,
    mix: Tensor | None,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    layout: str,
    patch: int,
) -> Tensor:
    """uint8 (B, S, S, 3) after the ops into `layout`; see `apply`."""
    table, levels = rows.numpy().view(ROW)[:, 0], normalised_levels(mean, std)
    batch, size = images.shape[:2]
    values = np.empty((batch, size, size, 3), np.float32)
    for index, (image, row) in enumerate(zip(images.numpy(), table, strict=True)):
        values[index] = values_of(image, row, levels)
    if mix is not None:
        mixes = mix.numpy().view(MIX)[:, 0]
        check_mix(mixes, size)
        values = np.stack([mixed(own, values[m["partner"]], m) for own, m in zip(values, mixes, strict=True)])
    result = torch.from_numpy(values).to(dtype)
    if layout == "patches":
        grid = size // patch
        result = result.reshape(batch, grid, patch, grid, patch, 3).permute(0, 1, 3, 5, 2, 4)
        return result.reshape(batch, grid * grid, 3 * patch * patch)
    result = result.permute(0, 3, 1, 2)
    return result.clone(memory_format=torch.contiguous_format) if layout == "nchw" else result
