"""The time of a kernel whose blocks differ, from what their warps issued: bounds, blocks in order, a replay."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.model import pipes
from benchmarks.compiled.model.predict import CORRECTION
from benchmarks.compiled.model.replay import DRAM_LATENCY, L2_LATENCY, Traffic, replay
from benchmarks.compiled.model.sass import Instruction
from benchmarks.compiled.sass.listing import Listing

DOUBLE = {"DADD", "DMUL", "DFMA", "DSETP"}
DOUBLE_CLOCKS = 2  # 64 lanes of a multiprocessor, sm_90
PIPES = (*pipes.PIPES, "double")


@dataclass(frozen=True)
class Counted:
    """What a launch's blocks issued, and how it was launched.

    Attributes:
        program: the instructions with their control bits.
        counts: int64 (instructions, blocks); block (x, y) has number y * images + x.
        accesses: as of a Machine.
        paths: of some blocks, by number, what each of its warps issued, as indices.
        images: of the launch.
        warps: of a block.
        resident: blocks that fit on a multiprocessor.
        read, written: bytes that the launch must move from and to the DRAM.
        clusters: whether the blocks of an image are given out together; else in the order of their numbers.
        made: the image that blocks (x, y) make, by x; else x.
    """

    listing: Listing
    program: Sequence[Instruction]
    counts: NDArray
    accesses: NDArray
    paths: dict[int, list[list[int]]]
    images: int
    warps: int
    resident: int
    read: float
    written: float
    clusters: bool = False
    made: NDArray | None = None

    @property
    def issued(self) -> Counter[str]:
        """Warp instructions an image by opcode."""
        total: Counter[str] = Counter()
        for instruction, count in zip(self.listing.instructions, self.counts.sum(1), strict=True):
            total[instruction.opcode] += count / self.images
        return total

    @property
    def instructions(self) -> float:
        """Warp instructions an image."""
        return self.counts.sum() / self.images

    def first(self, images: int) -> float:
        """Warp instructions an image, of the first images only."""
        made = np.arange(self.images) if self.made is None else self.made
        return self.counts.reshape(-1, self.images)[:, made < images].sum() / images


def pipe_clocks(counted: Counted, card: pipes.Card) -> NDArray:
    """(pipes, instructions): clocks that one issue takes of each of `PIPES`."""
    table = np.zeros((len(PIPES), len(counted.program)))
    for place, instruction in enumerate(counted.program):
        taken = pipes.cost(instruction, card)
        pipe, clocks = taken.pipe, taken.clocks
        if instruction.name in DOUBLE:
            pipe, clocks = "double", DOUBLE_CLOCKS
        elif pipe == "memory" and not np.isnan(counted.accesses[place, 0]):
            clocks = pipes.SUB_PARTITIONS * counted.accesses[place, 0]
        table[PIPES.index(pipe), place] += clocks
        table[PIPES.index("issue"), place] += 1
        if pipe == "multiply":  # on the first of the two halves of the float pipe
            table[PIPES.index("float"), place] += 1
    return table


def makespan(work: NDArray, multiprocessors: int, resident: int) -> float:
    """Clocks until all blocks are done.

    Blocks are given out in order, each to the multiprocessor with the fewest blocks, `resident` at most; those of a
    multiprocessor share its pipe evenly.

    Args:
        work: clocks of the binding pipe that each block takes alone.
    """
    held: list[list[float]] = [[] for _ in range(multiprocessors)]  # work done when a block ends, on its own scale
    done = [0.0] * multiprocessors  # work that each block there has been given
    now = [0.0] * multiprocessors
    ends = 0.0
    queue = list(work)
    waiting = 0
    for _ in range(resident):
        for place in range(multiprocessors):
            if waiting < len(queue):
                heapq.heappush(held[place], queue[waiting])
                waiting += 1
    events = [(min(blocks) * len(blocks), place) for place, blocks in enumerate(held) if blocks]
    heapq.heapify(events)
    while events:
        at, place = heapq.heappop(events)
        blocks = held[place]
        done[place] = heapq.heappop(blocks)
        now[place] = ends = at
        if waiting < len(queue):
            heapq.heappush(blocks, done[place] + queue[waiting])
            waiting += 1
        if blocks:
            heapq.heappush(events, (at + (blocks[0] - done[place]) * len(blocks), place))
    return ends


@dataclass(frozen=True)
class Stage:
    """The prediction of one launch, in µs an image.

    Attributes:
        bounds: pipe -> the least time in which any schedule of the instructions runs, spread over all multiprocessors.
        blocks: the binding pipe's time where whole blocks are given to multiprocessors.
        replayed: how many times as long as its bound the replay of whole multiprocessors takes.
        dram: of the bytes that must be moved.
        predicted: the answer.
    """

    instructions: float
    bounds: dict[str, float]
    blocks: float
    replayed: float
    dram: float
    predicted: float

    @property
    def binding(self) -> str:
        if self.dram >= self.blocks * self.replayed:
            return "DRAM"
        pipe = max(self.bounds, key=self.bounds.__getitem__)
        uneven = self.blocks / self.bounds[pipe]
        return pipe + (f", uneven blocks × {uneven:.2f}" if uneven > 1.1 else "")


def predict(counted: Counted, card: pipes.Card) -> Stage:
    table = pipe_clocks(counted, card)
    by_block = table @ counted.counts / pipes.SUB_PARTITIONS  # clocks of a sub-partition
    mean = by_block.sum(1) / card.multiprocessors
    work = by_block.max(0)
    if counted.clusters:
        work = work.reshape(-1, counted.images).T.ravel()
    ends = makespan(work, card.multiprocessors, counted.resident)
    scale = card.microseconds(1) / counted.images
    share = replayed_share(counted, card)
    dram = 1e6 * (counted.read + counted.written) / (card.bandwidth * pipes.SUSTAINED) / counted.images
    return Stage(
        counted.instructions, dict(zip(PIPES, mean * scale, strict=True)), ends * scale, share, dram,
        CORRECTION * max(ends * scale * share, dram),
    )  # fmt: skip


def replayed_share(counted: Counted, card: pipes.Card) -> float:
    """Over the multiprocessors whose blocks have paths: clocks of the replay over those of its binding pipe.

    Each sub-partition is replayed with its own warps, and the slowest of them counts, since the block waits for it.
    """
    places: dict[int, list[int]] = {}
    for block in sorted(counted.paths):
        places.setdefault(block % card.multiprocessors, []).append(block)
    took = bound = 0.0
    for blocks in places.values():
        warps = [[[counted.program[place] for place in path] for path in counted.paths[block]] for block in blocks]
        portion = len(blocks) / counted.counts.shape[1]
        sides = range(min(pipes.SUB_PARTITIONS, counted.warps))
        took += max(
            _replayed(counted, card, [block[side :: pipes.SUB_PARTITIONS] for block in warps], portion)
            for side in sides
        )
        clocks = np.sum([list(pipes.tally(path, card).values()) for block in warps for path in block], axis=0)
        bound += clocks.max() / pipes.SUB_PARTITIONS
    return took / bound


def _replayed(counted: Counted, card: pipes.Card, paths: list[list[list[Instruction]]], portion: float) -> float:
    """Clocks of a sub-partition that runs these warps of some blocks, a portion of all."""
    moved = [pipes.global_bytes(path, card) for block in paths for path in block]
    loaded, stored = np.sum(moved, axis=0) * pipes.SUB_PARTITIONS
    load = min(counted.read * portion / loaded, 1.0) if loaded else 1.0
    traffic = Traffic(
        load, min(counted.written * portion / stored, 1.0) if stored else 1.0, counted.counts.shape[1],
        load * DRAM_LATENCY + (1 - load) * L2_LATENCY,  # the rest was stored or loaded shortly before
    )  # fmt: skip
    return replay(
        paths, card, warps=counted.warps, resident=counted.resident, programs=len(paths), traffic=traffic
    ).clocks
