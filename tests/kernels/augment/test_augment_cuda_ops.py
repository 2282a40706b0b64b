"""The CUDA code of one op, run on the CPU thread by thread: the CPU op's pixels, and how often float64 is needed."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from augment_cases import build_program, needs_compiler, noise, photo
from test_augment_ops import AFFINE, ARGUMENTS, FILL, two_levels

from deit_kernels.augment import OPS, Policy, apply_op, sample_plan, single_op
from deit_kernels.augment.plan import OP

pytestmark = [needs_compiler, pytest.mark.proof]

IMAGES = {
    "photograph": lambda: photo()[100:152, 200:276].copy(),
    "noise": lambda: noise(33, 47),
    "constant": lambda: np.full((12, 20, 3), 77, np.uint8),
    "two levels": lambda: two_levels(33, 34),
    "saturated": lambda: np.where(photo()[300:364, 80:144] < 100, photo()[300:364, 80:144], 255).astype(np.uint8),
    "one line": lambda: noise(1, 50),
    "one column": lambda: noise(50, 1),
    "two columns": lambda: noise(9, 2),
    "one pixel": lambda: noise(1, 1),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_program("ops.cpp", tmp_path_factory.mktemp("ops"))


def call_of(name: str, arg: float, interpolation: str, fast: bool, height: int, width: int) -> np.ndarray:
    call = np.zeros((), OP)
    call["op"], call["arg"], call["fill"], call["fast"] = OPS.index(name), arg, FILL, fast
    call["filter"] = interpolation == "bicubic"
    call["matrix"] = single_op.matrix(name, arg, height, width)
    return call


def run_ops(
    program: Path, images: np.ndarray, calls: np.ndarray, threads: int, parts: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, H, W, 3) after their calls (B,), and of each how many pixels were not made in integers.

    Args:
        parts: blocks of an image.
    """
    given, got = program.parent / "input", program.parent / "output"
    header = np.array((len(images), *images.shape[1:3]), "i8, i4, i4")
    given.write_bytes(b"".join(table.tobytes() for table in (header, calls, images)))
    done = subprocess.run([program, given, got, str(threads), str(parts)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = np.fromfile(got, np.uint8)
    return result[: images.size].reshape(images.shape), result[images.size :].view(np.int64)


def one_of_each(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with every op, and those calls; some pixels of the affine ones need float64."""
    calls = [
        call_of(name, 0.25 if name in AFFINE else ARGUMENTS[name][0], "bicubic", False, height, width)
        for name in OPS[1:]
    ]
    return np.stack([noise(height, width)] * len(calls)), np.stack(calls)


@pytest.mark.parametrize("kind", IMAGES)
def test_every_op_equals_the_cpu(program: Path, kind: str) -> None:
    image = IMAGES[kind]()
    cases = [
        (name, arg, interpolation, fast)
        for name in OPS[1:]
        for arg in (*ARGUMENTS[name], *((0.25, 1e-9, float("nan")) if name in AFFINE else ()))
        for interpolation in (("bicubic", "bilinear") if name in AFFINE else ("bicubic",))
        for fast in ((False, True) if name in AFFINE else (False,))
    ]
    calls = np.stack([call_of(*case, *image.shape[:2]) for case in cases])
    ours, _ = run_ops(program, np.stack([image] * len(calls)), calls, 24)
    for case, result in zip(cases, ours, strict=True):
        name, arg, interpolation, fast = case
        if np.isnan(arg):
            continue  # public functions refuse it; here it only must end
        images = torch.from_numpy(image)[None].contiguous()
        theirs = apply_op(images, name, arg, interpolation=interpolation, fill=FILL, fast=fast)[0].numpy()
        assert (result == theirs).all(), case


@pytest.mark.parametrize(("height", "width"), [(33, 40), (9, 21)])  # more pixels than threads, and fewer
def test_one_block_of_512_threads_gives_the_pixels_of_a_cluster(program: Path, height: int, width: int) -> None:
    """The path of cards without clusters."""
    images, calls = one_of_each(height, width)
    assert (run_ops(program, images, calls, 512, parts=1)[0] == run_ops(program, images, calls, 24)[0]).all()


def test_an_image_of_which_half_the_pixels_are_uncertain_is_the_cpus(program: Path) -> None:
    image = noise(160, 160)
    calls = [call_of(name, 2.5, "bilinear", False, 160, 160) for name in ("translate_x", "translate_y")]
    images = np.stack([image] * 2)
    ours, uncertain = run_ops(program, images, np.stack(calls), 64, parts=1)  # halves: every other sum is a whole level
    assert (uncertain > 160 * 160 / 3).all()
    for name, result in zip(("translate_x", "translate_y"), ours, strict=True):
        theirs = apply_op(torch.from_numpy(image)[None], name, 2.5, interpolation="bilinear", fill=FILL)[0].numpy()
        assert (result == theirs).all()


def test_affine_ops_are_made_in_integers_but_for_a_few_pixels(program: Path) -> None:
    plan = sample_plan(Policy.deit(224), seed=0, epoch=0, sample=range(600), copy=0, height=9, width=9)
    drawn = plan.table["ops"].reshape(-1)
    for name in AFFINE:
        calls = drawn[drawn["op"] == OPS.index(name)][:4].copy()
        for image in (photo()[100:324, 200:424], noise(224, 224)):
            for filter_of_call in (0, 1):
                calls["filter"] = filter_of_call
                _, uncertain = run_ops(program, np.stack([image] * 4), calls, 1)
                assert (uncertain < 1500).all(), (name, uncertain)  # of 50,176; whole-pixel columns leave the most
