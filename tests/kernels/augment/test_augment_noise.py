"""Noise of erased pixels in float32: the same bits in C++ and NumPy, close to Box and Muller, normal, never NaN."""

import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from augment_cases import build_program, needs_compiler
from numpy.typing import NDArray

from deit_kernels.augment.reference.noise import pair

WORDS = 2_000_000
# Powers of 2 and their neighbours, all ones, and where the radius is rounded up to 2**31.
EXTREMES = np.unique(
    [(1 << bit) + by & 0xFFFFFFFF for bit in range(33) for by in (-129, -128, -65, -64, -2, -1, 0, 1, 2, 64, 65, 128)]
).astype(np.uint32)


@pytest.fixture(scope="module")
def drawn() -> NDArray[np.uint32]:
    """Pairs of words: random ones, then every pair of extremes."""
    words = np.random.default_rng(5).integers(0, 2**32, (WORDS, 2), dtype=np.uint32)
    return np.concatenate([words, np.stack(np.meshgrid(EXTREMES, EXTREMES), axis=-1).reshape(-1, 2)])


@pytest.fixture(scope="module")
def values(drawn: NDArray[np.uint32]) -> NDArray[np.float32]:
    return np.stack(pair(*drawn.T), axis=-1)


@needs_compiler
@pytest.mark.parametrize("flags", [(), ("-O3",), ("-O3", "-mavx2")], ids=" ".join)
def test_noise_equals_numpy_bit_for_bit(
    tmp_path: Path, drawn: NDArray[np.uint32], values: NDArray[np.float32], flags: tuple[str, ...]
) -> None:
    program = build_program("arithmetic.cpp", tmp_path, *flags)
    done = subprocess.run([program, "noise"], input=drawn.tobytes(), capture_output=True, check=True)
    assert (np.frombuffer(done.stdout, np.uint32) == values.reshape(-1).view(np.uint32)).all()


def test_noise_is_finite_and_close_to_box_and_muller(drawn: NDArray[np.uint32], values: NDArray[np.float32]) -> None:
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 6.56
    radius, angle = drawn.T
    k = ((radius & 0x7FFFFFFF) | 1).astype(np.float32).astype(np.float64)
    length = np.sqrt(-2 * np.log(k * 2.0**-31 * (1 - 2.0**-23)))
    turn = np.pi / 4 * (1 + (angle << np.uint32(1)).view(np.int32) * 2.0**-31)
    signs = np.where(np.stack([angle, radius], axis=-1) >> 31, -1, 1)
    truth = signs * length[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    assert (np.abs(values - truth) <= 5e-7 * length[:, None]).all()


def test_noise_is_normal(values: NDArray[np.float32]) -> None:
    for numbers in values[:WORDS].astype(np.float64).T:
        for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
            assert abs((numbers**power).mean() - moment) < 4 * math.sqrt(variance / WORDS), power
        ordered = torch.from_numpy(np.sort(numbers))
        normal = 0.5 * (1 + torch.erf(ordered / 2**0.5))
        ranks = torch.arange(1, WORDS + 1) / WORDS
        assert (normal - ranks).abs().max() < 1.95 / math.sqrt(WORDS)  # Kolmogorov: once in a thousand if true
        for limit in (3.0, 4.0, 4.5):
            expected = WORDS * math.erfc(limit / math.sqrt(2))
            assert abs((np.abs(numbers) > limit).sum() - expected) < 4 * math.sqrt(expected)


def test_the_two_numbers_of_a_pair_are_independent(values: NDArray[np.float32]) -> None:
    first, second = values[:WORDS].astype(np.float64).T
    for one in (first, first**2, np.sign(first), np.abs(first) > 2):
        for other in (second, second**2, np.sign(second), np.abs(second) > 2):
            assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(WORDS)
