"""The CUDA kernels, built with g++ and run on the CPU thread by thread, store what the CPU ops return.

The same program runs the CPU code compiled for one instruction set.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from augment_cases import build_program, cpu_flags, crop_rows, needs_compiler, noise_batch, plan_for

from deit_kernels.augment import OPS as OP_NAMES
from deit_kernels.augment import Erase, ImageBatch, Mix, Policy, RandAugment, sample_mix, sample_plan
from deit_kernels.augment.mix import MIX
from deit_kernels.augment.plan import ROW
from deit_kernels.augment.policy import IMAGENET_MEAN, IMAGENET_STD

pytestmark = [needs_compiler, pytest.mark.proof]

OPS = torch.ops.deit_kernels
TYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["nchw", "channels_last", "patches"]
SIZES = [(40, 50), (64, 64), (70, 3), (1, 1), (90, 200), (9, 9)]
LONE = 512  # threads of the one block that runs an image's ops on cards without clusters
HEADER = np.dtype("i8, i8, i4, i4, (3,)f4, (3,)f4, i4, i4, i4, i4")  # struct Header of run.cpp


AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
ONE_SET = ("-DDEIT_NO_CLONES", "-DDEIT_NO_AVX512")  # of instructions, for the CPU code


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program("run.cpp", tmp_path_factory.mktemp("emulate"), *ONE_SET)


BUSY = RandAugment(probability=1.0)  # every image has two ops


def drawn_rows(batch: ImageBatch, policy: Policy, seed: int = 3) -> torch.Tensor:
    return plan_for(batch, policy, seed).place(batch).rows


def drawn_mix(rows: torch.Tensor, size: int, seed: int = 2) -> torch.Tensor:
    """Mixup and CutMix pairs."""
    policy = Policy(size=size, mix=Mix())
    mix = sample_mix(policy, seed=seed, step=0, start=0, count=len(rows), group=2)
    assert size == 1 or set(mix.table["mode"]) == {1, 2}
    return mix.rows


def draw_ops(policy: Policy) -> np.ndarray:
    return sample_plan(policy, seed=0, epoch=0, sample=range(500), copy=0, height=9, width=9).table["ops"][:, 0]


def every_op(size: int) -> tuple[ImageBatch, torch.Tensor]:
    """One row for each op, which it has together with the third op after it in the list."""
    pixels, count = noise_batch(SIZES), len(OP_NAMES) - 1
    image = torch.arange(count) % len(SIZES)
    batch = ImageBatch(pixels.data, *(table[image] for table in pixels[1:]))
    policy = Policy(size=size, rand_augment=BUSY, erase=Erase(0.5), interpolation="random")
    rows = drawn_rows(batch, policy)
    ops = rows.numpy().view(ROW)[:, 0]["ops"]
    drawn = np.concatenate([draw_ops(policy), draw_ops(Policy.deit3(size))])
    for row in range(count):
        for layer, op in enumerate((row, (row + 3) % count)):
            ops[row, layer] = drawn[drawn["op"] == 1 + op][0]
    ops["fast"][::2, 1] = 1
    return batch, rows


def patch_of(size: int) -> int:
    return size // 2 if size % 2 == 0 else size


Result = tuple[torch.Tensor, torch.Tensor]


def run(
    program: Path,
    batch: ImageBatch,
    rows: torch.Tensor,
    size: int,
    dtype: torch.dtype,
    layout: str,
    threads: int,
    mix: torch.Tensor | None = None,
    lone: int = 0,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Result:
    """Images and output of the program, flat but for the batch.

    Args:
        lone: threads of the one block that runs an image's ops; 0: a cluster runs them.
    """
    count, kinds = len(rows), (TYPES.index(dtype), LAYOUTS.index(layout), patch_of(size), 0)
    header = np.array((count, batch.data.numel(), size, mix is not None, IMAGENET_MEAN, std, *kinds), HEADER)
    tables = [header, rows.numpy(), *([] if mix is None else [mix.numpy()]), batch.data.numpy()]
    given, got = program.parent / "input", program.parent / "output"
    given.write_bytes(b"".join(table.tobytes() for table in tables))
    done = subprocess.run([program, given, got, str(threads), str(lone)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = torch.from_numpy(np.fromfile(got, np.uint8))
    values = count * 3 * size * size
    return result[:values].view(count, -1), result[values:].clone().view(dtype).view(count, -1)


def expected(
    batch: ImageBatch,
    rows: torch.Tensor,
    size: int,
    dtype: torch.dtype,
    layout: str,
    mix: torch.Tensor | None = None,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Result:
    images = OPS._augment_resize(batch.data, rows, size).flatten(1)
    output = OPS._augment_apply(
        batch.data, rows, mix, size, list(IMAGENET_MEAN), list(std), dtype, layout, patch_of(size)
    )
    if layout == "channels_last":
        output = output.permute(0, 2, 3, 1)
    return images, output.flatten(1)


def assert_equal(ours: Result, theirs: Result) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("policy", "dtype", "layout", "threads"),
    [
        (Policy.deit(30), torch.float32, "nchw", 32),
        (Policy.deit(17), torch.bfloat16, "patches", 5),  # lines left over in the last block, threads without a column
        (Policy.eval(24), torch.float16, "channels_last", 64),
        (Policy.eval(10, crop_ratio=0.3), torch.float16, "nchw", 16),
        (Policy(size=20, interpolation="bilinear", flip=1.0), torch.bfloat16, "patches", 33),
        (Policy(size=1), torch.float32, "nchw", 3),
        (Policy(size=19, crop="simple", pad=6, erase=Erase(1.0, "rand")), torch.float16, "nchw", 32),
        (Policy(size=12, rand_augment=BUSY, erase=Erase(1.0, "const")), torch.bfloat16, "channels_last", 64),
        (Policy.deit3(20), torch.bfloat16, "nchw", 32),
        (Policy.deit3(15, src=True), torch.float32, "patches", 17),
        (Policy.parse("original", 14), torch.float16, "nchw", 32),
    ],
    ids=lambda value: "" if isinstance(value, Policy) else str(value),
)
def test_kernels_store_what_the_cpu_ops_return(
    program: Path, policy: Policy, dtype: torch.dtype, layout: str, threads: int
) -> None:
    batch = noise_batch(SIZES)
    rows = drawn_rows(batch, policy)
    for mix in (None, drawn_mix(rows, policy.size)):
        ours = run(program, batch, rows, policy.size, dtype, layout, threads, mix)
        assert_equal(ours, expected(batch, rows, policy.size, dtype, layout, mix))


@pytest.mark.parametrize(("size", "threads", "lone"), [(21, 32, 0), (16, 48, 0), (30, 32, LONE), (17, 32, LONE)])
def test_every_op_gives_the_pixels_of_the_cpu(program: Path, size: int, threads: int, lone: int) -> None:
    batch, rows = every_op(size)
    ours = run(program, batch, rows, size, torch.float32, "nchw", threads, lone=lone)
    assert_equal(ours, expected(batch, rows, size, torch.float32, "nchw"))


@pytest.mark.parametrize("order", ["heaviest first", "a part of a batch", "nonsense", "none"])
def test_every_image_is_made_once_whatever_the_order_says(program: Path, order: str) -> None:
    batch, rows = every_op(12)
    if order == "a part of a batch":
        rows = rows[3:12].clone()
    table = rows.numpy().view(ROW)[:, 0]
    assert sorted(table["order"]) == list(range(16)) or order == "a part of a batch"
    if order == "nonsense":
        table["order"], table["turn"] = np.random.default_rng(0).integers(0, 20, (2, 16))
        table["order"][:2], table["turn"][:2] = [1, 1], [0, 1]  # one of two rows that want the same turn has it
    if order == "none":
        table["order"] = table["turn"] = 0
    ours = run(program, batch, rows, 12, torch.float32, "nchw", 16)
    assert_equal(ours, expected(batch, rows, 12, torch.float32, "nchw"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_pixels_that_are_stored_together_are_those_of_the_cpu(program: Path, dtype: torch.dtype, layout: str) -> None:
    batch = noise_batch(SIZES)
    for size, mode in ((32, "pixel"), (64, "rand"), (16, "const")):
        rows = drawn_rows(batch, Policy(size=size, erase=Erase(0.8, mode, area=(0.1, 0.7))), seed=size)
        for mix in (None, drawn_mix(rows, size), drawn_mix(rows, size, seed=7)):
            ours = run(program, batch, rows, size, dtype, layout, 32, mix)
            assert_equal(ours, expected(batch, rows, size, dtype, layout, mix))


def test_where_normalising_has_to_divide_the_values_are_those_of_the_cpu(program: Path) -> None:
    batch, std = noise_batch(SIZES), (0.2, 1e-40, 0.3)  # 1 / std and most values of green are infinite
    rows = drawn_rows(batch, Policy(size=16, erase=Erase(0.8)))
    mix = drawn_mix(rows, 16)
    for rows_mix in (None, mix):
        ours = run(program, batch, rows, 16, torch.float16, "nchw", 32, rows_mix, std=std)
        theirs = expected(batch, rows, 16, torch.float16, "nchw", rows_mix, std)
        assert_equal(*((images, output.view(torch.int16)) for images, output in (ours, theirs)))  # some are NaN


@pytest.mark.parametrize(("size", "threads"), [(32, 32), (40, 64), (17, 32)])
def test_images_that_do_not_mix_each_other_alike_are_those_of_the_cpu(program: Path, size: int, threads: int) -> None:
    batch = noise_batch([(40, 50)] * 8)
    rows = drawn_rows(batch, Policy(size=size, erase=Erase(0.8, area=(0.1, 0.7))))
    mix = drawn_mix(rows, size)
    table = mix.numpy().view(MIX)[:, 0]
    table["mode"], table["lam"] = [1, 1, 1, 1, 1, 2, 1, 0], 0.3
    table["partner"] = [1, 0, 3, 2, 4, 6, 5, 6]  # each other, each other with other shares, itself, one way, not at all
    table["lam"][3] = 0.6
    table["box"] = [3, 1, 9, 13]
    for dtype, layout in ((torch.bfloat16, "patches"), (torch.float32, "channels_last")):
        ours = run(program, batch, rows, size, dtype, layout, threads, mix)
        assert_equal(ours, expected(batch, rows, size, dtype, layout, mix))


@pytest.mark.parametrize(
    ("height", "width", "size", "threads"),
    [
        (400, 37, 8, 16),  # more weights than are kept of a line, more lines than the strip holds
        (20, 900, 5, 7),  # of a column, with columns that are unpacked in several parts
        (129, 872, 8, 32),  # lines of which some fit and some do not
        (500, 500, 1, 3),
        (150, 700, 71, 64),  # two bands, columns in two tiles
        (40, 30, 112, 33),  # enlarged
        (375, 500, 224, 256),  # as on a card
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_shrink_and_enlargement_gives_the_pixels_of_the_cpu(
    program: Path, height: int, width: int, size: int, threads: int, interpolation: str
) -> None:
    batch = noise_batch([(height, width)] * 3)
    boxes = np.array([[0, 0, height, width], [1, 2, height - 1, width - 2], [height // 3, width // 4, 9, 11]])
    table = crop_rows(batch, boxes, size, interpolation)
    table["flip"][1] = 1
    table[2:]["resized"], table[2:]["window"], table[2:]["pad"] = size + 2, [-1, 3], 1  # mirrored at the edges
    rows = torch.from_numpy(table.view(np.uint8).reshape(3, -1).copy())
    images, _ = run(program, batch, rows, size, torch.float32, "nchw", threads)
    assert torch.equal(images, OPS._augment_resize(batch.data, rows, size).flatten(1))


@pytest.mark.parametrize("size", [512, 1024])
def test_large_outputs_fit_the_shared_memory_of_a_block(program: Path, size: int) -> None:
    batch = noise_batch([(9, 9)])
    rows = drawn_rows(batch, Policy.deit(size))
    images, output = run(program, batch, rows, size, torch.float32, "nchw", 8)
    assert torch.equal(images, expected(batch, rows, size, torch.float32, "nchw")[0])
    assert not output.isnan().any()


def test_a_row_the_host_could_not_check_gives_zeros_and_nan(program: Path) -> None:
    batch = noise_batch([(20, 30)] * 8)
    rows = drawn_rows(batch, Policy.deit(12))
    table = rows.numpy().view(ROW)[:, 0]
    table["offset"][1] = -1  # not placed
    table["offset"][2] = 2**60
    table["box"][3] = [0, 0, 21, 30]
    table["window"][4] = [1, 0]
    table["ops"]["op"][6, 1] = 99
    table["erased"][7] = [0, 0, 13, 1]
    images, output = run(program, batch, rows, 12, torch.bfloat16, "nchw", 16)
    assert (images[[1, 2, 3, 4, 6, 7]] == 0).all()
    assert output[[1, 2, 3, 4, 6, 7]].isnan().all()
    good, good_rows = [0, 5], rows[[0, 5]]
    assert torch.equal(images[good], expected(batch, good_rows, 12, torch.bfloat16, "nchw")[0])
    assert torch.equal(output[good], expected(batch, good_rows, 12, torch.bfloat16, "nchw")[1])


@pytest.mark.parametrize("size", [12, 16])  # pixel by pixel, and together
def test_a_mix_the_host_could_not_check_gives_nan(program: Path, size: int) -> None:
    batch = noise_batch([(20, 30)] * 8)
    rows = drawn_rows(batch, Policy.deit(size))
    mix = drawn_mix(rows, size)
    table = mix.numpy().view(MIX)[:, 0]
    table["mode"] = 1
    table["partner"][1] = 8
    table["mode"][2] = 3
    table["lam"][3] = np.nan
    table["box"][4] = [0, 0, 1, 17]
    rows.numpy().view(ROW)[:, 0]["offset"][7] = -1  # and so its partner, 6
    _, output = run(program, batch, rows, size, torch.float32, "nchw", 16, mix)
    assert output.isnan().all(dim=1).tolist() == [False, True, True, True, True, False, True, True]
    assert output.isnan().any(dim=1).sum() == 6


@pytest.mark.parametrize(
    ("flags", "needs"),
    [
        ((), set()),  # the program of the other tests
        pytest.param(("-O3", "-mavx2"), {"avx2"}, marks=pytest.mark.slow),
        pytest.param(
            ("-O3", "-march=x86-64-v4"), {"avx512f", "avx512bw", "avx512vl", "avx512dq"}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_cpu_code_of_every_instruction_set_agrees(tmp_path: Path, flags: tuple[str, ...], needs: set[str]) -> None:
    if not needs <= cpu_flags():
        pytest.skip(f"this processor has no {', '.join(sorted(needs - cpu_flags()))}")
    program = build_program("run.cpp", tmp_path, *ONE_SET, *flags)
    batch = noise_batch(SIZES)
    for policy in (Policy.deit(50), Policy.deit3(41), Policy.eval(33)):
        rows = drawn_rows(batch, policy)
        for mix in (None, drawn_mix(rows, policy.size)):
            ours = run(program, batch, rows, policy.size, torch.float16, "nchw", 0, mix)
            assert_equal(ours, expected(batch, rows, policy.size, torch.float16, "nchw", mix))
    batch, rows = every_op(45)
    ours = run(program, batch, rows, 45, torch.float32, "nchw", 0)
    assert_equal(ours, expected(batch, rows, 45, torch.float32, "nchw"))
