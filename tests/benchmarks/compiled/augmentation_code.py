"""The machine code of the CUDA augmentation, run on a batch of DeiT's recipe and compared with the CPU ops."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.compiled.sass.listing import Listing
from benchmarks.compiled.sass.machine import Machine
from benchmarks.compiled.sass.memory import Memory
from deit_kernels.augment import ImageBatch, Policy, sample_mix, sample_plan

ROOT = Path(__file__).parents[3]
HEIGHT, WIDTH, PATCH = 375, 500, 16
MIX_GROUP = 8  # a group draws mixup or CutMix; a training batch is one group, here the sample holds many
KERNELS = {"resize": "resize_kernel", "plan_ops": "plan_ops_kernel", "finish": "finish_kernelILNS_4TypeE2E"}


def compile_cubin(folder: Path, source: Path = ROOT / "csrc/cuda/augment.cu") -> bytes:
    """A CUDA file compiled for sm_90 with setup.py's flags.

    Raises:
        setuptools.errors.CompileError: there is no CUDA toolkit or no C++ compiler.
    """
    argv, folder_before = sys.argv, Path.cwd()
    try:
        sys.argv = ["setup.py", "--name"]
        os.chdir(ROOT)
        with contextlib.redirect_stdout(io.StringIO()):
            setup = SimpleNamespace(**runpy.run_path("setup.py"))
    finally:
        sys.argv = argv
        os.chdir(folder_before)
    toolkit = setup.find_toolkit()
    cubin = folder / f"{source.stem}.cubin"
    command = [f"{toolkit.home}/bin/nvcc", "-ccbin", setup.compiler()[0], *setup.NVCC_FLAGS, "-arch=sm_90", "-cubin"]
    subprocess.run([*command, source, "-o", cubin], check=True)
    return cubin.read_bytes()


class Launch(NamedTuple):
    """Blocks of an image, threads and bytes of shared memory of a block, and what else the host works out."""

    blocks: int
    threads: int
    shared_bytes: int
    words: tuple[int, ...]


def launches(folder: Path, size: int) -> dict[str, Launch]:
    """How augment.cu launches each kernel, asked of its headers."""
    program, source = folder / "launches", ROOT / "csrc" / "emulate" / "launches.cpp"
    subprocess.run(["g++", "-std=c++20", "-O1", "-pthread", source, "-o", program], check=True)
    printed = subprocess.run([program, str(size)], check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in printed.splitlines()]
    return {name: Launch(*map(int, numbers[:3]), tuple(map(int, numbers[3:]))) for name, *numbers in lines}


class Sample(NamedTuple):
    """Images, their plans and how they are mixed."""

    batch: ImageBatch
    rows: torch.Tensor
    mix: torch.Tensor


def draw(policy: Policy, first: int, count: int, height: int = HEIGHT, width: int = WIDTH) -> Sample:
    """Images [first, first + count) of the sample: the two photographs of scikit-learn, each turned in four ways."""
    photos = [np.asarray(Image.fromarray(photo).resize((width, height))) for photo in load_sample_images().images]
    turned = [photo[::down, ::right] for photo in photos for down in (1, -1) for right in (1, -1)]
    pixels = ImageBatch.from_images([np.ascontiguousarray(photo) for photo in turned])
    sample = np.arange(first, first + count)
    batch = ImageBatch(pixels.data, *(table[torch.from_numpy(sample % len(turned))] for table in pixels[1:]))
    plan = sample_plan(policy, seed=0, epoch=0, sample=sample, copy=0, height=height, width=width)
    mix = sample_mix(policy, seed=0, step=0, start=first, count=count, group=MIX_GROUP)
    return Sample(batch, plan.place(batch).rows, mix.rows)


def interpret(listings: dict[str, Listing], hosts: dict[str, Launch], sample: Sample, policy: Policy) -> None:
    """Run the three kernels on a sample.

    Raises:
        ValueError: a byte differs from the CPU ops.
    """
    data, rows, mix = (table.numpy() for table in (sample.batch.data, sample.rows, sample.mix))
    count, size, image_bytes = len(rows), policy.size, 3 * policy.size**2
    (scratch_words,) = hosts["plan_ops"].words
    scratch_bytes = 4 * count * scratch_words
    memory = Memory(data.nbytes + rows.nbytes + mix.nbytes + 3 * count * image_bytes + scratch_bytes + 4096)
    at_data, at_rows, at_mix = (memory.place(table) for table in (data, rows, mix))
    images, scratch, output = (
        memory.place(size) for size in (count * image_bytes, scratch_bytes, 2 * count * image_bytes)
    )
    shape = hosts["resize"].words
    words = f"{len(shape)}i" + "4x" * (len(shape) % 2)
    normalised = (*inverses(policy), 1, *policy.mean, *policy.std, 2, 2, PATCH)  # bfloat16, patches
    parameters = {
        "resize": struct.pack(f"<QqQ{words}Q", at_data, data.nbytes, at_rows, *shape, images),
        "plan_ops": struct.pack("<qQi4xQQ", data.nbytes, at_rows, size, images, scratch),
        "finish": struct.pack(
            "<QqQQqi6fi6f3i4xQ", images, data.nbytes, at_rows, at_mix, count, size, *normalised, output
        ),
    }
    for stage, host in hosts.items():
        grid, shared_bytes = (count, host.blocks), host.shared_bytes
        Machine(listings[stage], grid, host.threads, shared_bytes, parameters[stage], memory).run()
        if stage == "resize":
            resized = torch.ops.deit_kernels._augment_resize(sample.batch.data, sample.rows, size)
            _compare(stage, memory.read(images, count * image_bytes), resized)
    numbers, form = (list(policy.mean), list(policy.std)), (torch.bfloat16, "patches", PATCH)
    tables = sample.batch.data, sample.rows, sample.mix
    finished = torch.ops.deit_kernels._augment_apply(*tables, size, *numbers, *form)
    _compare("finish", memory.read(output, 2 * count * image_bytes), finished)


def inverses(policy: Policy) -> NDArray[np.float32]:
    """1 / std, and what that lacks: Inverses of csrc/arithmetic/normalise.h."""
    std = np.array(policy.std, np.float32)
    inverse = np.float32(1) / std
    return np.concatenate([inverse, (1 / std.astype(np.float64) - inverse).astype(np.float32)])


def _compare(stage: str, ours: NDArray, theirs: torch.Tensor) -> None:
    wrong = np.flatnonzero(ours != theirs.contiguous().view(torch.uint8).numpy().reshape(-1))
    if len(wrong):
        raise ValueError(f"{stage}: {len(wrong)} bytes differ from the CPU ops, the first at {wrong[0]}")
