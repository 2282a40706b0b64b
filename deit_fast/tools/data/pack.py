"""Packs a data set, and re-encodes what is too large; `deit_fast/data/sources/pack.py` writes the shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...data import Dataset, decode
from ...data.decode import opened
from ...data.sources.pack import encoded, stored, write_pack

LIMITS = {"max_side": (0, 65_000), "quality": (1, 95), "shard_images": (1, 10**7), "threads": (1, 1024)}


def check_limits(given: Mapping[str, object]) -> None:
    """Raise ValueError for the first argument of `pack` that is outside its range."""
    for name, (low, high) in LIMITS.items():
        if not low <= cast(int, given[name]) <= high:
            raise ValueError(f"--{name.replace('_', '-')} lies between {low} and {high}, got {given[name]}")


def pack(
    splits: Mapping[str, Dataset],
    folder: Path,
    *,
    max_side: int = 0,
    quality: int = 90,
    shard_images: int = 5000,
    threads: int = 4,
    advance: Callable[[int], None] = lambda images: None,
) -> None:
    """Write or continue a packed data set; errors and `advance` are those of `write_pack`.

    Args:
        max_side: an image whose longer side is above this many pixels is re-encoded; 0: every file keeps its bytes.
        quality: of re-encoded JPEG.
        shard_images: images a shard.
        threads: that read, decode and encode.

    Raises:
        ValueError: a number outside its range; names its flag.
    """
    check_limits({"max_side": max_side, "quality": quality, "shard_images": shard_images, "threads": threads})
    form = {"max_side": max_side, "quality": quality if max_side else None, "shard_images": shard_images}
    encode = partial(_no_larger, max_side=max_side, quality=quality) if max_side else stored
    write_pack(splits, folder, form, encode=encode, threads=threads, advance=advance)


def _no_larger(image: bytes | NDArray[np.uint8], max_side: int, quality: int) -> bytes:
    if not isinstance(image, bytes):
        return stored(image)
    with opened(image) as header:
        if max(header.size) <= max_side:
            return image
    smaller = Image.fromarray(decode(image))
    smaller.thumbnail((max_side, max_side), Image.Resampling.BICUBIC, reducing_gap=None)
    return encoded(smaller, "JPEG", quality=quality)
