"""Decode only the part of a JPEG file that its crops need, if the optional binary for it is built.

    crops = RandomCrops(policy.numbers(seed), counters, image_of_row)   # of a batch
    box = crops.box(image, height, width)                               # (top, left, height, width)
    box = decodable(box, width)
    decode_part(data, box, pixels)

A random resized crop keeps half of an image on average. libjpeg-turbo skips most of the work beside and above it and
all work below it. The pixels are those of the whole image.

Without the binary (`missing` is the reason) whole images are decoded: the same batches of sound files, a little later.
Damage behind the part in a file with an end marker is only found by decoding all of it, so whether such a file counts
as bad can depend on which crops were drawn.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_kernels import _extension

BLOCK = 32  # columns: a multiple of the blocks of every chroma subsampling


class Box(NamedTuple):
    """Part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class _Library(NamedTuple):
    random_box: Callable[..., bool]
    decode_jpeg_part: Callable[..., bool]


def _load() -> tuple[_Library | None, str]:
    hint = "to build it, type: pip install -e .  (needs a C++20 compiler and libjpeg-turbo's jpeglib.h)"
    found = sorted(Path(__file__).parent.glob("_jpeg_part.*so"))
    if not found:
        return None, f"the binary is not built; {hint}"
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    try:
        if reason := _extension.other_interface(found[0]):
            return None, f"{reason}; {hint}"
        # Calls of microseconds keep Python's lock (PyDLL), long ones release it (CDLL).
        random_box = ctypes.PyDLL(str(found[0])).deit_random_box
        random_box.argtypes = [pointer, number, pointer, number, number, number, pointer]
        decode_jpeg_part = ctypes.CDLL(str(found[0])).deit_decode_jpeg_part
        decode_jpeg_part.argtypes = [ctypes.c_char_p, number, pointer, pointer]
        random_box.restype = decode_jpeg_part.restype = ctypes.c_bool
    except (OSError, AttributeError) as error:
        return None, f"{found[0].name} does not load ({error}); {hint}"
    return _Library(random_box, decode_jpeg_part), ""


_library, missing = _load()
_Four = ctypes.c_int32 * 4


class RandomCrops:
    """The random resized crops of a batch, from the policy's `numbers` with the seed.

    Args:
        counters: int64 (b, 3), epoch, sample and copy of each row.
        image_of_row: int64 (b,), which of the batch's n images a row shows; every image has a row.
    """

    def __init__(self, numbers: NDArray[np.void], counters: NDArray[np.int64], image_of_row: NDArray[np.int64]):
        self._numbers = numbers
        self._counters = np.ascontiguousarray(counters[np.argsort(image_of_row, kind="stable")], np.int64)
        self._ends = np.cumsum(np.bincount(image_of_row)).tolist()
        self._addresses = numbers.ctypes.data, self._counters.ctypes.data

    def box(self, image: int, height: int, width: int) -> Box | None:
        """The smallest box that holds all crops of an image of this size; None if it is unknown."""
        if _library is None:
            return None
        first, end, box = self._ends[image - 1] if image else 0, self._ends[image], _Four()
        numbers, counters = self._addresses
        place = counters + first * self._counters.strides[0]
        known = _library.random_box(numbers, self._numbers.nbytes, place, end - first, height, width, box)
        return Box(*box) if known else None


def decodable(box: Box, width: int) -> Box:
    """The box to decode for `box`, in an image of this width, so that its pixels are those of the whole image.

    Not narrower than BLOCK: libjpeg does not smooth the chroma of fewer than six columns.
    """
    left = max(min(box.left - 1, width - BLOCK), 0) // BLOCK * BLOCK
    right = min(max(box.left + box.width + 1, left + BLOCK), width)
    return Box(box.top, left, box.height, right - left)


def decode_part(data: bytes, box: Box, pixels: NDArray[np.uint8]) -> bool:
    """Decode a box of a JPEG file into contiguous uint8 (height, width, 3). From any thread, without Python's lock.

    Its left edge is a multiple of BLOCK. Its first and last columns differ from the whole image's unless at its edges.
    False: libjpeg gave a warning, and the pixels are undefined.
    """
    if _library is None:
        return False
    return _library.decode_jpeg_part(data, len(data), _Four(*box), pixels.ctypes.data)
