"""Memory of the machine: global memory as the host fills it, and a space of bytes that knows who touched them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

U32, I32, I64 = np.uint32, np.int32, np.int64
GLOBAL_BASE = 0x7F3A00000000
_NOBODY, _SEVERAL = -1, -2  # instead of the warp that accessed a cell last
_EPOCH_BITS = 20  # a time is a block's number, followed by so many bits that count the barriers it has passed
_NEVER = -1  # of no block, so in order with nothing


class Fault(RuntimeError):
    """The kernel does what leaves a result to chance, or touches memory that is not its own."""


class Memory:
    """Global memory: what is placed in it, one after the other, 256 bytes apart at least."""

    def __init__(self, size: int) -> None:
        self.bytes = np.full(-(-size // 16) * 16, 0xA5, np.uint8)
        self.given, self.written = np.zeros((2, len(self.bytes)), bool)
        self._next = 256

    def place(self, content: NDArray | int) -> int:
        """The address of a copy of an array, or of so many bytes, which stay poisoned.

        Raises:
            ValueError: the memory is full.
        """
        length = content if isinstance(content, int) else content.nbytes
        at, self._next = self._next, self._next + (length + 511) // 256 * 256
        if self._next > len(self.bytes):
            raise ValueError(f"{self._next} bytes of {len(self.bytes)}")
        self.given[at : at + length] = True
        if not isinstance(content, int):
            self.bytes[at : at + length] = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
            self.written[at : at + length] = True
        return GLOBAL_BASE + at

    def read(self, address: int, length: int) -> NDArray:
        return self.bytes[address - GLOBAL_BASE : address - GLOBAL_BASE + length]


class Lanes(NamedTuple):
    """Who accesses memory: of each lane its warp, that warp's block, and how many barriers the block has passed."""

    warp: NDArray
    block: NDArray
    barriers: NDArray


class Ledger:
    """Who stored and loaded each cell of a memory last: finds races, and loads of what nobody has stored.

    Two accesses to a cell, one of them a store, are in order if one warp makes both, or two warps of a block with a
    barrier between. A copy to shared memory (LDGSTS) is a store that lasts until its warp has waited for its group.

    Args:
        written: of each byte, whether it holds something.
        cell: bytes that are looked at as one, the least that the kernel accesses.
    """

    def __init__(self, written: NDArray, cell: int) -> None:
        self.cell = cell
        self._written = written.reshape(-1, cell).all(1)
        count = len(self._written)
        self._stored_by, self._loaded_by = np.full((2, count), _NOBODY, I32)
        self._stored_at, self._loaded_at = np.full((2, count), _NEVER, I64)
        self._flying = np.zeros(count, bool)
        self._copies: list[tuple[NDArray, NDArray, NDArray]] = []  # warps, their groups, cells

    def load(self, at: NDArray, size: int, lanes: Lanes) -> None:
        """Lanes load `size` bytes each, from `at` on."""
        cells, warp, time = self._spread(at, size, lanes)
        self._check("loads what nobody stored", ~self._written[cells], cells, warp)
        self._check("loads what a copy not waited for stores", self._flying[cells], cells, warp)
        by, when = self._stored_by[cells], self._stored_at[cells]
        self._check("loads, no barrier between, what was stored", _unordered(by, when, warp, time), cells, warp, by)
        others = _unordered(self._loaded_by[cells], self._loaded_at[cells], warp, time)
        foreign = others & (self._loaded_at[cells] >> _EPOCH_BITS != time >> _EPOCH_BITS)
        self._loaded_by[cells] = by = np.where(others, _SEVERAL, warp)
        self._loaded_at[cells] = np.where(foreign, _NEVER, time)
        at_once = self._loaded_by[cells] != by
        foreign = at_once & (self._loaded_at[cells] >> _EPOCH_BITS != time >> _EPOCH_BITS)
        self._loaded_by[cells[at_once]] = _SEVERAL
        self._loaded_at[cells[foreign]] = _NEVER

    def store(self, at: NDArray, size: int, lanes: Lanes, group: NDArray | None = None) -> None:
        """Lanes store `size` bytes each, from `at` on. `group`: each lane's group of copies to shared memory."""
        cells, warp, time = self._spread(at, size, lanes)
        self._check("stores over what a copy not waited for stores", self._flying[cells], cells, warp)
        for past, last in (("stored", self._stored_by), ("loaded", self._loaded_by)):
            when = self._stored_at if past == "stored" else self._loaded_at
            raced = _unordered(last[cells], when[cells], warp, time)
            self._check(f"stores, no barrier between, over what was {past}", raced, cells, warp, last[cells])
        self._stored_by[cells], self._stored_at[cells], self._written[cells] = warp, time, True
        by = self._stored_by[cells]
        self._check("stores at once what is stored", by != warp, cells, warp, by)
        if group is not None:
            self._flying[cells] = True
            self._copies.append((warp, np.repeat(group, size // self.cell), cells))

    def wait(self, done: NDArray, barriers: NDArray) -> None:
        """The copies of each warp's groups below `done` arrive, after so many `barriers` of its block."""
        left = []
        for warp, group, cells in self._copies:
            arrived = group < done[warp]
            there = cells[arrived]
            self._flying[there] = False
            self._stored_at[there] = (self._stored_at[there] >> _EPOCH_BITS << _EPOCH_BITS) + barriers[warp[arrived]]
            if not arrived.all():
                left.append((warp[~arrived], group[~arrived], cells[~arrived]))
        self._copies = left

    def _spread(self, at: NDArray, size: int, lanes: Lanes) -> tuple[NDArray, NDArray, NDArray]:
        """The cells of accesses, and the warp and time of each."""
        count = size // self.cell
        cells = (at[:, None] // self.cell + np.arange(count)).reshape(-1)
        time = (lanes.block.astype(I64) << _EPOCH_BITS) + lanes.barriers
        return cells, np.repeat(lanes.warp.astype(I32), count), np.repeat(time, count)

    def _check(self, what: str, wrong: NDArray, cells: NDArray, warp: NDArray, by: NDArray | None = None) -> None:
        if wrong.any():
            first = np.flatnonzero(wrong)[0]
            whom = "" if by is None else " by several" if by[first] == _SEVERAL else f" by warp {by[first]}"
            raise Fault(f"warp {warp[first]} {what}{whom}, at byte {cells[first] * self.cell:#x}")


def _unordered(by: NDArray, when: NDArray, warp: NDArray, time: NDArray) -> NDArray:
    """Whether no barrier lies between an access of somebody, at some time, and one of a warp now."""
    near = (when == time) | (when >> _EPOCH_BITS != time >> _EPOCH_BITS)
    return near & (by != _NOBODY) & (by != warp)
