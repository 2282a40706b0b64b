"""Global, shared and local memory of a Machine, and how many cycles an access of a warp keeps it busy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from benchmarks.compiled.sass.machine import Machine

U32, I64 = np.uint32, np.int64
GLOBAL_BASE, SHARED_WINDOW, LOCAL_WINDOW = 0x7F3A00000000, 0x7E01, 0x7E02  # windows: high words of generic addresses
LOCAL_BYTES = 2048  # of each thread
_BANKS, _SECTOR, _LINE = 32, 32, 128


class Memory:
    """Global memory: what is placed in it, one after the other, 256 bytes apart at least."""

    def __init__(self, size: int) -> None:
        self.bytes = np.full(-(-size // 16) * 16, 0xA5, np.uint8)
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
        if not isinstance(content, int):
            self.bytes[at : at + length] = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        return GLOBAL_BASE + at

    def read(self, address: int, length: int) -> NDArray:
        return self.bytes[address - GLOBAL_BASE : address - GLOBAL_BASE + length]


def located(machine: Machine, space: str, lanes: NDArray, address: NDArray, size: int) -> tuple[NDArray, NDArray]:
    """The bytes of a space, and where in them each lane's address lies.

    Raises:
        IndexError: an address outside the space.
        ValueError: one that is no multiple of the access's size.
    """
    at = address.astype(I64)
    if space == "shared":
        content, first, end = machine.shared, machine.block[lanes] * machine.shared_stride, machine.shared_end
    elif space == "local":
        content, first, end = machine.local, lanes * LOCAL_BYTES, LOCAL_BYTES
    else:
        content, first, end = machine.memory.bytes, 0, len(machine.memory.bytes)
        at = at - GLOBAL_BASE
    here = machine.listing.instructions[machine.now]
    if len(at) and (at.min() < 0 or at.max() + size > end):
        raise IndexError(f"{here}: {space} memory from {at.min():#x} to {at.max():#x}, which has {end:#x} bytes")
    if (at % size).any():
        raise ValueError(f"{here}: an address that is no multiple of {size}")
    return content, at + first


def access(
    machine: Machine, space: str, lanes: NDArray, address: NDArray, size: int, stored: list[NDArray] | None
) -> list[NDArray]:
    """Loads `size` bytes for each lane, as words, or stores these."""
    if space == "generic":
        window = address >> np.uint64(32)
        spaces = {name: window == number for name, number in (("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW))}
        spaces["global"] = ~(spaces["shared"] | spaces["local"])
        words = [np.zeros(len(lanes), U32) for _ in range(max(size // 4, 1))]
        for name, here in spaces.items():
            if here.any():
                inside = address[here] if name == "global" else address[here] & np.uint64(0xFFFFFFFF)
                parts = None if stored is None else [value[here] for value in stored]
                for word, part in zip(words, access(machine, name, lanes[here], inside, size, parts), strict=False):
                    word[here] = part
        return words if stored is None else []
    content, at = located(machine, space, lanes, address, size)
    machine.watch(space, lanes, at, size)
    view = content.view({1: np.uint8, 2: np.uint16}.get(size, U32))
    index = at // min(size, 4)
    if stored is None:
        return [view[index + i].astype(U32, copy=False) for i in range(max(size // 4, 1))]
    for i, value in enumerate(stored):
        view[index + i] = value.astype(view.dtype)
    return []


def exchange(machine: Machine, space: str, lanes: NDArray, address: NDArray, added: NDArray) -> NDArray:
    """Adds to words of memory, one lane after the other; returns what each found."""
    content, at = located(machine, space, lanes, address, 4)
    machine.watch("atomic" if space == "shared" else space, lanes, at, 4)
    view, index = content.view(U32), at // 4
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


def cycles(space: str, warp: NDArray, lane: NDArray, at: NDArray, size: int) -> tuple[int, int]:
    """Cycles that an access keeps the data stage of shared memory and L1 busy, summed over warps, and its sectors.

    Shared memory has 32 banks of 4 bytes: lanes that want different words of a bank wait for each other, atomics also
    those that want the same word. Accesses of 8 and 16 bytes go by half and quarter warps. Of global memory a cycle
    serves a line of 128 bytes; a sector is 32 bytes of it.
    """
    if space == "local":  # a word of all lanes lies together
        return len(np.unique(warp)) * max(size // 4, 1), 0
    if space == "global":
        sectors = np.unique(warp * I64(1 << 40) + at // _SECTOR)
        lines = np.unique(warp * I64(1 << 40) + at // _LINE)
        return len(lines), len(sectors)
    words = max(size // 4, 1)
    part = warp * words + lane.astype(I64) // (32 // words)
    word = np.concatenate([at // 4 + i for i in range(words)])
    key = np.tile(part, words) * I64(1 << 40) + word
    if space != "atomic":
        key = np.unique(key)
    else:
        key = np.sort(key)
    bank = (key >> I64(40)) * _BANKS + key % _BANKS
    bank, many = np.unique(bank, return_counts=True)
    first = np.flatnonzero(np.diff(bank // _BANKS, prepend=-1))
    return int(np.maximum.reduceat(many, first).sum()), 0
