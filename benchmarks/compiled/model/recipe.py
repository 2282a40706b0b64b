"""What the machine code of the CUDA augmentation issues in a batch of DeiT's recipe."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.model import pipes, sass
from benchmarks.compiled.model.blocks import Counted
from benchmarks.compiled.resources import resident_warps
from benchmarks.compiled.sass.augmentation import KERNELS, ROOT, Launch, Sample, build, draw, interpret, launches
from benchmarks.compiled.sass.listing import TOOLS, Listing
from deit_kernels.augment import Policy
from deit_kernels.augment.plan import ROW, heaviest_first

SIZE, BATCH = 224, 256
TOGETHER = 32  # images that are interpreted at once
CARD = pipes.CARDS[90]
CLUSTERS = {"plan_ops"}  # stages that augment.cu launches in clusters of an image's blocks
REPLAYED = (0, 66)  # multiprocessors whose blocks are replayed


def count(images: int, root: Path = ROOT) -> tuple[dict[str, Counted], str]:
    """What each stage's blocks issue in a batch that repeats the first images, and the toolkit's version.

    Args:
        images: a divisor of `BATCH`.
        root: of the sources.

    Raises:
        setuptools.errors.CompileError: there is no CUDA toolkit or no C++ compiler.
        ValueError: a byte differs from the CPU ops.
    """
    policy = Policy.deit(SIZE)
    with tempfile.TemporaryDirectory() as name:
        cubin, version = build(Path(name), root)
        hosts = launches(Path(name), SIZE, root)
        listings = {stage: Listing.of(cubin.read_bytes(), kernel) for stage, kernel in KERNELS.items()}
        registers = {stage: registers_of(cubin, kernel) for stage, kernel in KERNELS.items()}
    counts: dict[str, list[NDArray]] = {stage: [] for stage in hosts}
    paths: dict[str, dict[tuple[int, int], list[list[int]]]] = {stage: {} for stage in hosts}
    accesses, moved = {}, {stage: np.zeros(2) for stage in hosts}
    samples = [draw(policy, first, min(TOGETHER, images - first)) for first in range(0, images, TOGETHER)]
    tables = [sample.rows.numpy().view(ROW)[:, 0] for sample in samples]
    batch = {stage: made(stage, np.tile(np.concatenate(tables), BATCH // images)) for stage in hosts}
    for sample, table, first in zip(samples, tables, range(0, images, TOGETHER), strict=True):
        some = len(table)
        order = {stage: made(stage, table) for stage in hosts}
        traced = {
            stage: traced_blocks(host, first, order[stage], images, batch[stage]) for stage, host in hosts.items()
        }
        threads = {stage: [of.thread for of in traced[stage]] for stage in hosts}
        machines = interpret(listings, hosts, sample, policy, watched=first == 0, traced=threads)
        for stage, machine in machines.items():
            counts[stage].append(machine.counts.reshape(-1, hosts[stage].blocks, some)[..., np.argsort(order[stage])])
            for of in traced[stage]:
                paths[stage].setdefault((of.y, of.image), []).append(machine.paths[of.thread])
            accesses.setdefault(stage, machine.accesses)
            moved[stage] += bytes_moved(stage, sample) * BATCH / images
        print(f"{first + some} images, every byte as the CPU's", file=sys.stderr, flush=True)
    found = {}
    for stage, host in hosts.items():
        warps = host.threads // pipes.LANES
        order = batch[stage] % images
        repeated = np.concatenate(counts[stage], axis=2)[..., order]
        replayed = {block: paths[stage][block // BATCH, order[block % BATCH]] for block in replayed_blocks(host)}
        found[stage] = Counted(
            listings[stage], sass.parse(listings[stage].text).instructions,
            repeated.reshape(len(listings[stage].instructions), -1), accesses[stage], replayed, BATCH, warps,
            resident_warps(90, registers[stage], host.shared_bytes, 0, warps) // warps, *moved[stage],
            stage in CLUSTERS, batch[stage],
        )  # fmt: skip
    return found, version


def replayed_blocks(host: Launch) -> list[int]:
    """The blocks of a batch that the multiprocessors `REPLAYED` get first, or next if all blocks took the same time."""
    return [block for block in range(host.blocks * BATCH) if block % CARD.multiprocessors in REPLAYED]


class Traced(NamedTuple):
    """A block, and the first thread of one of its warps in the launch of the images that are run together."""

    y: int
    image: int
    thread: int


def made(stage: str, rows: NDArray) -> NDArray:
    """The image that each block or cluster (x, y) of a launch makes, by x."""
    return heaviest_first(rows) if stage == "plan_ops" else np.arange(len(rows))


def traced_blocks(host: Launch, first: int, order: NDArray, images: int, batch: NDArray) -> list[Traced]:
    """Of the images from `first` on the blocks that are replayed, for one image or one that repeats it.

    Args:
        order: of the images that are run together, as `made`.
        batch: of the whole batch.
    """
    wanted = sorted({(block // BATCH, int(batch[block % BATCH]) % images) for block in replayed_blocks(host)})
    warps = host.threads // pipes.LANES
    some, place = len(order), np.argsort(order)
    return [
        Traced(y, image, (y * some + place[image - first]) * host.threads + pipes.LANES * warp)
        for y, image in wanted
        if first <= image < first + some
        for warp in range(warps)
    ]


def bytes_moved(stage: str, sample: Sample) -> NDArray:
    """(read, written): bytes that must move from and to the DRAM."""
    table = sample.rows.numpy().view(ROW)[:, 0]
    staged = 3 * SIZE * SIZE
    if stage == "resize":
        return np.array([3.0 * (table["box"][:, 2] * table["box"][:, 3]).sum(), len(table) * staged])
    if stage == "plan_ops":
        return np.array([1.0, 1.0]) * staged * (table["ops"]["op"] != 0).any(1).sum()
    return np.array([1.0, 2.0]) * staged * len(table)


def registers_of(cubin: Path, kernel: str) -> int:
    usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin], check=True, capture_output=True, text=True)
    (registers,) = re.findall(rf"Function \S*{kernel}\S*:\s+REG:(\d+)", usage.stdout)
    return int(registers)
