"""Philox4x32-10 in NumPy: randomness as a pure function of (seed, stream, counter).

Every random choice in this project is one call of this function, so it depends on nothing but its arguments: not on
workers, threads, the number of GPUs or restarts. `csrc/arithmetic/philox.h` is the same function, with equal bits.

    bits = philox(seed, Stream.PLAN, epoch, sample, copy, draw)        # uint32 (..., 4)
    unit = uniform(bits)                                               # float64 in [0, 1), 32 bits of resolution

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), the generator of cuRAND and Random123.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Stream(IntEnum):
    """What the randomness is for; xor-ed into the key's high word so that no two uses share numbers."""

    ORDER = 1
    PLAN = 2
    NOISE = 3
    MIX = 4
    DROP_PATH = 5


def philox(seed: int, stream: Stream, c0: ArrayLike, c1: ArrayLike, c2: ArrayLike, c3: ArrayLike) -> NDArray[np.uint32]:
    """Four uint32 words for every element of the broadcast counters.

    Args:
        seed: 64-bit seed; the key is (low word, high word xor stream).
        c0, c1, c2, c3: the counter words, integers in [0, 2**32), broadcast against each other.

    Returns:
        uint32 array of shape (*broadcast, 4).
    """
    counter = [np.asarray(word).astype(np.uint64) for word in np.broadcast_arrays(c0, c1, c2, c3)]
    key_low, key_high = seed & 0xFFFFFFFF, ((seed >> 32) & 0xFFFFFFFF) ^ int(stream)
    for _ in range(10):
        left, right = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
        counter = [
            (right >> _HALF) ^ counter[1] ^ np.uint64(key_low),
            right & _LOW,
            (left >> _HALF) ^ counter[3] ^ np.uint64(key_high),
            left & _LOW,
        ]
        key_low, key_high = (key_low + _KEY_STEPS[0]) & 0xFFFFFFFF, (key_high + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack(counter, axis=-1).astype(np.uint32)


def uniform(bits: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Map uint32 words to float64 in [0, 1): exact, since 2**-32 times an integer below 2**32 never rounds."""
    return bits.astype(np.float64) * 2.0**-32
