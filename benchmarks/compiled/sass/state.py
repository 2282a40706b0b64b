"""The registers of a grid's lanes, its memories and its barriers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass.listing import Listing
from benchmarks.compiled.sass.memory import GLOBAL_BASE, Fault, Lanes, Ledger, Memory

U32, I64 = np.uint32, np.int64
UNIFORM, URZ, RZ = 256, 256 + 63, 255  # rows of the register file: R0 to R254, RZ, then UR0 to UR62, URZ
PT, UNIFORM_PREDICATES, UPT = 7, 8, 15
WARP = 32
SHARED_WINDOW, LOCAL_WINDOW = 0x7E01, 0x7E02  # high words of generic addresses
LOCAL_BYTES = 2048  # of each thread


class Target(NamedTuple):
    """Where the parameters begin in constant bank 0, and how much of a block's shared memory is the system's."""

    parameters: int
    system_shared: int


_TARGETS = {80: Target(0x160, 0), 90: Target(0x210, 1024)}


class Grid(NamedTuple):
    x: int
    y: int


@dataclass
class Active:
    """The lanes of a step. Where many are active, arrays are computed whole and written through `mask`."""

    at: Any  # a slice, or the numbers of lanes
    mask: NDArray | None

    @classmethod
    def of(cls, mask: NDArray) -> Active:
        lanes = np.flatnonzero(mask)
        return cls(slice(None), mask) if 4 * len(lanes) >= len(mask) else cls(lanes, None)

    def lanes(self) -> NDArray:
        return np.flatnonzero(self.mask) if self.mask is not None else self.at

    def sparse(self) -> Active:
        """The same lanes by their numbers."""
        return Active(self.lanes(), None)


class State:
    """What instructions read and write; `Machine`, which runs them, says what the arguments and attributes are."""

    def __init__(
        self, listing: Listing, grid: tuple[int, int], threads: int, shared_bytes: int, parameters: bytes,
        memory: Memory, *, checked: bool = False,
    ) -> None:  # fmt: skip
        self.listing, self.memory = listing, memory
        grid, target = Grid(*grid), _TARGETS[listing.capability]
        self.blocks, count = grid.x * grid.y, grid.x * grid.y * threads
        lane = np.arange(count)
        thread = lane % threads
        self.block, self.lane_in_warp = lane // threads, (thread % WARP).astype(U32)
        self.warp = self.block * -(-threads // WARP) + thread // WARP
        self.block_of_warp = np.arange(self.warp[-1] + 1) // -(-threads // WARP)
        special: dict[str, Any] = {
            "SR_TID.X": thread, "SR_CTAID.X": self.block % grid.x, "SR_CTAID.Y": self.block // grid.x,
            "SR_LANEID": self.lane_in_warp, "SR_LTMASK": (1 << self.lane_in_warp.astype(I64)) - 1,
            "SR_SWINHI": lane * 0 + SHARED_WINDOW, "SR_LWINHI": lane * 0 + LOCAL_WINDOW,
        }  # fmt: skip
        self.special = {name: values.astype(U32) for name, values in special.items()}
        self.rows = list(np.zeros((UNIFORM + 64, count), U32))
        self.predicates = np.zeros((16, count), bool)
        self.predicates[[PT, UPT]] = True
        self.shared_end = target.system_shared + shared_bytes
        self.shared_stride = -(-self.shared_end // 256) * 256
        self.shared = np.full(self.blocks * self.shared_stride, 0xA5, np.uint8)
        self.local = np.full(count * LOCAL_BYTES, 0xA5, np.uint8)
        bank = bytearray(target.parameters) + parameters
        struct.pack_into("<6I", bank, 0, threads, 1, 1, *grid, 1)
        struct.pack_into("<I", bank, 0x28, LOCAL_BYTES)
        struct.pack_into("<I", bank, 0x140, 1)  # there are clusters: barriers for them look here
        self.constants = listing.constants | {0: bytes(bank)}

        self.pc = np.zeros(count, np.int32)
        self.waiting, self.alive = np.zeros(count, bool), np.ones(count, bool)
        self._at_cluster, self._cluster = np.zeros(count, bool), self.block % grid.x
        self._barriers = np.zeros(self.blocks, I64)  # that each block has passed
        self.copies, self._copied = np.zeros((2, len(self.block_of_warp)), I64)  # groups begun and arrived, by warp
        written = {"shared": np.zeros(len(self.shared), bool), "local": np.zeros(len(self.local), bool)}
        written |= {"global": memory.written}
        self._ledgers = {name: Ledger(written[name], least) for name, least in listing.least_bytes.items() if checked}

    def write(self, row: int, value: Any, active: Active) -> None:
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

    def whole_warps(self, active: Active) -> NDArray:
        """The active lanes, which must be all lanes of their warps."""
        lanes = active.lanes()
        if len(lanes) % WARP or (self.lane_in_warp[lanes] != np.tile(np.arange(WARP), len(lanes) // WARP)).any():
            raise Fault("not all lanes of a warp take part")
        return lanes

    # Barriers

    def arrive(self, lanes: NDArray, cluster: bool = False) -> None:
        """Lanes at a barrier, which opens for a block or cluster when all its lanes that still run are there."""
        self.waiting[lanes] = True
        self._at_cluster[lanes] = cluster
        self.open_barriers()

    def open_barriers(self) -> None:
        for team, here in ((self.block, self.waiting & ~self._at_cluster), (self._cluster, self._at_cluster)):
            missing = np.bincount(team[self.alive & ~here], minlength=self.blocks)
            open_ = here & (missing[team] == 0)
            self.waiting[open_] = self._at_cluster[open_] = False
            self._barriers[np.unique(self.block[open_])] += 1

    # Memory

    def load(self, space: str, lanes: NDArray, address: NDArray, size: int) -> list[NDArray]:
        """`size` bytes for each lane, as words."""
        if space == "generic":
            words = [np.zeros(len(lanes), U32) for _ in range(max(size // 4, 1))]
            for name, here, inside in self._windows(address):
                for word, part in zip(words, self.load(name, lanes[here], inside, size), strict=True):
                    word[here] = part
            return words
        view, index = self._located(space, lanes, address, size)
        if space in self._ledgers:
            self._ledgers[space].load(index * view.itemsize, size, self._who(lanes))
        return [view[index + i].astype(U32, copy=False) for i in range(max(size // 4, 1))]

    def store(
        self, space: str, lanes: NDArray, address: NDArray, size: int, words: list[NDArray], copied: bool = False
    ) -> None:
        """Words of each lane, of which `size` bytes count. `copied`: to arrive when their group is waited for."""
        if space == "generic":
            for name, here, inside in self._windows(address):
                self.store(name, lanes[here], inside, size, [word[here] for word in words])
            return
        view, index = self._located(space, lanes, address, size)
        words = [word.astype(view.dtype) for word in words]
        for i, word in enumerate(words):
            view[index + i] = word
        if space in self._ledgers:
            group = self.copies[self.warp[lanes]] if copied else None
            self._ledgers[space].store(index * view.itemsize, size, self._who(lanes), group)
            if any((view[index + i] != word).any() for i, word in enumerate(words)):
                raise Fault("lanes store different values at one address at once")

    def add(self, space: str, lanes: NDArray, address: NDArray, added: NDArray) -> NDArray:
        """Adds to words of memory, one lane after the other; returns what each found."""
        view, index = self._located(space, lanes, address, 4)
        added = np.broadcast_to(added, index.shape).astype(U32)
        order = np.argsort(index, kind="stable")
        sums = np.cumsum(added[order], dtype=np.uint64)
        before = np.concatenate([[0], sums[:-1]]).astype(np.uint64)
        new = np.flatnonzero(np.diff(index[order], prepend=-1))
        group = np.cumsum(np.diff(index[order], prepend=-1) != 0) - 1
        found = np.empty(len(index), U32)
        found[order] = view[index[order]] + (before - before[new][group]).astype(U32)
        np.add.at(view, index, added)
        return found

    def end_group(self, lanes: NDArray) -> None:
        """The copies of these lanes' warps until now are a group."""
        self.copies[np.unique(self.warp[lanes])] += 1

    def wait_for_groups(self, lanes: NDArray, left: int) -> None:
        """These lanes' warps wait until at most so many of their groups are under way."""
        warps = np.unique(self.warp[lanes])
        self._copied[warps] = np.maximum(self._copied[warps], self.copies[warps] - left)
        if "shared" in self._ledgers:
            self._ledgers["shared"].wait(self._copied, self._barriers[self.block_of_warp])

    def _who(self, lanes: NDArray) -> Lanes:
        block = self.block[lanes]
        return Lanes(self.warp[lanes], block, self._barriers[block])

    def _located(self, space: str, lanes: NDArray, address: NDArray, size: int) -> tuple[NDArray, NDArray]:
        """The bytes of a space, as units of at most a word, and of each lane the number of the first that it accesses.

        Raises:
            IndexError: an address outside the space.
            ValueError: one that is no multiple of the access's size.
        """
        content = getattr(self, space, self.memory.bytes)
        at, first, end = address.astype(I64), lanes * 0, len(content)
        if space == "shared":
            first, end = self.block[lanes] * self.shared_stride, self.shared_end
        elif space == "local":
            first, end = lanes * LOCAL_BYTES, LOCAL_BYTES
        else:
            at -= GLOBAL_BASE
        outside = (at < 0) | (at + size > end)
        if space == "global" and not outside.any():
            outside = ~(self.memory.given[at] & self.memory.given[at + size - 1])
        if outside.any():
            raise IndexError(f"{space} memory at {at[outside][0]:#x}, outside of what there is")
        if (at % size).any():
            raise ValueError(f"an address that is no multiple of {size}")
        at = at + first
        return content.view({1: np.uint8, 2: np.uint16}.get(size, U32)), at // min(size, 4)

    @staticmethod
    def _windows(address: NDArray) -> Iterator[tuple[str, NDArray, NDArray]]:
        """The space of each generic address: (space, which are in it, their addresses there)."""
        window = address >> np.uint64(32)
        within = {name: window == number for name, number in (("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW))}
        for name, here in (within | {"global": ~(within["shared"] | within["local"])}).items():
            if here.any():
                yield name, here, address[here] if name == "global" else address[here] & np.uint64(0xFFFFFFFF)
