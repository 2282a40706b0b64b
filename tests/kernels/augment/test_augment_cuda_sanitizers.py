"""Address, undefined-behaviour and thread sanitizers find nothing in the CUDA kernels and the CPU code."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from augment_cases import ROOT, build_program, crop_rows, needs_compiler, noise_batch
from test_augment_cuda_emulation import SIZES, assert_equal, drawn_mix, drawn_rows, every_op, expected, run
from test_augment_cuda_ops import one_of_each, run_ops

from deit_kernels.augment import Erase, ImageBatch, Policy
from deit_kernels.augment.mix import MIX
from deit_kernels.augment.plan import ROW

pytestmark = [needs_compiler, pytest.mark.slow]

# A sanitizer's run-time does not know the resolvers that pick a clone.
SANITIZED = ["-g", "-O1", "-DDEIT_NO_CLONES", "-fno-omit-frame-pointer"]


def hostile_rows(batch: ImageBatch, size: int, count: int) -> torch.Tensor:
    """Good rows with a few random bytes or extreme numbers in them."""
    random = np.random.default_rng(0)
    rows = drawn_rows(batch, Policy.deit(size))[random.integers(len(batch.offset), size=count)]
    table = rows.numpy().view(ROW)[:, 0]
    extremes = np.array([-(2**31), -1, 0, 1, size, 2**24 - 1, 2**24, 2**31 - 1], np.int32)
    for index in range(count):
        if index % 2:
            rows[index, int(random.integers(ROW.itemsize))] = int(random.integers(256))
        else:
            field = table[str(random.choice([name for name in ROW.names[1:] if name != "ops"]))]
            field[index] = random.choice(extremes, field.shape[1:])
        if index % 5 == 0:
            numbers = table["ops"][str(random.choice(["arg", "matrix"]))]
            numbers[index] = random.choice([np.nan, np.inf, -1e300, 1e9, 0.5], numbers.shape[1:])
    return rows


def hostile_mix(rows: torch.Tensor, size: int) -> torch.Tensor:
    random, mix = np.random.default_rng(1), drawn_mix(rows, size)
    for index in range(0, len(rows), 2):
        mix[index, int(random.integers(MIX.itemsize))] = int(random.integers(256))
    return mix


def shrunk(size: int) -> tuple[ImageBatch, torch.Tensor]:
    """A tall and a wide image, of whose lines and columns more weights are needed than are kept."""
    batch = noise_batch([(400, 12), (9, 600)])
    boxes = np.array([[0, 0, 400, 12], [0, 0, 9, 600]])
    return batch, torch.from_numpy(crop_rows(batch, boxes, size, "bicubic").view(np.uint8).reshape(2, -1).copy())


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(tmp_path: Path, sanitizer: str) -> None:
    stop = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = build_program("run.cpp", tmp_path, *SANITIZED, *stop)
    batch = noise_batch(SIZES)
    for policy, layout, dtype in [
        (Policy.deit(18), "nchw", torch.float32),
        (Policy.deit(9), "patches", torch.float16),
        (Policy.eval(10, crop_ratio=0.3), "channels_last", torch.bfloat16),
        (Policy(size=16, erase=Erase(1.0, "rand")), "nchw", torch.bfloat16),
        (Policy.deit3(14, src=True), "nchw", torch.float16),
    ]:
        rows, size = drawn_rows(batch, policy), policy.size
        mix = drawn_mix(rows, size)
        truth = expected(batch, rows, size, dtype, layout, mix)
        for threads in (0, 24):
            assert_equal(run(program, batch, rows, size, dtype, layout, threads, mix), truth)
    batch, rows = every_op(13)
    for threads in (0, 24):
        ours = run(program, batch, rows, 13, torch.float32, "nchw", threads)
        assert_equal(ours, expected(batch, rows, 13, torch.float32, "nchw"))
    hostile = hostile_rows(batch, 9, 200)
    run(program, batch, hostile, 9, torch.float32, "nchw", 4, hostile_mix(hostile, 9))
    batch = noise_batch([(400, 12), (9, 600)])
    rows = drawn_rows(batch, Policy.eval(8))
    assert_equal(
        run(program, batch, rows, 8, torch.float32, "nchw", 24), expected(batch, rows, 8, torch.float32, "nchw")
    )
    program = build_program("ops.cpp", tmp_path, *SANITIZED, *stop)
    images, calls = one_of_each(12, 8)
    run_ops(program, images, calls, 24)


BARRIERS = [
    (file.relative_to(ROOT), *found.span())
    for file in sorted((ROOT / "csrc" / "cuda").glob("**/*.cuh"))
    for found in re.finditer(r"(__syncthreads|Team::sync)\(\);(?!  //)", file.read_text())
]


@pytest.mark.parametrize("barrier", range(len(BARRIERS)))
def test_thread_sanitizer_sees_a_missing_barrier(tmp_path: Path, barrier: int) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    name, start, end = BARRIERS[barrier]
    file = tmp_path / name
    text = file.read_text()
    file.write_text(text[:start] + text[end:])
    flags = (*SANITIZED, "-fsanitize=thread")
    # Or the program reads, as an address, what has not been written.
    with pytest.raises(AssertionError, match=r"data race|DEADLYSIGNAL"):
        program = build_program("run.cpp", tmp_path, *flags, root=tmp_path)
        batch, rows = every_op(16)
        assert len(rows) % 2 == 0  # pairs
        run(program, batch, rows, 16, torch.float32, "nchw", 24, drawn_mix(rows, 16))
        run(program, *shrunk(8), 8, torch.float32, "nchw", 24)
        program = build_program("ops.cpp", tmp_path, *flags, root=tmp_path)
        run_ops(program, *one_of_each(12, 8), 24)
