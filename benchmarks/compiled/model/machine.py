"""Runs the machine code of a CUDA kernel (sm_90) on the CPU, instruction by instruction, and counts what it executes.

    listing = Listing.of(cubin, "resize_kernel")
    machine = Machine(listing, grid=(8, 3), threads=256, shared_bytes=70_000, arguments=bytes, memory=memory)
    machine.run()
    machine.counts          # how often warps issued each instruction of the listing

All threads of all blocks are lanes of NumPy arrays: a step runs one instruction for every lane that is at it, and the
lanes with the lowest address go first, which brings the lanes of a warp together where the compiler meant them to meet.
A warp issues an instruction once however many of its lanes are active, predicated off or not. What the instructions do
(operations.py) is not documented by NVIDIA: that the kernels store the CPU's bytes is the proof that they are read
correctly.

What this does not see: time. Which of two diverged parts of a warp goes first may differ on a card, and so may the
number of issues where they meet; approximations (MUFU) are rounded correctly here, and not there.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.model.memory import LOCAL_BYTES, LOCAL_WINDOW, SHARED_WINDOW, Memory, cycles

WARP = 32
UNIFORM, URZ, RZ = 256, 256 + 63, 255  # rows of the register file: R0 to R254, RZ, then UR0 to UR62, URZ
PT, UNIFORM_PREDICATES, UPT = 7, 8, 15
SHARED_BASE = 1024  # the first bytes of a block's shared memory belong to the system
PARAMETERS = 0x210  # of a kernel, in constant bank 0; sm_90

_NOWHERE = np.int32(2**31 - 1)

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T])\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
_SECTION = re.compile(r"^\.text\.(\S+):")


@dataclass(frozen=True)
class Instruction:
    """One line of machine code: `@!P0 IADD3.X R1, R2, ~R3, RZ, P1, !PT` with its address in bytes."""

    address: int
    guard: str | None
    opcode: str
    operands: tuple[str, ...]

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def modifiers(self) -> set[str]:
        return set(self.opcode.split(".")[1:])

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{self.address:#06x} {guard}{self.opcode} {', '.join(self.operands)}"


@dataclass(frozen=True)
class Listing:
    """A kernel's instructions, its labels as indices into them, and the constant banks of its file."""

    instructions: list[Instruction]
    labels: dict[str, int]
    constants: dict[int, bytes]

    @classmethod
    def of(cls, cubin: Path, kernel: str, nvdisasm: Path) -> Listing:
        """The kernel whose mangled name contains `kernel`.

        Raises:
            ValueError: no kernel or several of that name.
        """
        text = subprocess.run([nvdisasm, "-c", cubin], check=True, capture_output=True, text=True).stdout
        parts = re.split(r"^\s*\.section\s+\.text\.(\S+?),.*$", text, flags=re.MULTILINE)
        found = [(name, part) for name, part in zip(parts[1::2], parts[2::2], strict=True) if kernel in name]
        if len(found) != 1:
            raise ValueError(f"{len(found)} kernels of {cubin.name} are called {kernel}: {parts[1::2]}")
        name, lines = found[0]
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for line in lines.splitlines():
            if label := _LABEL.match(line):
                labels[label[1]] = len(instructions)
            elif match := _INSTRUCTION.match(line):
                address, guard, opcode, operands = match.groups()
                instructions.append(Instruction(int(address, 16), guard, opcode, split_operands(operands)))
        return cls(instructions, labels, constant_banks(cubin.read_bytes(), name))


def split_operands(text: str) -> tuple[str, ...]:
    text = re.sub(r"\(\*.*?\*\)", "", text).replace(".reuse", "")
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


def constant_banks(elf: bytes, kernel: str) -> dict[int, bytes]:
    """The constant banks that a kernel sees, from the sections .nv.constant<bank> and .nv.constant<bank>.<kernel>."""
    offset, = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, offset + i * size) for i in range(count)]
    banks = {}
    for name, kind, _, _, start, length in sections:
        begin = sections[names][4] + name
        called = elf[begin : elf.index(b"\0", begin)].decode()
        match = re.fullmatch(r"\.nv\.constant(\d+)(?:\.(.*))?", called)
        if match and match[2] in (None, kernel) and kind != 8:  # 8: holds no bytes
            banks[int(match[1])] = elf[start : start + length]
    return banks


@dataclass
class Active:
    """The lanes of a step. Where many are active, arrays are computed whole and written through `mask`."""

    at: slice | NDArray
    mask: NDArray | None
    warps: int = 0
    images: NDArray = field(repr=False, default=None)

    def lanes(self) -> NDArray:
        return np.flatnonzero(self.mask) if self.mask is not None else self.at


Operation = Callable[["Machine", Active], None]


class Machine:
    """A grid of blocks that runs a listing.

    Args:
        grid: blocks along x and y. Counts are kept by x, an image's number in every kernel here.
        arguments: the kernel's parameters as they lie in constant bank 0.
        trace: a lane whose warp's instructions are written down, as indices into the listing, in `traced`.

    Attributes:
        counts: of each instruction, how often a warp issued it.
        by_image: of each x, how many instructions its warps issued.
        wavefronts: of each instruction, cycles in the shared memory's or L1's data stage; 0 where `watched` was off.
    """

    def __init__(
        self, listing: Listing, grid: tuple[int, int], threads: int, shared_bytes: int, arguments: bytes, memory: Memory,
        *, watched: bool = False, trace: int | None = None,
    ) -> None:  # fmt: skip
        from benchmarks.compiled.model.operations import compiled

        self.listing, self.threads, self.memory, self.watched, self.trace = listing, threads, memory, watched, trace
        blocks, self.count = grid[0] * grid[1], grid[0] * grid[1] * threads
        lane = np.arange(self.count)
        self.block = lane // threads
        self.lane_in_warp, self.warp = (lane % threads % WARP).astype(np.uint32), self._warps(lane)
        self.image = self.block % grid[0]
        self.special = {
            "SR_TID.X": (lane % threads).astype(np.uint32), "SR_CTAID.X": self.image.astype(np.uint32),
            "SR_CTAID.Y": (self.block // grid[0]).astype(np.uint32), "SR_LANEID": self.lane_in_warp,
            "SR_LTMASK": (np.uint32(1) << self.lane_in_warp) - np.uint32(1),
            "SR_SWINHI": np.full(self.count, SHARED_WINDOW, np.uint32), "SR_LWINHI": np.full(self.count, LOCAL_WINDOW, np.uint32),
        }  # fmt: skip
        self.registers = np.zeros((UNIFORM + 64, self.count), np.uint32)
        self.rows = list(self.registers)
        self.predicates = np.zeros((16, self.count), bool)
        self.predicates[[PT, UPT]] = True
        self.shared_stride = SHARED_BASE + -(-shared_bytes // 256) * 256
        self.shared = np.full(blocks * self.shared_stride, 0xA5, np.uint8)
        self.shared_bytes = SHARED_BASE + shared_bytes
        self.local = np.full(self.count * LOCAL_BYTES, 0xA5, np.uint8)
        bank = bytearray(PARAMETERS) + arguments
        struct.pack_into("<IIIIII", bank, 0, threads, 1, 1, *grid, 1)
        struct.pack_into("<I", bank, 0x28, LOCAL_BYTES)
        self.constants = listing.constants | {0: bytes(bank)}

        self.pc = np.zeros(self.count, np.int32)
        self.waiting = np.zeros(self.count, bool)
        self.alive = np.ones(self.count, bool)
        self.counts = np.zeros(len(listing.instructions), np.int64)
        self.by_image = np.zeros(grid[0], np.int64)
        self.traced: list[int] = []
        self.now, self.issuing = 0, 0
        self.executions, self.sampled, self.wavefronts, self.sectors = np.zeros((4, len(listing.instructions)), np.int64)
        self.code = [compiled(self, instruction) for instruction in listing.instructions]

    def _warps(self, lane: NDArray) -> NDArray:
        a_block = -(-self.threads // WARP)
        return lane // self.threads * a_block + lane % self.threads // WARP

    def run(self) -> None:
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
        active = self._active(mask)
        self.issuing = active.warps
        traced = self.trace is not None and mask[self.trace]
        while True:
            self.now = at
            goto = self.code[at](active)
            at += 1
            if goto is None and at < others:
                continue
            length = at - begun
            self.counts[begun:at] += active.warps
            self.by_image += length * active.images
            if traced:
                self.traced += range(begun, at)
            if callable(goto):
                goto(mask, at)
                return
            at = begun = at if goto is None else goto
            if at >= others:
                self.pc[mask] = at
                return

    def _active(self, mask: NDArray) -> Active:
        lanes = np.flatnonzero(mask)
        warps = self.warp[lanes]
        new = np.flatnonzero(np.diff(warps, prepend=-1))
        images = np.bincount(self.image[lanes[new]], minlength=len(self.by_image))
        if 4 * len(lanes) >= self.count:
            return Active(slice(None), mask, len(new), images)
        return Active(lanes, None, len(new), images)

    def write(self, row: int, value: NDArray, active: Active) -> None:
        if row in (RZ, URZ):
            return
        if active.mask is None:
            self.rows[row][active.at] = value
        else:
            np.copyto(self.rows[row], value, where=active.mask, casting="unsafe")

    def write_predicate(self, row: int, value: NDArray, active: Active) -> None:
        if row in (PT, UPT):
            return
        if active.mask is None:
            self.predicates[row][active.at] = value
        else:
            np.copyto(self.predicates[row], value, where=active.mask)

    def arrive(self, lanes: NDArray) -> None:
        """Lanes at a barrier, which opens for a block when all its lanes that still run are there."""
        self.waiting[lanes] = True
        self.open_barriers()

    def open_barriers(self) -> None:
        missing = np.bincount(self.block[self.alive & ~self.waiting], minlength=self.block[-1] + 1)
        self.waiting &= missing[self.block] > 0

    def watch(self, space: str, lanes: NDArray, at: NDArray, size: int) -> None:
        """Counts the cycles and sectors of an access: of the first of an instruction, then of every 16th."""
        if not self.watched:
            return
        self.executions[self.now] += 1
        if self.executions[self.now] > 8 and self.executions[self.now] % 16:
            return
        busy, sectors = cycles(space, self.warp[lanes], self.lane_in_warp[lanes], at, size)
        self.sampled[self.now] += self.issuing
        self.wavefronts[self.now] += busy
        self.sectors[self.now] += sectors
