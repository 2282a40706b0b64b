"""Noise of erased pixels: normal numbers in float32, with the same bits in NumPy and C++ (`csrc/arithmetic/noise.h`).

Built of + − × and sqrt, which are correctly rounded everywhere, in one fixed order. Four pixels whose numbers y · S + x
follow a multiple of 4 are a quad: a counter of Philox gives the four numbers of one channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...philox import Stream, philox
from ..policy import ERASE_MODES

# Of ln m² / (1 − m), a polynomial of m − 1 in [√½ − 1, √2 − 1]; cos πx/4 and sin πx/4 / x, times √½, of x² in [0, 1].
_LOG = (0.202135488, -0.324450791, 0.345017016, -0.398003429, 0.499398172, -0.666701198, 1.00000727, -1.99999988)
_COS = (-0.000225482567, 0.0112075824, -0.21808888, 0.707106769)
_SIN = (-2.54236766e-05, 0.00176070095, -0.0570956431, 0.555360377)
_LN4 = np.float32(2 * np.log(2) * 2.0**-23)  # of an exponent where it stands in a float32
_ROOT_HALF, _ONE = 0x3F3504F3, 1 << 23
_SIGN = np.uint32(1 << 31)


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float32]) -> NDArray[np.float32]:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + np.float32(coefficient)
    return value


def pair(
    radius_word: NDArray[np.uint32], angle_word: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two independent normal numbers of mean 0 and deviation 1: Box and Muller. The largest is 6.56."""
    bits = ((radius_word & ~_SIGN) | np.uint32(1)).astype(np.float32).view(np.int32).astype(np.int64)
    e = (_ROOT_HALF + 32 * _ONE - 1 - bits) & -_ONE
    f = (bits + e - 31 * _ONE).astype(np.int32).view(np.float32) - np.float32(1 + 2.0**-23)
    radius = np.sqrt(_polynomial(_LOG, f) * f + e.astype(np.float32) * _LN4)
    x = (angle_word << np.uint32(1)).view(np.int32).astype(np.float32) * np.float32(2.0**-31)
    cosine, sine = _polynomial(_COS, x * x), _polynomial(_SIN, x * x) * x
    first, second = radius * (cosine - sine), radius * (cosine + sine)
    return (
        (first.view(np.uint32) ^ (angle_word & _SIGN)).view(np.float32),
        (second.view(np.uint32) ^ (radius_word & _SIGN)).view(np.float32),
    )


def noise(row: np.void, pixel: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the erased pixels (…) become, (…, 3); a function of seed, epoch, sample, copy and the pixel's place."""
    mode = ERASE_MODES[row["erase"]]
    if mode == "const":
        return np.zeros((*pixel.shape, 3), np.float32)
    if mode == "rand":
        pixel = np.zeros_like(pixel)
    counter = 3 * (pixel[..., None] // 4) + np.arange(3)
    word = philox(int(row["seed"]), Stream.NOISE, row["epoch"], row["sample"], row["copy"], counter)
    four = np.stack([*pair(word[..., 0], word[..., 1]), *pair(word[..., 2], word[..., 3])], axis=-1)
    return np.take_along_axis(four, (pixel % 4)[..., None, None], axis=-1)[..., 0]
