"""Instructions that load, store, and choose the next instruction."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass.listing import Instruction
from benchmarks.compiled.sass.memory import access, exchange, located
from benchmarks.compiled.sass.operands import (
    I32,
    I64,
    RZ,
    U32,
    U64,
    Active,
    Read,
    Run,
    is_predicate,
    operation,
    pair,
    predicate,
    row_of,
    word,
    write_pair,
)

if TYPE_CHECKING:
    from benchmarks.compiled.sass.machine import Machine
# Memory


@operation("LDC", "ULDC")
def _load_constant(machine: Machine, instruction: Instruction) -> Run:
    row, text = row_of(instruction.operands[0]), instruction.operands[1]
    size = 8 if "64" in instruction.modifiers else 1 if "U8" in instruction.modifiers else 4
    bank, inside = re.fullmatch(r"c\[0x(\w+)\]\[(.*)\]", text).groups()
    offset = address_of(machine, inside)
    content = np.frombuffer(machine.constants[int(bank, 16)] + bytes(16), np.uint8)

    def run(active: Active) -> None:
        active = Active(active.lanes(), None)
        at = offset(active).astype(I64)
        value = sum((content[at + i].astype(U64) << U64(8 * i) for i in range(size)), U64(0))
        if size == 8:
            write_pair(machine, row, value, active)
        else:
            machine.write(row, value.astype(U32), active)

    return run


def address_of(machine: Machine, text: str, wide: bool = False) -> Read:
    """R4.64+UR5+0x10 as uint64; `wide`: of 64 bits, of which a register without a suffix may be a part."""
    reads: list[Read] = []
    fixed = 0
    for term in text.split("+"):
        name, _, suffix = term.partition(".")
        if re.match(r"-?0x", term):
            fixed += int(term, 16)
        elif suffix == "64" or (wide and name.startswith("U") and suffix != "U32"):
            reads.append(pair(machine, name))
        else:
            scale, register = U64(int(suffix[1:]) if suffix.startswith("X") else 1), word(machine, name)
            reads.append(lambda active, register=register, scale=scale: register(active).astype(U64) * scale)
    offset, mask = U64(fixed & 0xFFFFFFFFFFFFFFFF), U64(0xFFFFFFFFFFFFFFFF if wide else 0xFFFFFFFF)
    return lambda active: sum((read(active) for read in reads), offset) & mask


_ATOMIC = {"ATOMS", "RED", "REDG"}
_SPACES = {"LDS": "shared", "STS": "shared", "ATOMS": "shared", "LDL": "local", "STL": "local", "LDG": "global",
           "STG": "global", "LD": "generic", "ST": "generic", "RED": "global", "REDG": "global"}  # fmt: skip


def bytes_of(instruction: Instruction) -> int:
    """How many bytes a lane of a load or store moves."""
    modifiers = instruction.modifiers
    if modifiers & {"U8", "S8"}:
        return 1
    return 2 if modifiers & {"U16", "S16"} else 16 if "128" in modifiers else 8 if "64" in modifiers else 4


@operation("LDS", "LDL", "LDG", "LD", "STS", "STL", "STG", "ST", *_ATOMIC)
def _memory(machine: Machine, instruction: Instruction) -> Run:
    space, size = _SPACES[instruction.base], bytes_of(instruction)
    operands = [text for text in instruction.operands if not is_predicate(text)]
    place = next(i for i, text in enumerate(operands) if text.endswith("]"))
    inside = re.search(r"\[([^\[\]]*)\]$", operands[place])[1]
    address = address_of(machine, inside, wide=space in ("global", "generic"))
    stored = [operands[place + 1]] if len(operands) > place + 1 else []
    atomic = instruction.base in _ATOMIC
    first = row_of(stored[0]) if stored and not atomic else None
    added = word(machine, stored[0]) if atomic and stored else lambda active: U32(1)
    found = row_of(operands[0]) if place else RZ
    signed = bool(instruction.modifiers & {"S8", "S16"})

    def run(active: Active) -> None:
        lanes = active.lanes()
        mine = Active(lanes, None)
        at = np.broadcast_to(address(mine), lanes.shape)
        words = max(size // 4, 1)
        if atomic:
            if not instruction.modifiers & {"ADD", "INC"}:
                raise NotImplementedError(str(instruction))
            machine.write(found, exchange(machine, space, lanes, at, added(mine)), mine)
        elif first is None:
            row = row_of(operands[0])
            for i, value in enumerate(access(machine, space, lanes, at, size, None)):
                if signed:
                    value = (value << U32(32 - 8 * size)).view(I32) >> I32(32 - 8 * size)
                machine.write(row + i, value.view(U32), mine)
        else:
            values = [machine.rows[first + i if first != RZ else RZ][lanes] for i in range(words)]
            access(machine, space, lanes, at, size, values)

    return run


@operation("LDGSTS")
def _copy(machine: Machine, instruction: Instruction) -> Run:
    """Global to shared memory, here at once. The data goes past L1, so only the store is watched."""
    size = bytes_of(instruction)
    inside = [re.search(r"\[([^\[\]]*)\]$", text)[1] for text in instruction.operands[:2]]
    to, from_ = address_of(machine, inside[0]), address_of(machine, inside[1], wide=True)

    def run(active: Active) -> None:
        lanes = active.lanes()
        mine = Active(lanes, None)
        content, at = located(machine, "global", lanes, np.broadcast_to(from_(mine), lanes.shape), size)
        words = [content.view(U32)[at // 4 + i] for i in range(size // 4)]
        access(machine, "shared", lanes, np.broadcast_to(to(mine), lanes.shape), size, words)

    return run


# Where to go next

_BRANCHES = {"BRA", "EXIT", "RET", "CALL", "BRX"}


@operation(
    "NOP",
    "BSSY",
    "BSYNC",
    "WARPSYNC",
    "BMOV",
    "DEPBAR",
    "LDGDEPBAR",
    "YIELD",
    "BREAK",
    "MEMBAR",
    "ERRBAR",
    "CCTL",
    "UCGABAR_ARV",
    "CGAERRBAR",
    "ULEPC",
)
def _nothing(machine: Machine, instruction: Instruction) -> Run:
    return lambda active: None


@operation("BAR", "UCGABAR_WAIT")
def _barrier(machine: Machine, instruction: Instruction) -> Run:
    cluster = instruction.base != "BAR"

    def goto(mask: NDArray, following: int) -> None:
        machine.pc[mask] = following
        machine.arrive(mask, cluster)

    return lambda active: goto


@operation("BRA", "CALL", "EXIT")
def _branch(machine: Machine, instruction: Instruction) -> Run:
    named = [text for text in (instruction.guard or "PT", *instruction.operands) if is_predicate(text)]
    conditions = [predicate(machine, text) for text in named if text not in ("PT", "UPT")]
    ends = instruction.base == "EXIT"
    target = None if ends else machine.listing.labels[re.search(r"`\((.*?)\)", instruction.operands[-1])[1]]
    if "DIV" in instruction.modifiers:  # taken where lanes of a warp have parted, to do the same one by one
        return lambda active: None

    def run(active: Active) -> object:
        if not conditions and not ends:
            return target
        lanes = active.lanes() if active.mask is not None else active.at
        mine = Active(lanes, None)
        taken = np.ones(len(lanes), bool)
        for condition in conditions:
            taken = taken & condition(mine)
        if not taken.any():
            return None
        if taken.all() and not ends:
            return target

        def goto(mask: NDArray, following: int) -> None:
            machine.pc[mask] = following
            if ends:
                machine.alive[lanes[taken]] = False
                machine.open_barriers()
            else:
                machine.pc[lanes[taken]] = target

        return goto

    return run


@operation("RET", "BRX")
def _indirect(machine: Machine, instruction: Instruction) -> Run:
    name, *offset = instruction.operands[0].split(" ")
    read = word(machine, name)
    base = instruction.address + 16 + int(offset[0], 16) if instruction.base == "BRX" else 0

    guard = predicate(machine, instruction.guard or "PT")

    def run(active: Active) -> object:
        lanes = active.lanes()
        lanes = lanes[guard(Active(lanes, None))]
        targets = (read(Active(lanes, None)).astype(I64) + base) // 16

        def goto(mask: NDArray, following: int) -> None:
            machine.pc[mask] = following
            machine.pc[lanes] = targets

        return goto if len(lanes) else None

    return run
