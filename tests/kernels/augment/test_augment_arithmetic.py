"""The arithmetic of csrc/arithmetic in C++: known answers, and the same bits as NumPy and torch."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from augment_cases import build_program, needs_compiler

from deit_kernels.augment.policy import IMAGENET_MEAN, IMAGENET_STD
from deit_kernels.augment.reference import exact_math
from deit_kernels.philox import Stream, philox

pytestmark = needs_compiler

CALL = np.dtype([("seed", "u8"), ("stream", "u4"), ("counter", "u4", 4), ("unused", "u4")])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program("arithmetic.cpp", tmp_path_factory.mktemp("arithmetic"))


def run(program: Path, name: str, records: np.ndarray, result: np.typing.DTypeLike) -> np.ndarray:
    done = subprocess.run([program, name], input=records.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, result)


def test_philox_gives_the_known_answers_of_random123(program: Path) -> None:
    calls = np.zeros(3, CALL)
    calls["seed"] = [0, 2**64 - 1, 0x299F31D0_A4093822]
    calls["counter"] = [[0] * 4, [2**32 - 1] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]]
    assert run(program, "philox", calls, np.uint32).reshape(3, 4).tolist() == [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]


def test_philox_equals_numpy_for_every_stream(program: Path) -> None:
    random = np.random.default_rng(0)
    for stream in Stream:
        seed = int(random.integers(0, 2**64, dtype=np.uint64))
        calls = np.zeros(1000, CALL)
        calls["seed"], calls["stream"] = seed, stream
        calls["counter"] = random.integers(0, 2**32, (1000, 4))
        expected = philox(seed, stream, *calls["counter"].T)
        assert (run(program, "philox", calls, np.uint32).reshape(-1, 4) == expected).all()


@pytest.mark.parametrize("name", ["exp", "log"])
def test_exp_and_log_equal_numpy_bit_for_bit_and_are_accurate(program: Path, name: str) -> None:
    random = np.random.default_rng(1)
    x = np.concatenate([random.uniform(-5, 5, 100_000), random.uniform(-690, 690, 10_000), [0.0, 1.0, -1.0, 0.5]])
    if name == "log":
        x = np.concatenate([np.exp(x), 1 + random.uniform(-1e-3, 1e-3, 10_000), 2.0 ** np.arange(-50, 50)])
    exact = getattr(exact_math, name)(x)
    assert run(program, name, x, np.uint64).tolist() == exact.view(np.uint64).tolist()
    truth = getattr(np, name)(x.astype(np.longdouble))
    assert (np.abs(exact - truth) < 3 * np.spacing(np.abs(exact))).all()


def test_sine_and_cosine_equal_numpy_bit_for_bit_and_are_accurate(program: Path) -> None:
    random = np.random.default_rng(2)
    x = np.concatenate(
        [random.uniform(-7, 7, 200_000), random.uniform(-1e5, 1e5, 10_000), np.arange(-8, 9) * np.pi / 2]
    )
    exact = np.stack(exact_math.sin_cos(x), axis=-1)
    ours = run(program, "sincos", x, np.float64).reshape(-1, 2)
    assert (ours.view(np.uint64) == exact.view(np.uint64)).all()
    truth = np.stack([np.sin(x.astype(np.longdouble)), np.cos(x.astype(np.longdouble))], axis=-1)
    assert np.abs(exact - truth).max() < 2.0**-52


def test_normal_numbers_equal_numpy_bit_for_bit(program: Path) -> None:
    words = np.random.default_rng(3).integers(0, 2**32, (100_000, 2), dtype=np.uint32)
    words[:4] = [[0, 0], [2**32 - 1, 0], [0, 2**32 - 1], [2**32 - 1, 2**31]]
    exact = np.stack(exact_math.normals(*words.T), axis=-1)
    ours = run(program, "normals", words, np.float64).reshape(-1, 2)
    assert (ours.view(np.uint64) == exact.view(np.uint64)).all()
    assert np.abs(exact).max() < 6.67
    assert abs(exact.mean()) < 0.01
    assert abs(exact.std() - 1) < 0.01
    assert abs((exact**4).mean() - 3) < 0.1


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat16", torch.bfloat16)])
def test_rounding_to_16_bits_equals_torch(program: Path, name: str, dtype: torch.dtype) -> None:
    # Every sign, exponent and upper mantissa, with the lower bits on both sides of a tie.
    low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    floats = ((np.arange(2**16, dtype=np.uint32) << 16)[:, None] | low).reshape(-1).view(np.float32)
    ours = torch.from_numpy(run(program, name, floats, np.int16).copy()).view(dtype)
    truth = torch.from_numpy(floats).to(dtype)
    assert torch.equal(ours.isnan(), truth.isnan())
    assert torch.equal(ours.view(torch.int16)[~truth.isnan()], truth.view(torch.int16)[~truth.isnan()])


def test_normalising_without_divisions_has_the_bits_of_dividing(program: Path) -> None:
    """Or says that it has not: then a kernel divides."""
    random = np.random.default_rng(6)
    forms = np.concatenate([random.uniform(-2, 2, (2000, 3)), np.exp(random.uniform(-6, 6, (2000, 3)))], axis=1)
    usual = [IMAGENET_MEAN + IMAGENET_STD, (0.5,) * 6, (0, 0, 0, 1, 1, 1), (0, 0, 0, 1 / 255, 1 / 255, 1 / 255)]
    without = [(0.5, 0.5, 0.5, 1, 1, 0), (0.5, np.inf, 0.5, 1, 1, 1), (0.5, 0.5, 0.5, 1, 1e-40, 1)]
    exact = run(program, "exact", np.array([*usual, *without], np.float32), np.int32)
    assert exact.tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert run(program, "exact", forms.astype(np.float32), np.int32).mean() > 0.99
