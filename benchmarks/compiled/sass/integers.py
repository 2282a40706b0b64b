"""Instructions on integers and predicates."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass.listing import Instruction
from benchmarks.compiled.sass.operands import (
    COMPARE,
    I32,
    I64,
    U32,
    U64,
    Parts,
    Read,
    Run,
    number,
    operation,
    pair,
    predicate,
    result,
    row_of,
    word,
    write_comparison,
    write_pair,
)
from benchmarks.compiled.sass.state import Active, State

Modifiers = set[str]


@result("MOV", "UMOV", "R2UR")
def _move(_: Modifiers, value: NDArray, *__: NDArray) -> NDArray:
    return value


@result("VIADD")
def _add(_: Modifiers, a: NDArray, b: NDArray) -> NDArray:
    return a + b


@result("IABS")
def _absolute(_: Modifiers, a: NDArray) -> NDArray:
    return np.abs(a.view(I32))


@result("PRMT")
def _permute(_: Modifiers, a: NDArray, selector: NDArray, c: NDArray) -> NDArray:
    both, value = c.astype(U64) << U64(32) | a, U32(0)
    for i in range(4):
        chosen = selector >> U32(4 * i)
        byte = (both >> (8 * (chosen & U32(7)).astype(U64)) & U64(0xFF)).astype(U32)
        signs = np.where(byte & U32(0x80), U32(0xFF), U32(0))
        value = value | np.where(chosen & U32(8), signs, byte) << U32(8 * i)
    return value


@result("I2IP")
def _pack(_: Modifiers, a: NDArray, b: NDArray, upper: NDArray) -> NDArray:
    first, second = (np.clip(value.view(I32), 0, 255).astype(U32) for value in (a, b))
    return second | first << U32(8) | upper << U32(16)


@result("SHF", "USHF")
def _shift(modifiers: Modifiers, a: NDArray, count: NDArray, c: NDArray) -> NDArray:
    both, by = c.astype(U64) << U64(32) | a, count.astype(U64)
    by = by & U64(31 if modifiers & {"U32", "S32"} else 63) if "W" in modifiers else np.minimum(by, U64(63))
    if "L" in modifiers:
        both = both << by
    else:
        both = (both.view(I64) >> by.view(I64)).view(U64) if modifiers & {"S32", "S64"} else both >> by
    return (both >> U64(32) if "HI" in modifiers else both).astype(U32)


@result("FSEL", read=number)
@result("SEL", "USEL")
def _select(_: Modifiers, a: NDArray, b: NDArray, given: NDArray) -> NDArray:
    return np.where(given, a, b)


@result("FMNMX", read=number)
def _lesser_or_greater(_: Modifiers, a: NDArray, b: NDArray, least: NDArray) -> NDArray:
    return np.where(least, np.fmin(a, b), np.fmax(a, b))


@result("IMNMX", "VIMNMX", "VIMNMX3")
def _least_or_greatest(modifiers: Modifiers, *given: NDArray) -> NDArray:
    kind = U32 if "U32" in modifiers else I32
    values = [value.view(kind) for value in given[:-1]]
    value = np.where(given[-1], reduce(np.minimum, values), reduce(np.maximum, values))
    return np.maximum(value, kind(0)) if "RELU" in modifiers else value


@result("VIADDMNMX")
def _add_and_compare(modifiers: Modifiers, a: NDArray, b: NDArray, *others: NDArray) -> NDArray:
    return _least_or_greatest(modifiers, a + b, *others)


@result("SGXT")
def _extend(modifiers: Modifiers, value: NDArray, bits: NDArray) -> NDArray:
    """The lowest bits alone, of which the highest is the sign unless U32."""
    kind, unused = U32 if "U32" in modifiers else I32, U32(32) - bits
    return (value << unused).view(kind) >> unused.view(kind)


def _wide(read: Read, text: str = "") -> Read:
    """A summand as 64 bits: a carry comes out of a negative one as the complement's plus 1."""
    if text.startswith("-") and not text.startswith("-0x"):
        return lambda active: (read(active) - U32(1)).astype(U64) + U64(1)
    return lambda active: read(active).astype(U64)


def _sum(state: State, parts: Parts, reads: Sequence[Read], texts: Sequence[str]) -> Run:
    """Write the sum of what is read and of the carries in, and its carries out; `texts` show which are negative."""
    if not parts.out and not parts.carries:
        return lambda active: state.write(parts.row, reduce(operator.add, (read(active) for read in reads)), active)
    wide = [*map(_wide, reads, texts), *map(_wide, parts.carries)]

    def run(active: Active) -> None:
        total = reduce(operator.add, (read(active) for read in wide))
        state.write(parts.row, total.astype(U32), active)
        for least, row in enumerate(parts.out, 1):
            state.write_predicate(row, total >> U64(32) >= U64(least), active)

    return run


@operation("IADD3", "UIADD3")
def _iadd3(state: State, instruction: Instruction) -> Run:
    parts = Parts(state, instruction)
    return _sum(state, parts, [word(state, text) for text in parts.sources], parts.sources)


@operation("LEA", "ULEA")
def _lea(state: State, instruction: Instruction) -> Run:
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    shift = U64(int(parts.sources[-1], 16))
    a, b = (word(state, text) for text in parts.sources[:2])
    high = word(state, parts.sources[2]) if "HI" in modifiers and "SX32" not in modifiers else None

    def shifted(active: Active) -> NDArray:
        low = a(active)
        if "HI" not in modifiers:
            return (low.astype(U64) << shift).astype(U32)
        upper = high(active) if high else (low.view(I32) >> I32(31)).view(U32)
        return ((upper.astype(U64) << U64(32) | low) << shift >> U64(32)).astype(U32)

    return _sum(state, parts, [shifted, b], ["", parts.sources[1]])


@operation("IMAD", "UIMAD")
def _imad(state: State, instruction: Instruction) -> Run:
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    a, b = (word(state, text) for text in parts.sources[:2])
    if not modifiers & {"WIDE", "HI"}:
        c = word(state, parts.sources[2])
        return _sum(state, parts, [c] if "MOV" in modifiers else [lambda active: a(active) * b(active), c], ["", ""])
    c = pair(state, parts.sources[2])

    def extended(value: NDArray) -> NDArray:
        return value.astype(U64) if "U32" in modifiers else value.view(I32).astype(I64).view(U64)

    def run(active: Active) -> None:
        product = extended(a(active)) * extended(b(active))
        total = product + c(active)
        over = total < product
        for carry in parts.carries:
            total = total + carry(active).astype(U64)
        if "HI" in modifiers:
            state.write(parts.row, (total >> U64(32)).astype(U32), active)
        else:
            write_pair(state, parts.row, total, active)
        for row in parts.out:
            state.write_predicate(row, over, active)

    return run


@operation("IDP")
def _dot(state: State, instruction: Instruction) -> Run:
    """A dot product of bytes, or of two numbers of 16 bits and the lower or upper two bytes, added to a sum."""
    parts, modifiers = Parts(state, instruction), instruction.opcode.split(".")[1:]
    a, b, c = (word(state, text) for text in parts.sources)
    count = 4 if "4A" in modifiers else 2
    bits, offset = 32 // count, 16 if "HI" in modifiers else 0
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


# The functions of three inputs that occur most, by their tables.
_WRITTEN_OUT = {
    0xC0: lambda a, b, c: a & b, 0xFC: lambda a, b, c: a | b, 0x3C: lambda a, b, c: a ^ b,
    0xF8: lambda a, b, c: a | b & c, 0xFE: lambda a, b, c: a | b | c, 0xEA: lambda a, b, c: a & b | c,
    0x96: lambda a, b, c: a ^ b ^ c, 0x80: lambda a, b, c: a & b & c, 0xE2: lambda a, b, c: a & b | ~b & c,
}  # fmt: skip


def _lookup(table: int, a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    """A logical function of three inputs, whose value for (a, b, c) is bit 4a + 2b + c of the table."""
    if table in _WRITTEN_OUT:
        return _WRITTEN_OUT[table](a, b, c)
    value = a ^ a
    for bits in range(8):
        if table >> bits & 1:
            value = value | (a if bits & 4 else ~a) & (b if bits & 2 else ~b) & (c if bits & 1 else ~c)
    return value


@operation("LOP3", "ULOP3")
def _lop3(state: State, instruction: Instruction) -> Run:
    parts = Parts(state, instruction)
    sources, table = [word(state, text) for text in parts.sources[:3]], int(parts.sources[3], 16)

    def run(active: Active) -> None:
        value = _lookup(table, *(source(active) for source in sources))
        state.write(parts.row, value, active)
        for text in parts.first:
            state.write_predicate(row_of(text), (value != 0) | parts.carries[0](active), active)

    return run


@operation("PLOP3", "UPLOP3")
def _plop3(state: State, instruction: Instruction) -> Run:
    *names, first, second = instruction.operands
    given = [predicate(state, text) for text in names[2:5]]

    def run(active: Active) -> None:
        inputs = [read(active) for read in given]
        values = [_lookup(int(table, 16), *inputs) for table in (first, second)]
        for text, value in zip(names[:2], values, strict=True):
            state.write_predicate(row_of(text), value, active)

    return run


@operation("ISETP", "UISETP")
def _compare_integers(state: State, instruction: Instruction) -> Run:
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    a, b = (word(state, text) for text in parts.sources)
    kind, (name,) = U32 if "U32" in modifiers else I32, modifiers & set(COMPARE)
    strict = {"LE": "LT", "GE": "GT"}.get(name, name)

    def run(active: Active) -> None:
        left, right = a(active).view(kind), b(active).view(kind)
        if "EX" not in modifiers:
            value = COMPARE[name](left, right)
        else:  # of the upper words: the lower ones' answer counts where they are equal
            below, value = parts.carries[1](active), COMPARE[strict](left, right)
            value = {"EQ": value & below, "NE": value | below}.get(name, value | (left == right) & below)
        write_comparison(state, parts, modifiers, value, active)

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
