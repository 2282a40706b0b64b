"""Instructions on integers and predicates."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass.listing import Instruction
from benchmarks.compiled.sass.operands import (
    COMPARE,
    F32,
    F64,
    I32,
    I64,
    U32,
    U64,
    Parts,
    Run,
    number,
    operation,
    pair,
    predicate,
    row_of,
    simple,
    word,
    write_comparison,
    write_pair,
)
from benchmarks.compiled.sass.state import Active, State


@simple("MOV", "UMOV", "R2UR")
def _move(value: NDArray, *_: NDArray) -> NDArray:
    return value


@simple("VIADD")
def _add(a: NDArray, b: NDArray) -> NDArray:
    return a + b


@simple("IABS")
def _absolute(a: NDArray) -> NDArray:
    return np.abs(a.view(I32)).view(U32)


@simple("POPC", "UPOPC")
def _population(a: NDArray) -> NDArray:
    return np.bitwise_count(a).astype(U32)


@simple("PRMT", "UPRMT")
def _permute(a: NDArray, selector: NDArray, c: NDArray) -> NDArray:
    both = c.astype(U64) << U64(32) | a
    result = U32(0)
    for i in range(4):
        chosen = selector >> U32(4 * i)
        byte = (both >> (8 * (chosen & U32(7)).astype(U64)) & U64(0xFF)).astype(U32)
        signs = np.where(byte & U32(0x80), U32(0xFF), U32(0))
        result = result | np.where(chosen & U32(8), signs, byte) << U32(8 * i)
    return result


@simple("I2IP")
def _pack(a: NDArray, b: NDArray, upper: NDArray) -> NDArray:
    clipped = [np.clip(value.view(I32), 0, 255).astype(U32) for value in (a, b)]
    return clipped[1] | clipped[0] << U32(8) | upper << U32(16)


def _wide(read: Callable, text: str) -> Callable[[Active], NDArray]:
    """A summand as 64 bits: a carry comes out of a negative one as the complement's plus 1."""
    if text.startswith("-") and not text.startswith("-0x"):
        return lambda active: (read(active) - U32(1)).astype(U64) + U64(1)
    return lambda active: read(active).astype(U64)


@operation("IADD3", "UIADD3")
def _iadd3(state: State, instruction: Instruction) -> Run:
    parts = Parts(state, instruction)
    reads = [word(state, text) for text in parts.sources]
    if not parts.out and not parts.carries:
        return lambda active: state.write(parts.row, sum((read(active) for read in reads), U32(0)), active)
    wides = [_wide(read, text) for read, text in zip(reads, parts.sources, strict=True)]

    def run(active: Active) -> None:
        total = sum((wide(active) for wide in wides), U64(0))
        for carry in parts.carries:
            total = total + carry(active).astype(U64)
        _write_sum(state, parts, total, active)

    return run


def _write_sum(state: State, parts: Parts, total: NDArray, active: Active) -> None:
    state.write(parts.row, total.astype(U32), active)
    for least, row in enumerate(parts.out, 1):
        state.write_predicate(row, total >> U64(32) >= U64(least), active)


@operation("LEA", "ULEA")
def _lea(state: State, instruction: Instruction) -> Run:
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    shift = U64(int(parts.sources[-1], 16))
    a, b = (word(state, text) for text in parts.sources[:2])
    addend = _wide(b, parts.sources[1])
    high = word(state, parts.sources[2]) if "HI" in modifiers and "SX32" not in modifiers else None

    def run(active: Active) -> None:
        low = a(active)
        if "HI" not in modifiers:
            shifted = low.astype(U64) << shift & U64(0xFFFFFFFF)
        else:
            upper = high(active) if high else (low.view(I32) >> I32(31)).view(U32)
            shifted = (upper.astype(U64) << U64(32) | low) << shift >> U64(32)
        total = shifted + addend(active)
        for carry in parts.carries:
            total = total + carry(active).astype(U64)
        _write_sum(state, parts, total, active)

    return run


@operation("IMAD", "UIMAD")
def _imad(state: State, instruction: Instruction) -> Run:
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    a, b = (word(state, text) for text in parts.sources[:2])
    if not modifiers & {"WIDE", "HI"}:
        c = word(state, parts.sources[2])
        if "MOV" in modifiers:
            return lambda active: state.write(parts.row, c(active), active)
        if not parts.out and not parts.carries:
            return lambda active: state.write(parts.row, a(active) * b(active) + c(active), active)

        def low(active: Active) -> None:
            total = (a(active) * b(active)).astype(U64) + c(active).astype(U64)
            for carry in parts.carries:
                total = total + carry(active).astype(U64)
            _write_sum(state, parts, total, active)

        return low
    c = pair(state, parts.sources[2])
    signed = "U32" not in modifiers

    def extended(value: NDArray) -> NDArray:
        return value.view(I32).astype(I64).view(U64) if signed else value.astype(U64)

    def run(active: Active) -> None:
        product, addend = extended(a(active)) * extended(b(active)), c(active)
        total = product + addend
        over = (total < product).astype(U32)
        for carry in parts.carries:
            total = total + carry(active).astype(U64)
        if "HI" in modifiers:
            state.write(parts.row, (total >> U64(32)).astype(U32), active)
        else:
            write_pair(state, parts.row, total, active)
        for row in parts.out:
            state.write_predicate(row, over > 0, active)

    return run


@operation("IDP")
def _dot(state: State, instruction: Instruction) -> Run:
    """A dot product of bytes, or of two numbers of 16 bits and the lower or upper two bytes, added to a sum."""
    parts, modifiers = Parts(state, instruction), instruction.opcode.split(".")[1:]
    a, b, c = (word(state, text) for text in parts.sources)
    count = 4 if "4A" in modifiers else 2
    bits = 32 // count
    offset = 16 if "HI" in modifiers else 0
    signs = [kind[0] == "S" for kind in modifiers if kind[1:].isdigit()]

    def part(value: NDArray, at: int, width: int, signed: bool) -> NDArray:
        found = (value >> U32(at) & U32((1 << width) - 1)).astype(I32)
        return found - (found >> I32(width - 1) << I32(width)) if signed else found

    def run(active: Active) -> None:
        total, left, right = c(active), a(active), b(active)
        for i in range(count):
            product = part(left, bits * i, bits, signs[0]) * part(right, offset + 8 * i, 8, signs[1])
            total = total + product.view(U32)
        state.write(parts.row, total, active)

    return run


@operation("SHF", "USHF")
def _shift(state: State, instruction: Instruction) -> Run:
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    a, count, c = (word(state, text) for text in parts.sources)
    signed = bool(modifiers & {"S32", "S64"})

    def run(active: Active) -> None:
        both = c(active).astype(U64) << U64(32) | a(active)
        by = count(active).astype(U64)
        by = by & U64(31 if modifiers & {"U32", "S32"} else 63) if "W" in modifiers else np.minimum(by, U64(63))
        if "L" in modifiers:
            both = both << by
        else:
            both = (both.view(I64) >> by.view(I64)).view(U64) if signed else both >> by
        state.write(parts.row, (both >> U64(32) if "HI" in modifiers else both).astype(U32), active)

    return run


def _lookup(table: int, a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    """A logical function of three inputs, whose value for (a, b, c) is bit 4a + 2b + c of the table."""
    known = {
        0xC0: lambda: a & b, 0xFC: lambda: a | b, 0x3C: lambda: a ^ b, 0xF8: lambda: a | b & c, 0xFE: lambda: a | b | c,
        0xEA: lambda: a & b | c, 0x96: lambda: a ^ b ^ c, 0x80: lambda: a & b & c, 0xE2: lambda: a & b | ~b & c,
    }  # fmt: skip
    if table in known:
        return known[table]()
    result = a ^ a
    for bits in range(8):
        if table >> bits & 1:
            result = result | (a if bits & 4 else ~a) & (b if bits & 2 else ~b) & (c if bits & 1 else ~c)
    return result


@operation("LOP3", "ULOP3")
def _lop3(state: State, instruction: Instruction) -> Run:
    parts = Parts(state, instruction)
    sources = [word(state, text) for text in parts.sources[:3]]
    table = int(parts.sources[3], 16)

    def run(active: Active) -> None:
        value = _lookup(table, *(source(active) for source in sources))
        state.write(parts.row, value, active)
        for text in parts.first:
            state.write_predicate(row_of(text), (value != 0) | parts.carries[0](active), active)

    return run


@operation("PLOP3", "UPLOP3")
def _plop3(state: State, instruction: Instruction) -> Run:
    *names, first, second = instruction.operands
    a, b, c = (predicate(state, text) for text in names[2:5])

    def run(active: Active) -> None:
        given = a(active), b(active), c(active)
        values = [_lookup(int(table, 16), *given) for table in (first, second)]
        for text, value in zip(names[:2], values, strict=True):
            state.write_predicate(row_of(text), value, active)

    return run


@operation("SEL", "USEL", "FSEL")
def _select(state: State, instruction: Instruction) -> Run:
    parts = Parts(state, instruction)
    read = number if instruction.base == "FSEL" else word
    a, b = (read(state, text) for text in parts.sources)

    def run(active: Active) -> None:
        chosen = np.where(parts.carries[0](active), a(active), b(active))
        state.write(parts.row, chosen.view(U32), active)

    return run


@operation("IMNMX", "VIMNMX", "VIMNMX3", "VIADDMNMX", "UIMNMX", "FMNMX")
def _least_or_greatest(state: State, instruction: Instruction) -> Run:
    parts = Parts(state, instruction)
    kind = F32 if instruction.base == "FMNMX" else U32 if "U32" in instruction.modifiers else I32
    reads = [(number if kind == F32 else word)(state, text) for text in parts.sources]
    positive = "RELU" in instruction.modifiers

    def run(active: Active) -> None:
        values = [read(active) for read in reads]
        if instruction.base == "VIADDMNMX":
            values[:2] = [values[0] + values[1]]
        given = [value.view(kind) for value in values]
        least, greatest = (np.fmin, np.fmax) if kind == F32 else (np.minimum, np.maximum)
        value = np.where(parts.carries[0](active), reduce(least, given), reduce(greatest, given))
        state.write(parts.row, (np.maximum(value, kind(0)) if positive else value).view(U32), active)

    return run


@operation("ISETP", "UISETP")
def _compare_integers(state: State, instruction: Instruction) -> Run:
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    a, b = (word(state, text) for text in parts.sources)
    kind, (name,) = U32 if "U32" in modifiers else I32, modifiers & set(COMPARE)
    strict = {"LE": "LT", "GE": "GT"}.get(name, name)

    def run(active: Active) -> None:
        left, right = a(active).view(kind), b(active).view(kind)
        if "EX" in modifiers:
            below = parts.carries[1](active)
            value = COMPARE[strict](left, right)
            value = (
                value & below if name == "EQ" else value | below if name == "NE" else value | (left == right) & below
            )
        else:
            value = COMPARE[name](left, right)
        write_comparison(state, parts, modifiers, value, active)

    return run


@operation("SGXT", "USGXT")
def _extend(state: State, instruction: Instruction) -> Run:
    """The lowest bits alone, of which the highest is the sign unless U32."""
    parts = Parts(state, instruction)
    read, unused = word(state, parts.sources[0]), U32(32 - int(parts.sources[1], 16))
    kind = U32 if "U32" in instruction.modifiers else I32
    return lambda active: state.write(
        parts.row, ((read(active) << unused).view(kind) >> kind(unused)).view(U32), active
    )


@operation("FLO", "UFLO")
def _highest_bit(state: State, instruction: Instruction) -> Run:
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    read = word(state, parts.sources[0])

    def run(active: Active) -> None:
        value = read(active)
        if "U32" not in modifiers:
            value = np.where(value.view(I32) < 0, ~value, value)
        place = np.frexp(value.astype(F64))[1].astype(I32) - I32(1)
        if "SH" in modifiers:
            place = I32(31) - place
        state.write(parts.row, np.where(value == 0, U32(0xFFFFFFFF), place.view(U32)), active)

    return run


@operation("P2R")
def _predicates_to_register(state: State, instruction: Instruction) -> Run:
    parts = Parts(state, instruction)
    kept, mask = word(state, parts.sources[-2]), int(parts.sources[-1], 16)

    def run(active: Active) -> None:
        bits = sum((state.predicates[i][active.at].astype(U32) << U32(i) for i in range(7) if mask >> i & 1), U32(0))
        state.write(parts.row, kept(active) & U32(~mask & 0xFFFFFFFF) | bits, active)

    return run


@operation("R2P")
def _register_to_predicates(state: State, instruction: Instruction) -> Run:
    read, mask = word(state, instruction.operands[1]), int(instruction.operands[2], 16)

    def run(active: Active) -> None:
        value = read(active)
        for i in range(7):
            if mask >> i & 1:
                state.write_predicate(i, (value >> U32(i) & U32(1)).astype(bool), active)

    return run
