"""exp, log, sin, cos and normal numbers with the same bits in NumPy and C++ (`csrc/arithmetic/exact_math.h`).

libm, NumPy and CUDA disagree in the last bit of exp and log, and a crop box is rounded from such a value, so a plan
would depend on where it was drawn. These are built of + − × / only, in one fixed order; sqrt is correctly rounded
everywhere and needs no help. exp and log err by less than 3 units in the last place, sin and cos by less than 2**-52.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...philox import uniform

# ln 2 in two parts: k * _LN2_HIGH is exact for |k| < 2**20, _LN2_LOW holds the rest.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_INVERSE_LN2 = 1.44269504088896338700e00
_SQRT_HALF = 0.70710678118654752440
# pi / 2 in two parts: k * _HALF_PI_HIGH is exact for |k| < 2**20.
_HALF_PI_HIGH, _HALF_PI_LOW = 1.57079632673412561417e00, 6.07710050650619224932e-11
_TWO_OVER_PI = 6.36619772367581382433e-01


def exp(x: ArrayLike) -> NDArray[np.float64]:
    """e**x for |x| < 700: x = k ln 2 + r with |r| <= ln 2 / 2, then the Taylor series of r to the 13th power."""
    x = np.asarray(x, np.float64)
    k = np.rint(x * _INVERSE_LN2)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    series = np.full_like(r, 1.0 / math.factorial(13))
    for power in range(12, -1, -1):
        series = series * r + 1.0 / math.factorial(power)
    return np.ldexp(series, k.astype(np.int32))


def log(x: ArrayLike) -> NDArray[np.float64]:
    """ln x for normal x > 0: x = m 2**e with m in [√½, √2), then 2 artanh((m − 1) / (m + 1)) to the 23rd power."""
    m, e = np.frexp(np.asarray(x, np.float64))
    below = m < _SQRT_HALF
    m, e = np.where(below, m * 2.0, m), np.where(below, e - 1, e).astype(np.float64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / 23.0)
    for odd in range(21, 0, -2):
        series = series * square + 1.0 / odd
    return e * _LN2_HIGH + (e * _LN2_LOW + 2.0 * s * series)


def sin_cos(x: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """sin x, cos x for |x| < 2**20: x = k π/2 + r with |r| <= π/4, then the Taylor series to the 17th, 16th power."""
    x = np.asarray(x, np.float64)
    k = np.rint(x * _TWO_OVER_PI)
    r = (x - k * _HALF_PI_HIGH) - k * _HALF_PI_LOW
    z = r * r
    sine, cosine = np.full_like(r, 1.0 / math.factorial(17)), np.full_like(r, 1.0 / math.factorial(16))
    for term in range(7, -1, -1):
        sign = -1.0 if term % 2 else 1.0
        sine = sine * z + sign / math.factorial(2 * term + 1)
        cosine = cosine * z + sign / math.factorial(2 * term)
    sine = sine * r
    quadrant = k.astype(np.int32)
    swapped = (quadrant & 1) != 0
    s, c = np.where(swapped, cosine, sine), np.where(swapped, sine, cosine)
    return np.where(quadrant & 2, -s, s), np.where((quadrant + 1) & 2, -c, c)


def normals(
    radius_word: NDArray[np.uint32], angle_word: NDArray[np.uint32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two independent normal numbers of mean 0 and deviation 1 from two words: Box and Muller. The largest is 6.66."""
    radius = np.sqrt(-2.0 * log((radius_word.astype(np.float64) + 1.0) * 2.0**-32))
    sine, cosine = sin_cos(6.283185307179586 * uniform(angle_word))
    return radius * cosine, radius * sine
