"""Near duplicates: one picture that is in a data set twice, cropped, brightened or compressed anew.

    found = near_duplicates(grey)           # uint8 (N, SIDE, SIDE), as `look` gives them

Two sieves. (1) A perceptual hash (pHash: the signs of the 63 lowest frequencies of the discrete cosine transform of the
small grey copy; Zauner 2010) of every image is compared with those of every other and of five windows of it, the four
corners and the middle of 0.9 of its side: BITS of 63 may differ, as a crop leaves them. (2) Windows of one image, the
whole and 25 places each of 0.95 and 0.9 of its side, are compared with the other image as 16 x 16 grey pixels. The best
correlation must reach CORRELATION; a correlation ignores brightness and contrast. Where the images of a set are so
alike that this finds more than CROWD pairs an image, such as digits of a few pixels, they must correlate by more.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .look import SIDE

BITS, CORRELATION = 16, 0.92
STRICTER = (CORRELATION, 0.96, 0.98, 0.99)  # the first of which no more than CROWD pairs an image correlate by
CROWD = 0.2
FLAT = 3.0  # standard deviation in grey levels below which an image shows nothing that could be compared
MOST = 20_000  # pairs whose pixels are compared, those of the fewest bits
_WAVES = 8  # frequencies of each direction
_ROWS, _COLUMNS = 32, 4096  # hashes that are compared at a time, so that they stay in a core's cache
_PAIRS = 512  # whose pixels are compared at a time
_ONES = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)

Window = tuple[float, float, float]  # top, left, side, in shares of an image
_WHOLE: Window = (0.0, 0.0, 1.0)


class Pair(NamedTuple):
    """Two images, first < second, indices into `grey`."""

    first: int
    second: int
    bits: int  # of 63 that differ
    correlation: float


@dataclass
class Found:
    """The pairs, the most alike first, and what was left out."""

    pairs: list[Pair] = field(default_factory=list)
    flat: int = 0  # images that show nothing that could be compared
    left: int = 0  # pairs beyond MOST, whose pixels were not compared
    correlation: float = CORRELATION  # least of a pair


def near_duplicates(grey: NDArray[np.uint8], threads: int = 1) -> Found:
    """The pairs of images that show the same."""
    images = torch.from_numpy(grey).float()
    kept = torch.nonzero(images.flatten(1).std(1) >= FLAT)[:, 0]
    images = images[kept]
    hashes = np.stack([_hash(images, window) for window in _windows(2)])  # (windows, n)
    with ThreadPoolExecutor(threads, "deit_fast-duplicates") as pool:
        parts = list(pool.map(lambda top: _alike(hashes, top), range(0, len(images), _ROWS)))
    first, second, bits = np.concatenate(parts, 1) if parts else np.zeros((3, 0), np.int64)
    nearest = np.argsort(bits, kind="stable")[:MOST]
    found = Found(flat=len(grey) - len(images), left=len(bits) - len(nearest))
    first, second, bits = first[nearest], second[nearest], bits[nearest]
    alike = np.maximum(_correlations(images, first, second), _correlations(images, second, first))
    for found.correlation in STRICTER:
        if np.sum(alike >= found.correlation) <= CROWD * len(images):
            break
    for at in np.flatnonzero(alike >= found.correlation).tolist():
        numbers = int(kept[first[at]]), int(kept[second[at]]), int(bits[at])
        found.pairs.append(Pair(*numbers, float(alike[at])))
    found.pairs.sort(key=lambda pair: (-pair.correlation, pair.bits))
    return found


def _alike(hashes: NDArray[np.uint64], top: int) -> NDArray[np.int64]:
    """(3, pairs): first, second, bits of the alike pairs of _ROWS images and those behind them."""
    rows, parts = hashes[:, top : top + _ROWS], []
    words, ones = np.empty((rows.shape[1], _COLUMNS), np.uint64), np.empty((rows.shape[1], _COLUMNS), np.uint8)
    for left in range(top, hashes.shape[1], _COLUMNS):
        columns = hashes[:, left : left + _COLUMNS]
        width = columns.shape[1]
        bits = np.full((rows.shape[1], width), 64, np.uint8)
        pairs = [(window, 0) for window in range(len(hashes))] + [(0, window) for window in range(1, len(hashes))]
        for mine, theirs in pairs:
            np.bitwise_xor(rows[mine][:, None], columns[theirs], out=words[:, :width])
            np.minimum(bits, _count(words[:, :width], ones[:, :width]), out=bits)
        first, second = np.nonzero(bits <= BITS)
        ordered = first + top < second + left
        first, second = first[ordered], second[ordered]
        parts.append(np.stack([first + top, second + left, bits[first, second]]))
    return np.concatenate(parts, 1).astype(np.int64)


def _count(words: NDArray[np.uint64], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bits that are 1."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words, out=out)
    return _ONES[np.ascontiguousarray(words).view(np.uint16)].reshape(*words.shape, 4).sum(-1, dtype=np.uint8)


def _correlations(images: Tensor, whole: NDArray[np.int64], cut: NDArray[np.int64]) -> NDArray[np.float32]:
    """(pairs,) of each image `whole` with the window of the image `cut` that fits best."""
    best = np.full(len(whole), -1.0, np.float32)
    for part in np.array_split(np.argsort(cut, kind="stable"), max(1, len(cut) // _PAIRS)):  # each image once or twice
        numbers, place = np.unique(cut[part], return_inverse=True)
        windows = torch.stack([_shape(images[numbers], window) for window in _windows(4)], 1)  # (images, windows, 256)
        fits = windows[place] @ _shape(images[whole[part]], _WHOLE)[:, :, None]
        best[part] = fits.amax((1, 2)).numpy()
    return best


def _shape(images: Tensor, window: Window) -> Tensor:
    """(n, 256): a window of each image as 16 x 16 pixels without mean and contrast."""
    top, left, side = window
    return _standard((_smaller(top, side) @ images @ _smaller(left, side).T).flatten(1))


def _standard(values: Tensor) -> Tensor:
    values = values - values.mean(1, keepdim=True)
    return values / values.norm(dim=1, keepdim=True).clamp_min(1e-6)


@lru_cache(maxsize=2)
def _windows(steps: int) -> tuple[Window, ...]:
    """The whole, and windows: for 2 steps the corners and the middle of 0.9, for 4 all 25 places of 0.95 and 0.9."""
    if steps == 2:
        return _WHOLE, *((row * 0.05, column * 0.05, 0.9) for row, column in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1)))
    return _WHOLE, *(
        (row * (1 - side) / steps, column * (1 - side) / steps, side)
        for side in (0.95, 0.9) for row in range(steps + 1) for column in range(steps + 1)
    )  # fmt: skip


def _hash(images: Tensor, window: Window) -> NDArray[np.uint64]:
    """(n,) the signs of a window's lowest frequencies as bits, 0 for the mean."""
    place = (torch.arange(SIDE) + 0.5) * torch.pi / SIDE
    waves = torch.cos(torch.arange(_WAVES)[:, None] * place)
    top, left, side = window
    found = ((waves @ _enlarge(top, side)) @ images @ (waves @ _enlarge(left, side)).T).flatten(1) > 0
    found[:, 0] = False
    return np.packbits(found.numpy(), axis=1).view(np.uint64)[:, 0]


@lru_cache(maxsize=64)
def _smaller(start: float, side: float) -> Tensor:
    """(SIDE / 2, SIDE): a window's pixels, two by two."""
    return _enlarge(start, side).view(SIDE // 2, 2, SIDE).mean(1)


@lru_cache(maxsize=64)
def _enlarge(start: float, side: float) -> Tensor:
    """(SIDE, SIDE): linear interpolation of a window's pixels from those of the image."""
    place = ((start + side * (torch.arange(SIDE) + 0.5) / SIDE) * SIDE - 0.5).clamp(0, SIDE - 1)
    below = place.floor().long().clamp_max(SIDE - 2)
    matrix, rows = torch.zeros(SIDE, SIDE), torch.arange(SIDE)
    matrix[rows, below] = 1 - (place - below)
    matrix[rows, below + 1] += place - below
    return matrix
