"""The CUDA kernels, built with g++ and run on the CPU thread by thread, store what the CPU ops return.

The same program runs the CPU code compiled for one instruction set, and both under AddressSanitizer and
ThreadSanitizer.
"""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from augment_cases import ROOT, build_program, needs_compiler, noise_batch

from deit_kernels.augment import ImageBatch, Policy, sample_plan
from deit_kernels.augment.plan import IMAGENET_MEAN, IMAGENET_STD, ROW

pytestmark = needs_compiler

OPS = torch.ops.deit_kernels
TYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["nchw", "channels_last", "patches"]
SIZES = [(40, 50), (64, 64), (70, 3), (1, 1), (90, 200)]
HEADER = np.dtype("i8, i8, i4, (3,)f4, (3,)f4, i4, i4, i4")  # struct Header of run.cpp
# A sanitizer's run-time does not know the resolvers that pick a clone.
SANITIZED = ["-g", "-O1", "-DDEIT_NO_CLONES", "-fno-omit-frame-pointer"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program("run.cpp", tmp_path_factory.mktemp("emulate"))


def drawn_rows(batch: ImageBatch, policy: Policy) -> torch.Tensor:
    height, width = batch.height.numpy(), batch.width.numpy()
    plan = sample_plan(policy, seed=3, epoch=0, sample=np.arange(len(height)), copy=0, height=height, width=width)
    return plan.place(batch).rows


def patch_of(size: int) -> int:
    return size // 2 if size % 2 == 0 else size


def run(
    program: Path, batch: ImageBatch, rows: torch.Tensor, size: int, dtype: torch.dtype, layout: str, threads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and output of the program, flat but for the batch."""
    count, kinds = len(rows), (TYPES.index(dtype), LAYOUTS.index(layout), patch_of(size))
    header = np.array((count, batch.data.numel(), size, IMAGENET_MEAN, IMAGENET_STD, *kinds), HEADER)
    given, got = program.parent / "input", program.parent / "output"
    given.write_bytes(header.tobytes() + rows.numpy().tobytes() + batch.data.numpy().tobytes())
    done = subprocess.run([program, given, got, str(threads)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = torch.from_numpy(np.fromfile(got, np.uint8))
    values = count * 3 * size * size
    return result[:values].view(count, -1), result[values:].clone().view(dtype).view(count, -1)


def expected(
    batch: ImageBatch, rows: torch.Tensor, size: int, dtype: torch.dtype, layout: str
) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = list(IMAGENET_MEAN), list(IMAGENET_STD)
    images = OPS._augment_resize(batch.data, rows, size).flatten(1)
    output = OPS._augment_apply(batch.data, rows, size, mean, std, dtype, layout, patch_of(size))
    if layout == "channels_last":
        output = output.permute(0, 2, 3, 1)
    return images, output.flatten(1)


@pytest.mark.parametrize(
    ("policy", "dtype", "layout", "threads"),
    [
        (Policy.deit(30), torch.float32, "nchw", 32),
        (Policy.deit(17), torch.bfloat16, "patches", 5),  # lines left over in the last block, threads without a column
        (Policy.eval(24), torch.float16, "channels_last", 64),
        (Policy.eval(10, crop_ratio=0.3), torch.float16, "nchw", 16),
        (Policy(size=20, interpolation="bilinear", flip=1.0), torch.bfloat16, "patches", 33),
        (Policy(size=1), torch.float32, "nchw", 3),
    ],
    ids=lambda value: "" if isinstance(value, Policy) else str(value),
)
def test_kernels_store_what_the_cpu_ops_return(
    program: Path, policy: Policy, dtype: torch.dtype, layout: str, threads: int
) -> None:
    batch = noise_batch(SIZES)
    rows = drawn_rows(batch, policy)
    images, output = run(program, batch, rows, policy.size, dtype, layout, threads)
    expected_images, expected_output = expected(batch, rows, policy.size, dtype, layout)
    assert torch.equal(images, expected_images)
    assert torch.equal(output, expected_output)


@pytest.mark.parametrize("size", [512, 1024])
def test_large_outputs_fit_the_shared_memory_of_a_block(program: Path, size: int) -> None:
    batch = noise_batch([(9, 9)])
    rows = drawn_rows(batch, Policy.deit(size))
    images, output = run(program, batch, rows, size, torch.float32, "nchw", 8)
    assert torch.equal(images, expected(batch, rows, size, torch.float32, "nchw")[0])
    assert not output.isnan().any()


def test_a_row_the_host_could_not_check_gives_zeros_and_nan(program: Path) -> None:
    batch = noise_batch([(20, 30)] * 6)
    rows = drawn_rows(batch, Policy.deit(12))
    table = rows.numpy().view(ROW)[:, 0]
    table["offset"][1] = -1  # not placed
    table["offset"][2] = 2**60
    table["box"][3] = [0, 0, 21, 30]
    table["window"][4] = [1, 0]
    images, output = run(program, batch, rows, 12, torch.bfloat16, "nchw", 16)
    assert (images[1:5] == 0).all()
    assert output[1:5].isnan().all()
    good, good_rows = [0, 5], rows[[0, 5]]
    assert torch.equal(images[good], expected(batch, good_rows, 12, torch.bfloat16, "nchw")[0])
    assert torch.equal(output[good], expected(batch, good_rows, 12, torch.bfloat16, "nchw")[1])


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
            field = table[str(random.choice(ROW.names[1:]))]
            field[index] = random.choice(extremes, field.shape[1:])
    return rows


def cpu_flags() -> set[str]:
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return set(found.group(1).split()) if found else set()


@pytest.mark.parametrize(
    ("flag", "needs"),
    [
        ("-O2", set()),
        pytest.param("-mavx2", {"avx2"}, marks=pytest.mark.slow),
        pytest.param("-march=x86-64-v4", {"avx512f", "avx512bw", "avx512vl", "avx512dq"}, marks=pytest.mark.slow),
    ],
)
def test_the_cpu_code_of_every_instruction_set_agrees(tmp_path: Path, flag: str, needs: set[str]) -> None:
    if not needs <= cpu_flags():
        pytest.skip(f"this processor has no {', '.join(sorted(needs - cpu_flags()))}")
    program = build_program("run.cpp", tmp_path, "-DDEIT_NO_CLONES", "-O3", flag)
    batch = noise_batch(SIZES)
    for policy in (Policy.deit(50), Policy.eval(33)):
        rows = drawn_rows(batch, policy)
        images, output = run(program, batch, rows, policy.size, torch.float16, "nchw", 0)
        truth = expected(batch, rows, policy.size, torch.float16, "nchw")
        assert torch.equal(images, truth[0])
        assert torch.equal(output, truth[1])


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(tmp_path: Path, sanitizer: str) -> None:
    stop = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = build_program("run.cpp", tmp_path, *SANITIZED, *stop)
    batch = noise_batch(SIZES)
    for policy, layout, dtype in [
        (Policy.deit(18), "nchw", torch.float32),
        (Policy.deit(9), "patches", torch.float16),
        (Policy.eval(10, crop_ratio=0.3), "channels_last", torch.bfloat16),
    ]:
        rows, size = drawn_rows(batch, policy), policy.size
        truth = expected(batch, rows, size, dtype, layout)
        for threads in (0, 24):
            images, output = run(program, batch, rows, size, dtype, layout, threads)
            assert torch.equal(images, truth[0])
            assert torch.equal(output, truth[1])
    run(program, batch, hostile_rows(batch, 9, 200), 9, torch.float32, "nchw", 4)


@pytest.mark.slow
@pytest.mark.parametrize("barrier", [0, 1])
def test_thread_sanitizer_sees_a_missing_barrier(tmp_path: Path, barrier: int) -> None:
    for folder in ("augment", "emulate"):
        shutil.copytree(ROOT / "csrc" / folder, tmp_path / "csrc" / folder)
    for name in ("augment.h", "augment_cpu.cpp"):
        shutil.copy(ROOT / "csrc" / name, tmp_path / "csrc" / name)
    kernels = (ROOT / "csrc" / "augment_kernels.cuh").read_text()
    places = [found.span() for found in re.finditer(r"__syncthreads\(\);", kernels)]
    start, end = places[barrier]
    (tmp_path / "csrc" / "augment_kernels.cuh").write_text(kernels[:start] + kernels[end:])
    program = build_program("run.cpp", tmp_path, *SANITIZED, "-fsanitize=thread", root=tmp_path)
    batch = noise_batch(SIZES)
    with pytest.raises(AssertionError, match="data race"):
        run(program, batch, drawn_rows(batch, Policy.deit(18)), 18, torch.float32, "nchw", 24)
