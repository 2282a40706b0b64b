"""exp and log with the same bits in NumPy and C++ (`csrc/augment/exact_math.h`).

libm, NumPy and CUDA disagree in the last bit of exp and log, and a crop box is rounded from such a value, so a plan
would depend on where it was drawn. These are built of + − × / only, in one fixed order; sqrt is correctly rounded
everywhere and needs no help. Error below 3 units in the last place.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

# ln 2 in two parts: k * _LN2_HIGH is exact for |k| < 2**20, _LN2_LOW holds the rest.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_INVERSE_LN2 = 1.44269504088896338700e00
_SQRT_HALF = 0.70710678118654752440


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
