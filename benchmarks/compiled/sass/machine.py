"""Runs the machine code of a kernel (sm_90) on the CPU, instruction by instruction, and counts what it executes.

    listing = Listing.of(cubin, "resize_kernel")
    machine = Machine(listing, grid=(8, 3), threads=256, shared_bytes=70_000, parameters=bytes_, memory=memory)
    machine.run()
    machine.counts          # how often the warps of each block issued each instruction

All threads of all blocks are lanes of NumPy arrays: a step runs one instruction for every lane that has come to it. The
lanes at the lowest address go first, which brings a warp's lanes together where the compiler meant them to meet. A warp
issues an instruction once however many of its lanes are active, and also where its guard holds for none of them.

NVIDIA does not document what the instructions do. That a kernel stores the CPU's bytes is the proof that those it
executes are read correctly; one that is not known ends the run.

It does not see: time; which part of a warp goes first where its lanes part, and so whether it issues what follows once
or twice; the last bits of MUFU's approximations.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass import floating, flow, integers, warp  # noqa: F401  they register their instructions
from benchmarks.compiled.sass.listing import Listing
from benchmarks.compiled.sass.memory import LOCAL_BYTES, LOCAL_WINDOW, SHARED_WINDOW, Memory, cycles
from benchmarks.compiled.sass.operands import PT, RZ, UNIFORM, UPT, URZ, WARP, Active, compiled

_SYSTEM_SHARED = 1024  # the first bytes of a block's shared memory belong to the system
_PARAMETERS = 0x210  # where a kernel's parameters begin in constant bank 0, sm_90
_NOWHERE = np.int32(2**31 - 1)
_WATCHED_FIRST, _WATCHED_EVERY = 8, 16


class Grid(NamedTuple):
    x: int
    y: int


class Machine:
    """A grid of blocks that runs a listing.

    Args:
        grid: blocks along x and y; block (x, y) has number y * grid.x + x. Those of one x are a cluster, should the
            kernel have a barrier for it.
        shared_bytes: dynamic shared memory of a block.
        parameters: of the kernel, as they lie in memory.
        watched: whether to look at the addresses of memory accesses.
        traced: first threads of warps, by number in the whole grid, whose paths are kept.

    Attributes:
        counts: int64 (instructions, blocks), how often the block's warps issued the instruction.
        accesses: float64 (instructions, 2), of one issue of the instruction the clocks for which it holds the data
            stage of shared memory and L1, and the sectors of 32 bytes of global memory; NaN where it was not watched.
        paths: of each traced thread, the indices of the instructions that its warp issued.
    """

    def __init__(
        self, listing: Listing, grid: tuple[int, int], threads: int, shared_bytes: int, parameters: bytes,
        memory: Memory, *, watched: bool = False, traced: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.listing, self.memory, self.watched, self.traced = listing, memory, watched, tuple(traced)
        grid = Grid(*grid)
        self.blocks, count = grid.x * grid.y, grid.x * grid.y * threads
        lane = np.arange(count)
        thread = lane % threads
        self.block, self.lane_in_warp = lane // threads, (thread % WARP).astype(np.uint32)
        self.warp = self.block * -(-threads // WARP) + thread // WARP
        self._block_of_warp = np.arange(self.warp[-1] + 1) // -(-threads // WARP)
        self.special = {
            "SR_TID.X": thread, "SR_CTAID.X": self.block % grid.x, "SR_CTAID.Y": self.block // grid.x,
            "SR_LANEID": self.lane_in_warp, "SR_LTMASK": (1 << self.lane_in_warp.astype(np.int64)) - 1,
            "SR_SWINHI": lane * 0 + SHARED_WINDOW, "SR_LWINHI": lane * 0 + LOCAL_WINDOW,
        }  # fmt: skip
        self.special = {name: values.astype(np.uint32) for name, values in self.special.items()}
        self.rows = list(np.zeros((UNIFORM + 64, count), np.uint32))
        self.predicates = np.zeros((16, count), bool)
        self.predicates[[PT, UPT]] = True
        self.shared_end = _SYSTEM_SHARED + shared_bytes
        self.shared_stride = -(-self.shared_end // 256) * 256
        self.shared = np.full(self.blocks * self.shared_stride, 0xA5, np.uint8)
        self.local = np.full(count * LOCAL_BYTES, 0xA5, np.uint8)
        bank = bytearray(_PARAMETERS) + parameters
        struct.pack_into("<6I", bank, 0, threads, 1, 1, *grid, 1)
        struct.pack_into("<I", bank, 0x28, LOCAL_BYTES)
        struct.pack_into("<I", bank, 0x140, 1)  # there are clusters: barriers for them look here
        self.constants = listing.constants | {0: bytes(bank)}

        size = len(listing.instructions)
        self.pc = np.zeros(count, np.int32)
        self.waiting, self.alive = np.zeros(count, bool), np.ones(count, bool)
        self._at_cluster, self._cluster = np.zeros(count, bool), self.block % grid.x
        self.counts = np.zeros((size, self.blocks), np.int64)
        self.paths: dict[int, list[int]] = {thread: [] for thread in self.traced}
        self.now = self._issuing = 0
        self._seen, self._watched_warps, self._clocks, self._sectors = np.zeros((4, size), np.int64)
        self._code = [compiled(self, instruction) for instruction in listing.instructions]

    @property
    def accesses(self) -> NDArray:
        with np.errstate(invalid="ignore"):
            return np.stack([self._clocks, self._sectors], axis=1) / self._watched_warps[:, None]

    def run(self) -> None:
        """Run all threads to their ends.

        Raises:
            RuntimeError: threads of a block wait at a barrier that others never reach.
            NotImplementedError: an instruction that is not known.
            IndexError, ValueError: an address outside the memory, or one that the access may not have.
        """
        with np.errstate(all="ignore"):
            while (ready := self.alive & ~self.waiting).any():
                self._run_group(ready)
        if self.waiting.any():
            raise RuntimeError("some threads of a block wait at a barrier that others never reach")

    def _run_group(self, ready: NDArray) -> None:
        """The lanes with the lowest address, until they part, stop at a barrier, or come to where others are."""
        places = np.where(ready, self.pc, _NOWHERE)
        at = begun = int(places.min())
        mask = places == at
        others = int(np.where(mask, _NOWHERE, places).min())
        active, warps = self._active(mask)
        here = np.flatnonzero(warps)
        warps, everywhere = warps[here], len(here) == self.blocks
        self._issuing = int(warps.sum())
        traced = [thread for thread in self.traced if mask[thread : thread + WARP].any()]
        while True:
            self.now = at
            goto = self._code[at](active)
            at += 1
            if goto is None and at < others:
                continue
            self.counts[begun:at, slice(None) if everywhere else here] += warps
            for thread in traced:
                self.paths[thread] += range(begun, at)
            if callable(goto):
                goto(mask, at)
                return
            at = begun = at if goto is None else goto
            if at >= others:
                self.pc[mask] = at
                return

    def _active(self, mask: NDArray) -> tuple[Active, NDArray]:
        """The lanes of a mask, and how many warps they are of each block."""
        lanes = np.flatnonzero(mask)
        warps = self.warp[lanes]
        new = warps[np.flatnonzero(np.diff(warps, prepend=-1))]
        by_block = np.bincount(self._block_of_warp[new], minlength=self.blocks)
        dense = 4 * len(lanes) >= len(mask)
        return Active(slice(None) if dense else lanes, mask if dense else None), by_block

    def write(self, row: int, value: NDArray, active: Active) -> None:
        """Write a register; what is written to RZ is lost."""
        if row in (RZ, URZ):
            return
        if active.mask is None:
            self.rows[row][active.at] = value
        else:
            np.copyto(self.rows[row], value, where=active.mask, casting="unsafe")

    def write_predicate(self, row: int, value: NDArray, active: Active) -> None:
        """Write a predicate; what is written to PT is lost."""
        if row in (PT, UPT):
            return
        if active.mask is None:
            self.predicates[row][active.at] = value
        else:
            np.copyto(self.predicates[row], value, where=active.mask)

    def arrive(self, lanes: NDArray, cluster: bool = False) -> None:
        """Lanes at a barrier, which opens for a block or cluster when all its lanes that still run are there.

        A warp's lanes come to it together on a card, where a BSYNC before it waits for all of them. Here they may come
        in parts, of which the last one counts.
        """
        self.waiting[lanes] = True
        self._at_cluster[lanes] = cluster
        missing = np.zeros(len(self._block_of_warp), bool)
        missing[self.warp[self.alive & ~self.waiting]] = True
        for late in np.unique(self.warp[lanes]):
            if missing[late]:
                self.counts[self.now, self._block_of_warp[late]] -= 1
        for thread, path in self.paths.items():
            if missing[self.warp[thread]] and lanes[thread : thread + WARP].any():
                path.pop()
        self.open_barriers()

    def open_barriers(self) -> None:
        for team, here in ((self.block, self.waiting & ~self._at_cluster), (self._cluster, self._at_cluster)):
            missing = np.bincount(team[self.alive & ~here], minlength=self.blocks)
            open_ = here & (missing[team] == 0)
            self.waiting[open_] = self._at_cluster[open_] = False

    def watch(self, space: str, lanes: NDArray, at: NDArray, size: int) -> None:
        """Count the clocks and sectors of the first accesses of an instruction and then of every 16th."""
        if not self.watched:
            return
        self._seen[self.now] += 1
        if self._seen[self.now] > _WATCHED_FIRST and self._seen[self.now] % _WATCHED_EVERY:
            return
        clocks, sectors = cycles(space, self.warp[lanes], self.lane_in_warp[lanes], at, size)
        self._watched_warps[self.now] += self._issuing
        self._clocks[self.now] += clocks
        self._sectors[self.now] += sectors
