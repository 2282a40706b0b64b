"""Instructions that load, store, and choose the next instruction."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass.listing import SPACES, Instruction
from benchmarks.compiled.sass.operands import (
    I64,
    U32,
    U64,
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
from benchmarks.compiled.sass.state import RZ, WARP, Active, State

# Memory


@operation("LDC", "ULDC")
def _load_constant(state: State, instruction: Instruction) -> Run:
    row, text = row_of(instruction.operands[0]), instruction.operands[1]
    size = 8 if "64" in instruction.modifiers else 1 if "U8" in instruction.modifiers else 4
    bank, inside = re.fullmatch(r"c\[0x(\w+)\]\[(.*)\]", text).groups()
    offset = address_of(state, inside)
    content = np.frombuffer(state.constants[int(bank, 16)] + bytes(16), np.uint8)

    def run(active: Active) -> None:
        active = active.sparse()
        at = offset(active).astype(I64)
        value = sum((content[at + i].astype(U64) << U64(8 * i) for i in range(size)), U64(0))
        if size == 8:
            write_pair(state, row, value, active)
        else:
            state.write(row, value.astype(U32), active)

    return run


def address_of(state: State, text: str, wide: bool = False) -> Read:
    """R4.64+UR5+0x10 as uint64; `wide`: of 64 bits, of which a register without a suffix may be a part."""
    reads: list[Read] = []
    fixed = 0
    for term in text.split("+"):
        name, _, suffix = term.partition(".")
        if re.match(r"-?0x", term):
            fixed += int(term, 16)
        elif suffix == "64" or (wide and name.startswith("U") and suffix != "U32"):
            reads.append(pair(state, name))
        else:
            scale, register = U64(int(suffix[1:]) if suffix.startswith("X") else 1), word(state, name)
            reads.append(lambda active, register=register, scale=scale: register(active).astype(U64) * scale)
    offset, mask = U64(fixed & 0xFFFFFFFFFFFFFFFF), U64(0xFFFFFFFFFFFFFFFF if wide else 0xFFFFFFFF)
    return lambda active: sum((read(active) for read in reads), offset) & mask


_ATOMIC = {"ATOMS", "REDG"}


@operation("LDS", "LDL", "LDG", "LD", "STS", "STL", "STG", "ST", *_ATOMIC)
def _memory(state: State, instruction: Instruction) -> Run:
    spaces, size = SPACES[instruction.base], instruction.bytes
    space = spaces[0] if len(spaces) == 1 else "generic"
    operands = [text for text in instruction.operands if not is_predicate(text)]
    place = next(i for i, text in enumerate(operands) if text.endswith("]"))
    address = address_of(state, _inside(operands[place]), wide=space in ("global", "generic"))
    stored = [operands[place + 1]] if len(operands) > place + 1 else []
    atomic = instruction.base in _ATOMIC
    if atomic and not instruction.modifiers & {"ADD", "INC"}:
        raise ValueError("only atomic ADD and INC")
    if instruction.modifiers & {"S8", "S16"}:
        raise ValueError("only loads that extend no sign")
    first = row_of(stored[0]) if stored and not atomic else None
    added = word(state, stored[0]) if atomic and stored else lambda active: U32(1)
    found = row_of(operands[0]) if place else RZ

    def run(active: Active) -> None:
        mine = active.sparse()
        lanes = mine.at
        at = np.broadcast_to(address(mine), lanes.shape)
        if atomic:
            state.write(found, state.add(space, lanes, at, added(mine)), mine)
        elif first is None:
            row = row_of(operands[0])
            for i, value in enumerate(state.load(space, lanes, at, size)):
                state.write(row + i, value, mine)
        else:
            words = [state.rows[first + i if first != RZ else RZ][lanes] for i in range(max(size // 4, 1))]
            state.store(space, lanes, at, size, words)

    return run


def _inside(text: str) -> str:
    """R4.64+0x10 of desc[UR4][R4.64+0x10]."""
    return re.search(r"\[([^\[\]]*)\]$", text)[1]


@operation("LDGSTS")
def _copy(state: State, instruction: Instruction) -> Run:
    """Global to shared memory: the bytes are there at once, to be read when they are waited for. Zeros where the last
    predicate is false."""
    size = instruction.bytes
    places = [text for text in instruction.operands if text.endswith("]")]
    to, from_ = address_of(state, _inside(places[0])), address_of(state, _inside(places[1]), wide=True)
    filled = predicate(state, instruction.operands[-1] if is_predicate(instruction.operands[-1]) else "PT")

    def run(active: Active) -> None:
        mine = active.sparse()
        lanes = mine.at
        loaded = np.broadcast_to(filled(mine), lanes.shape)
        at = np.broadcast_to(from_(mine), lanes.shape)[loaded]
        words = list(np.zeros((size // 4, len(lanes)), U32))
        for word_, part in zip(words, state.load("global", lanes[loaded], at, size), strict=True):
            word_[loaded] = part
        state.store("shared", lanes, np.broadcast_to(to(mine), lanes.shape), size, words, copied=True)

    return run


@operation("LDGDEPBAR")
def _end_of_group(state: State, instruction: Instruction) -> Run:
    return lambda active: state.end_group(active.lanes())


@operation("DEPBAR")
def _wait_for_groups(state: State, instruction: Instruction) -> Run:
    if "LE" not in instruction.modifiers:
        return lambda active: None
    left = int(instruction.operands[1], 16)
    return lambda active: state.wait_for_groups(active.lanes(), left)


@operation("LDSM", "STSM")
def _matrices(state: State, instruction: Instruction) -> Run:
    """Matrices of 8 × 8 halves, a row of 16 bytes at the address of each lane: every lane has two halves of each.

    M88: of row lane / 4 those in columns 2 (lane % 4) and the next; MT88: of the transposed matrix.
    """
    _, bits, shape, number = instruction.opcode.split(".")
    count, stores, turned = int(number), instruction.base == "STSM", shape == "MT88"
    if bits != "16" or shape not in ("M88", "MT88"):
        raise ValueError("only matrices of 8 × 8 halves")
    place, other = instruction.operands[:: -1 if not stores else 1]
    row, address = row_of(other), address_of(state, _inside(place))

    def run(active: Active) -> None:
        lanes = state.whole_warps(active)
        rows = lanes.reshape(-1, WARP)[:, : 8 * count].reshape(-1)
        at = np.broadcast_to(address(Active(rows, None)), rows.shape)
        if stores:
            words = np.stack([state.rows[row + i][lanes] for i in range(count)], axis=1)  # (lanes, matrices)
            halves = words.reshape(-1, WARP, count).swapaxes(1, 2).reshape(-1).view(np.uint16).reshape(-1, 8, 8)
            halves = np.ascontiguousarray(halves.swapaxes(1, 2) if turned else halves)
            state.store("shared", rows, at, 16, list(halves.view(U32).reshape(-1, 4).T))
            return
        words = np.stack(state.load("shared", rows, at, 16), axis=1)
        halves = words.view(np.uint16).reshape(-1, count, 8, 8)
        halves = np.ascontiguousarray(halves.swapaxes(2, 3) if turned else halves)
        for i in range(count):
            state.write(row + i, halves[:, i].view(U32).reshape(-1), Active(lanes, None))

    return run


# Where to go next


@operation(
    "NOP", "BSSY", "BSYNC", "WARPSYNC", "YIELD", "BREAK", "MEMBAR", "ERRBAR", "CCTL", "UCGABAR_ARV", "CGAERRBAR"
)  # fmt: skip
def _nothing(state: State, instruction: Instruction) -> Run:
    return lambda active: None


@operation("BAR", "UCGABAR_WAIT")
def _barrier(state: State, instruction: Instruction) -> Run:
    cluster = instruction.base != "BAR"
    if not cluster and ("SYNC" not in instruction.modifiers or instruction.operands != ("0x0",)):
        raise ValueError("only BAR.SYNC 0x0")

    def goto(mask: NDArray, following: int) -> None:
        state.pc[mask] = following
        state.arrive(mask, cluster)

    return lambda active: goto


@operation("BRA", "CALL", "EXIT")
def _branch(state: State, instruction: Instruction) -> Run:
    named = [text for text in (instruction.guard or "PT", *instruction.operands) if is_predicate(text)]
    conditions = [predicate(state, text) for text in named if text not in ("PT", "UPT")]
    ends = instruction.base == "EXIT"
    target = None if ends else state.listing.labels[re.search(r"`\((.*?)\)", instruction.operands[-1])[1]]
    if "DIV" in instruction.modifiers:  # taken where lanes of a warp have parted, to do the same one by one
        return lambda active: None

    def run(active: Active) -> object:
        if not conditions and not ends:
            return target
        mine = active.sparse()
        lanes = mine.at
        taken = np.ones(len(lanes), bool)
        for condition in conditions:
            taken = taken & condition(mine)
        if not taken.any():
            return None
        if taken.all() and not ends:
            return target

        def goto(mask: NDArray, following: int) -> None:
            state.pc[mask] = following
            if ends:
                state.alive[lanes[taken]] = False
                state.open_barriers()
            else:
                state.pc[lanes[taken]] = target

        return goto

    return run


@operation("RET")
def _return(state: State, instruction: Instruction) -> Run:
    read, guard = word(state, instruction.operands[0].split(" ")[0]), predicate(state, instruction.guard or "PT")

    def run(active: Active) -> object:
        lanes = active.lanes()[guard(active.sparse())]
        targets = read(Active(lanes, None)).astype(I64) // 16

        def goto(mask: NDArray, following: int) -> None:
            state.pc[mask] = following
            state.pc[lanes] = targets

        return goto if len(lanes) else None

    return run
