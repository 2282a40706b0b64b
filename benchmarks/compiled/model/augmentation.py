"""Instructions that the CUDA augmentation executes, counted from its machine code, and the time predicted from them.
"""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.compiled.interpreter.listing import Listing
from benchmarks.compiled.interpreter.machine import Machine
from benchmarks.compiled.interpreter.memory import Memory
from deit_kernels.augment import ImageBatch, Policy, sample_mix, sample_plan

ROOT = Path(__file__).parents[3]
SIZE = 224
HEIGHT, WIDTH = 375, 500


@dataclass(frozen=True)
class Launch:
    """Blocks of an image, threads and bytes of shared memory of a block, and what else augment.cu works out."""

    blocks: int
    threads: int
    shared_bytes: int
    words: tuple[int, ...]


def launches(folder: Path, size: int) -> dict[str, Launch]:
    program = folder / "launches"
    source = ROOT / "csrc" / "emulate" / "launches.cpp"
    subprocess.run(["g++", "-std=c++20", "-O1", "-pthread", source, "-o", program], check=True)
    lines = subprocess.run([program, str(size)], check=True, capture_output=True, text=True).stdout.splitlines()
    found = {}
    for line in lines:
        name, *numbers = line.split()
        blocks, threads, shared_bytes, *words = map(int, numbers)
        found[name] = Launch(blocks, threads, shared_bytes, tuple(words))
    return found


class Batch:
    def __init__(self, policy: Policy, count: int, first: int = 0) -> None:
        from PIL import Image
        from sklearn.datasets import load_sample_images

        photos = [np.asarray(Image.fromarray(image).resize((WIDTH, HEIGHT))) for image in load_sample_images().images]
        photos = [np.ascontiguousarray(turned) for photo in photos for turned in (photo, photo[:, ::-1], photo[::-1], photo[::-1, ::-1])]
        pixels = ImageBatch.from_images(photos)
        sample = np.arange(first, first + count)
        image = torch.from_numpy(sample % len(photos))
        self.batch = ImageBatch(pixels.data, *(table[image] for table in pixels[1:]))
        plan = sample_plan(policy, seed=0, epoch=0, sample=sample, copy=0, height=HEIGHT, width=WIDTH)
        self.rows = plan.place(self.batch).rows
        self.mix = sample_mix(policy, seed=0, step=0, start=first, count=count, group=8).rows


def run(folder: Path, listings: dict[str, Listing], batch: Batch, policy: Policy, layout: int, patch: int, watched: bool = False):
    import time
    host = launches(folder, SIZE)
    data, rows, mix = batch.batch.data.numpy(), batch.rows.numpy(), batch.mix.numpy()
    count, image_bytes = len(rows), 3 * SIZE * SIZE
    memory = Memory(data.nbytes + rows.nbytes + mix.nbytes + count * (3 * image_bytes + 4 * (SIZE + 4) ** 2) + 8192)
    at_data, at_rows, at_mix = memory.place(data), memory.place(rows), memory.place(mix)
    images, scratch, output = memory.place(count * image_bytes), memory.place(4 * count * (SIZE + 4) ** 2), memory.place(2 * count * image_bytes)
    machines = {}
    arguments = {
        "resize": struct.pack("<QqQ12iQ", at_data, data.nbytes, at_rows, *host["resize"].words, images),
        "plan_ops": struct.pack("<qQi4xQQ", data.nbytes, at_rows, SIZE, images, scratch),
        "finish": struct.pack("<QqQQqi4x6f3i4xQ", images, data.nbytes, at_rows, at_mix, count, SIZE, *policy.mean, *policy.std, 2, layout, patch, output),
    }
    results = {}
    for name, launch in host.items():
        t = time.time()
        m = Machine(listings[name], (count, launch.blocks), launch.threads, launch.shared_bytes, arguments[name], memory, watched=watched)
        m.run()
        machines[name] = m
        results[name] = memory.read(images if name != "finish" else output, count * image_bytes * (1 if name != "finish" else 2)).copy()
        print(name, "instr/image", m.counts.sum() / count, "seconds", time.time() - t, flush=True)
    return machines, results
