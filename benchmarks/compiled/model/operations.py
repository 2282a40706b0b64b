"""What the instructions of sm_90 do, as far as our kernels have them: NumPy functions over the lanes of a Machine.

`compiled(machine, instruction)` gives a function that runs one instruction for some lanes. It returns None, or where
they go next: the index of an instruction, or a function where they part or stop.
"""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.model import floats
from benchmarks.compiled.model.machine import PT, RZ, UNIFORM, UNIFORM_PREDICATES, UPT, URZ, WARP, Active, Instruction, Machine
from benchmarks.compiled.model.memory import access, exchange

U32, U64, I32, I64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
Read = Callable[[Active], NDArray]
Run = Callable[[Active], object]
Build = Callable[["Machine", Instruction], Run]

_PREDICATE = re.compile(r"!?U?P[0-9T]")
_CONSTANT = re.compile(r"c\[0x(\w+)\]\[0x(\w+)\]")
_BUILD: dict[str, Build] = {}
_COMPARE = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge, "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip
_JOIN = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}


def operation(*names: str) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        _BUILD.update(dict.fromkeys(names, build))
        return build

    return register


def compiled(machine: Machine, instruction: Instruction) -> Run:
    build = _BUILD.get(instruction.base)
    if build is None:
        return lambda active: _unknown(instruction)
    try:
        run = build(machine, instruction)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{instruction}: {error}") from error
    if instruction.guard is None or instruction.base in _BRANCHES:
        return run
    guard = predicate(machine, instruction.guard)

    def guarded(active: Active) -> object:
        on = guard(active)
        if active.mask is None:
            chosen = active.at[on]
            return run(replace(active, at=chosen)) if len(chosen) else None
        return run(replace(active, mask=active.mask & on))

    return guarded


def _unknown(instruction: Instruction) -> None:
    raise NotImplementedError(f"{instruction}: no operation of that name")


# Operands


def row_of(text: str) -> int:
    """The row of a register in Machine.registers, or of a predicate in Machine.predicates."""
    match = re.fullmatch(r"(U?)([RP])(\d+|Z|T)", text)
    if match is None:
        raise ValueError(f"no register: {text}")
    uniform, kind, number = match.groups()
    if kind == "P":
        return (UPT if uniform else PT) if number == "T" else int(number) + UNIFORM_PREDICATES * bool(uniform)
    return (URZ if uniform else RZ) if number == "Z" else int(number) + UNIFORM * bool(uniform)


def is_predicate(text: str) -> bool:
    return _PREDICATE.fullmatch(text) is not None


def predicate(machine: Machine, text: str) -> Read:
    row = machine.predicates[row_of(text.lstrip("!"))]
    return (lambda active: ~row[active.at]) if text[0] == "!" else (lambda active: row[active.at])


def _bank(machine: Machine, text: str, bytes_: int) -> int | None:
    match = _CONSTANT.search(text)
    if match is None:
        return None
    at = int(match[2], 16)
    content = machine.constants[int(match[1], 16)][at : at + bytes_]
    return int.from_bytes(content.ljust(bytes_, b"\0"), "little")


def _row(machine: Machine, text: str) -> Read:
    """A register's 32 bits, or a byte or half of it: R4.B1, R4.H0_H0."""
    name, _, part = text.partition(".")
    row = machine.rows[row_of(name)]
    if part[:1] in ("B", "H") and part[1:2].isdigit():
        shift, mask = U32(8 * int(part[1]) * (1 + (part[0] == "H"))), U32(0xFF if part[0] == "B" else 0xFFFF)
        return lambda active: row[active.at] >> shift & mask
    return lambda active: row[active.at]


def word(machine: Machine, text: str) -> Read:
    """32 bits: a register, a constant or an immediate, with its sign or complement."""
    sign, body = (text[0], text[1:]) if text[0] in "-~" else ("", text)
    if body[0] == "|":
        inner = word(machine, body.strip("|"))
        return lambda active: np.abs(inner(active).view(I32)).view(U32)
    constant = _bank(machine, body, 4)
    if constant is None and re.match(r"0x|\d", body):
        constant = int(body, 16) if body.startswith("0x") else struct.unpack("<I", struct.pack("<f", float(body)))[0]
    if constant is not None:
        value = U32({"": constant, "-": -constant, "~": ~constant}[sign] & 0xFFFFFFFF)
        return lambda active: value
    read = _row(machine, body)
    if sign == "-":
        return lambda active: U32(0) - read(active)
    return (lambda active: ~read(active)) if sign else read


def pair(machine: Machine, text: str) -> Read:
    """64 bits: two registers, a constant, or an immediate that is extended by its sign."""
    sign, body = (text[0], text[1:]) if text[0] in "-~" else ("", text)
    constant = _bank(machine, body, 8)
    if constant is None and body.startswith("0x"):
        constant = int(body, 16)
    if constant is not None:
        value = U64((-constant if sign == "-" else constant) & 0xFFFFFFFFFFFFFFFF)
        return lambda active: value
    row = row_of(body.split(".")[0])
    if row in (RZ, URZ):
        return lambda active: U64(0)
    low, high = machine.rows[row], machine.rows[row + 1]

    def read(active: Active) -> NDArray:
        return high[active.at].astype(U64) << U64(32) | low[active.at]

    return (lambda active: U64(0) - read(active)) if sign == "-" else read


def number(machine: Machine, text: str, double: bool = False) -> Read:
    """A float32, or a float64 of two registers; an immediate float64 has only its upper 32 bits."""
    sign, body = (text[0], text[1:]) if text[0] in "-+" else ("", text)
    kind = F64 if double else F32
    if re.match(r"\d|INF|QNAN", body) and not body.startswith("0x"):
        value = kind(float(sign + body.replace("QNAN", "nan")))
        if double:
            bits = int(value.view(U64)) + 0x80000000 >> 32 << 32
            value = U64(bits).view(F64)
        return lambda active: value
    bits = (pair if double else word)(machine, body.strip("|"))
    size = (lambda active: np.abs(bits(active).view(kind))) if body[0] == "|" else (lambda active: bits(active).view(kind))
    return (lambda active: -size(active)) if sign == "-" else size


def write_pair(machine: Machine, row: int, value: NDArray, active: Active) -> None:
    bits = np.asarray(value).view(U64) if np.asarray(value).dtype in (F64, I64) else value
    if row not in (RZ, URZ):
        machine.write(row, np.asarray(bits & U64(0xFFFFFFFF)).astype(U32), active)
        machine.write(row + 1, np.asarray(bits >> U64(32)).astype(U32), active)


class Parts:
    """`[predicates,] destination, [predicates out,] sources, [predicates in]`."""

    def __init__(self, machine: Machine, instruction: Instruction) -> None:
        left = list(instruction.operands)
        self.first = self._take(left)
        compares = instruction.base.endswith("SETP") or instruction.base == "FCHK"
        self.row = None if compares or not re.fullmatch(r"U?R(\d+|Z)", left[0]) else row_of(left.pop(0))
        self.out = [row_of(text) for text in self._take(left)]
        self.ins: list[str] = []
        while left and is_predicate(left[-1]):
            self.ins.insert(0, left.pop())
        self.sources = left
        self.carries = [predicate(machine, text) for text in self.ins]

    @staticmethod
    def _take(left: list[str]) -> list[str]:
        taken = []
        while left and is_predicate(left[0]):
            taken.append(left.pop(0))
        return taken


def simple(*names: str, read: Callable = word) -> Callable[[Callable], Callable]:
    """An instruction whose destination is a function of its sources alone: compute(*arrays) -> 32 bits."""

    def register(compute: Callable) -> Callable:
        @operation(*names)
        def build(machine: Machine, instruction: Instruction) -> Run:
            parts = Parts(machine, instruction)
            sources = [read(machine, text) for text in parts.sources]
            return lambda active: machine.write(parts.row, compute(*(source(active) for source in sources)), active)

        return compute

    return register


# Integers


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
def _iadd3(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    reads = [word(machine, text) for text in parts.sources]
    if not parts.out and not parts.carries:
        return lambda active: machine.write(parts.row, sum((read(active) for read in reads), U32(0)), active)
    wides = [_wide(read, text) for read, text in zip(reads, parts.sources, strict=True)]

    def run(active: Active) -> None:
        total = sum((wide(active) for wide in wides), U64(0))
        for carry in parts.carries:
            total = total + carry(active).astype(U64)
        _write_sum(machine, parts, total, active)

    return run


def _write_sum(machine: Machine, parts: Parts, total: NDArray, active: Active) -> None:
    machine.write(parts.row, total.astype(U32), active)
    for least, row in enumerate(parts.out, 1):
        machine.write_predicate(row, total >> U64(32) >= U64(least), active)


@operation("LEA", "ULEA")
def _lea(machine: Machine, instruction: Instruction) -> Run:
    parts, modifiers = Parts(machine, instruction), instruction.modifiers
    shift = U64(int(parts.sources[-1], 16))
    a, b = (word(machine, text) for text in parts.sources[:2])
    addend = _wide(b, parts.sources[1])
    high = word(machine, parts.sources[2]) if "HI" in modifiers and "SX32" not in modifiers else None

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
        _write_sum(machine, parts, total, active)

    return run


@operation("IMAD", "UIMAD")
def _imad(machine: Machine, instruction: Instruction) -> Run:
    parts, modifiers = Parts(machine, instruction), instruction.modifiers
    a, b = (word(machine, text) for text in parts.sources[:2])
    if not modifiers & {"WIDE", "HI"}:
        c = word(machine, parts.sources[2])
        if "MOV" in modifiers:
            return lambda active: machine.write(parts.row, c(active), active)
        if not parts.out and not parts.carries:
            return lambda active: machine.write(parts.row, a(active) * b(active) + c(active), active)

        def low(active: Active) -> None:
            total = (a(active) * b(active)).astype(U64) + c(active).astype(U64)
            for carry in parts.carries:
                total = total + carry(active).astype(U64)
            _write_sum(machine, parts, total, active)

        return low
    c = pair(machine, parts.sources[2])
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
            machine.write(parts.row, (total >> U64(32)).astype(U32), active)
        else:
            write_pair(machine, parts.row, total, active)
        for row in parts.out:
            machine.write_predicate(row, over > 0, active)

    return run


@operation("SHF", "USHF")
def _shift(machine: Machine, instruction: Instruction) -> Run:
    parts, modifiers = Parts(machine, instruction), instruction.modifiers
    a, count, c = (word(machine, text) for text in parts.sources)
    signed = bool(modifiers & {"S32", "S64"})

    def run(active: Active) -> None:
        both = c(active).astype(U64) << U64(32) | a(active)
        by = count(active).astype(U64)
        by = by & U64(31 if modifiers & {"U32", "S32"} else 63) if "W" in modifiers else np.minimum(by, U64(63))
        if "L" in modifiers:
            both = both << by
        else:
            both = (both.view(I64) >> by.view(I64)).view(U64) if signed else both >> by
        machine.write(parts.row, (both >> U64(32) if "HI" in modifiers else both).astype(U32), active)

    return run


def _lookup(table: int, a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    """A logical function of three inputs, whose value for (a, b, c) is bit 4a + 2b + c of the table."""
    known = {0xC0: lambda: a & b, 0xFC: lambda: a | b, 0x3C: lambda: a ^ b, 0xF8: lambda: a & b | c, 0xFE: lambda: a | b | c,
             0x96: lambda: a ^ b ^ c, 0x80: lambda: a & b & c, 0xE2: lambda: a & b | ~b & c}  # fmt: skip
    if table in known:
        return known[table]()
    result = a ^ a
    for bits in range(8):
        if table >> bits & 1:
            result = result | (a if bits & 4 else ~a) & (b if bits & 2 else ~b) & (c if bits & 1 else ~c)
    return result


@operation("LOP3", "ULOP3")
def _lop3(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    sources = [word(machine, text) for text in parts.sources[:3]]
    table = int(parts.sources[3], 16)

    def run(active: Active) -> None:
        value = _lookup(table, *(source(active) for source in sources))
        machine.write(parts.row, value, active)
        for text in parts.first:
            machine.write_predicate(row_of(text), (value != 0) | parts.carries[0](active), active)

    return run


@operation("PLOP3", "UPLOP3")
def _plop3(machine: Machine, instruction: Instruction) -> Run:
    *names, first, second = instruction.operands
    a, b, c = (predicate(machine, text) for text in names[2:5])

    def run(active: Active) -> None:
        given = a(active), b(active), c(active)
        values = [_lookup(int(table, 16), *given) for table in (first, second)]
        for text, value in zip(names[:2], values, strict=True):
            machine.write_predicate(row_of(text), value, active)

    return run


@operation("SEL", "USEL", "FSEL")
def _select(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    read = number if instruction.base == "FSEL" else word
    a, b = (read(machine, text) for text in parts.sources)

    def run(active: Active) -> None:
        chosen = np.where(parts.carries[0](active), a(active), b(active))
        machine.write(parts.row, chosen.view(U32), active)

    return run


@operation("IMNMX", "VIMNMX", "VIADDMNMX", "UIMNMX", "FMNMX")
def _least_or_greatest(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    kind = F32 if instruction.base == "FMNMX" else U32 if "U32" in instruction.modifiers else I32
    reads = [(number if kind == F32 else word)(machine, text) for text in parts.sources]
    positive = "RELU" in instruction.modifiers

    def run(active: Active) -> None:
        values = [read(active) for read in reads]
        if len(values) == 3:
            values[:2] = [values[0] + values[1]]
        a, b = (value.view(kind) for value in values)
        least, greatest = (np.fmin, np.fmax) if kind == F32 else (np.minimum, np.maximum)
        value = np.where(parts.carries[0](active), least(a, b), greatest(a, b))
        machine.write(parts.row, (np.maximum(value, kind(0)) if positive else value).view(U32), active)

    return run


@operation("ISETP", "UISETP")
def _compare_integers(machine: Machine, instruction: Instruction) -> Run:
    parts, modifiers = Parts(machine, instruction), instruction.modifiers
    a, b = (word(machine, text) for text in parts.sources)
    kind, (name,) = U32 if "U32" in modifiers else I32, modifiers & set(_COMPARE)
    strict = {"LE": "LT", "GE": "GT"}.get(name, name)

    def run(active: Active) -> None:
        left, right = a(active).view(kind), b(active).view(kind)
        if "EX" in modifiers:
            below = parts.carries[1](active)
            value = _COMPARE[strict](left, right)
            value = value & below if name == "EQ" else value | below if name == "NE" else value | (left == right) & below
        else:
            value = _COMPARE[name](left, right)
        _write_comparison(machine, parts, modifiers, value, active)

    return run


def _write_comparison(machine: Machine, parts: Parts, modifiers: set[str], value: NDArray, active: Active) -> None:
    join = next(_JOIN[name] for name in _JOIN if name in modifiers)
    given = parts.carries[0](active)
    results = join(value, given), join(~value, given)  # before one of them is written over `given`
    for text, result in zip(parts.first, results, strict=False):
        machine.write_predicate(row_of(text), result, active)


@operation("FLO", "UFLO")
def _highest_bit(machine: Machine, instruction: Instruction) -> Run:
    parts, modifiers = Parts(machine, instruction), instruction.modifiers
    read = word(machine, parts.sources[0])

    def run(active: Active) -> None:
        value = read(active)
        if "U32" not in modifiers:
            value = np.where(value.view(I32) < 0, ~value, value)
        place = np.frexp(value.astype(F64))[1].astype(I32) - I32(1)
        if "SH" in modifiers:
            place = I32(31) - place
        machine.write(parts.row, np.where(value == 0, U32(0xFFFFFFFF), place.view(U32)), active)

    return run


@operation("P2R")
def _predicates_to_register(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    kept, mask = word(machine, parts.sources[-2]), int(parts.sources[-1], 16)

    def run(active: Active) -> None:
        bits = sum((machine.predicates[i][active.at].astype(U32) << U32(i) for i in range(7) if mask >> i & 1), U32(0))
        machine.write(parts.row, kept(active) & U32(~mask & 0xFFFFFFFF) | bits, active)

    return run


@operation("R2P")
def _register_to_predicates(machine: Machine, instruction: Instruction) -> Run:
    read, mask = word(machine, instruction.operands[1]), int(instruction.operands[2], 16)

    def run(active: Active) -> None:
        value = read(active)
        for i in range(7):
            if mask >> i & 1:
                machine.write_predicate(i, (value >> U32(i) & U32(1)).astype(bool), active)

    return run


@operation("S2R", "S2UR", "CS2R")
def _special(machine: Machine, instruction: Instruction) -> Run:
    row, name = row_of(instruction.operands[0]), instruction.operands[1]
    if name in ("SRZ", "SR_CgaCtaId"):
        two = instruction.base == "CS2R" and "32" not in instruction.modifiers
        zero = np.zeros(machine.count, U64)
        return lambda active: (write_pair(machine, row, zero[active.at], active) if two
                               else machine.write(row, zero[active.at].astype(U32), active))  # fmt: skip
    values = machine.special[name]
    return lambda active: machine.write(row, values[active.at], active)


@operation("VOTE", "VOTEU")
def _vote(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    names = [text for text in instruction.operands if is_predicate(text)]
    outs, given = names[:-1], predicate(machine, names[-1])

    def run(active: Active) -> None:
        lanes = active.lanes()
        on = np.broadcast_to(given(Active(lanes, None)), lanes.shape)
        ballots = np.zeros(machine.warp[-1] + 1, U32)
        np.bitwise_or.at(ballots, machine.warp[lanes[on]], U32(1) << machine.lane_in_warp[lanes[on]])
        here = np.zeros_like(ballots)
        np.bitwise_or.at(here, machine.warp[lanes], U32(1) << machine.lane_in_warp[lanes])
        mine = Active(lanes, None)
        ballot, everyone = ballots[machine.warp[lanes]], here[machine.warp[lanes]]
        if parts.row is not None:
            machine.write(parts.row, ballot, mine)
        value = ballot == everyone if "ALL" in instruction.modifiers else ballot != 0
        for text in outs:
            machine.write_predicate(row_of(text), value, mine)

    return run


@operation("SHFL")
def _shuffle(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    if "IDX" not in instruction.modifiers:
        raise ValueError("only SHFL.IDX")
    source, lane = machine.rows[row_of(parts.sources[0])], word(machine, parts.sources[1])

    def run(active: Active) -> None:
        lanes = active.lanes()
        mine = Active(lanes, None)
        first = lanes - machine.lane_in_warp[lanes]
        machine.write(parts.row, source[first + (lane(mine) & U32(WARP - 1))], mine)

    return run


# Floats


@simple("FADD", read=number)
def _fadd(a: NDArray, b: NDArray) -> NDArray:
    return (a + b).view(U32)


@simple("FMUL", read=number)
def _fmul(a: NDArray, b: NDArray) -> NDArray:
    return (a * b).view(U32)


@simple("FFMA", read=number)
def _ffma(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    return floats.fused(a, b, c).view(U32)


@simple("HFMA2")
def _half_constants(a: NDArray, b: NDArray, high: NDArray, low: NDArray) -> NDArray:
    """As a move of two halves, the one way in which kernels without halves have it."""
    if a.any() or b.any():
        raise NotImplementedError("HFMA2 of anything but 0 * 0")
    halves = [value.view(F32).astype(np.float16).view(np.uint16).astype(U32) for value in (high, low)]
    return halves[0] << U32(16) | halves[1]


@operation("DADD", "DMUL", "DFMA")
def _double(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    reads = [number(machine, text, double=True) for text in parts.sources]
    compute = {"DADD": operator.add, "DMUL": operator.mul, "DFMA": floats.fused_double}[instruction.base]
    return lambda active: write_pair(machine, parts.row, compute(*(read(active) for read in reads)), active)


@operation("FSETP", "DSETP")
def _compare_floats(machine: Machine, instruction: Instruction) -> Run:
    parts, modifiers = Parts(machine, instruction), instruction.modifiers
    double = instruction.base == "DSETP"
    a, b = (number(machine, text, double) for text in parts.sources)
    name = next(name for name in instruction.opcode.split(".")[1:] if name.rstrip("U") in _COMPARE or name in ("NUM", "NAN", "MIN", "MAX"))

    def run(active: Active) -> None:
        left, right = a(active), b(active)
        nan = np.isnan(left) | np.isnan(right)
        if name in ("MIN", "MAX"):  # whether it is the first, and whether the second is NaN
            first = left < right if name == "MIN" else left > right
            for text, result in zip(parts.first, (first, np.isnan(right)), strict=True):
                machine.write_predicate(row_of(text), result, active)
            return
        if name in ("NUM", "NAN"):
            value = nan if name == "NAN" else ~nan
        else:
            value = _COMPARE[name.rstrip("U")](left, right)
            value = value | nan if name.endswith("U") else value & ~nan
        _write_comparison(machine, parts, modifiers, value, active)

    return run


@operation("MUFU")
def _special_function(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    compute = floats.SPECIAL[instruction.opcode.split(".")[1]]
    read = (word if "64H" in instruction.opcode else number)(machine, parts.sources[0])
    return lambda active: machine.write(parts.row, compute(read(active)), active)


@operation("FCHK")
def _division_check(machine: Machine, instruction: Instruction) -> Run:
    """Whether a quotient needs the slow way: an exponent near the ends, of 0 too where it divides."""
    parts = Parts(machine, instruction)
    row, (a, b) = row_of(parts.first[0]), (number(machine, text) for text in parts.sources)

    def run(active: Active) -> None:
        above, below = np.frexp(a(active))[1], np.frexp(b(active))[1]
        usual = (np.abs(below) < 120) & (np.abs(above - below) < 120) & np.isfinite(a(active)) & (b(active) != 0)
        machine.write_predicate(row, ~usual, active)

    return run


@operation("I2F", "I2FP", "F2I", "F2F", "FRND")
def _convert(machine: Machine, instruction: Instruction) -> Run:
    row = row_of(instruction.operands[0])
    source, target, mode = floats.conversion(instruction.base, instruction.opcode.split(".")[1:])
    wide = np.dtype(source).itemsize == 8
    if np.dtype(source).kind == "f":
        read = number(machine, instruction.operands[1], wide)
    else:
        bits = (pair if wide else word)(machine, instruction.operands[1])
        read = lambda active: floats.integers(bits(active), source)  # noqa: E731

    def run(active: Active) -> None:
        value = floats.convert(read(active), target, mode)
        if value.dtype.itemsize == 8:
            write_pair(machine, row, value.view(U64), active)
        else:
            machine.write(row, value.view(U32), active)

    return run




@operation("F2FP")
def _two_halves(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    high, low = (number(machine, text) for text in parts.sources)
    half = floats.bfloat16 if "BF16" in instruction.modifiers else floats.float16
    return lambda active: machine.write(parts.row, half(high(active)) << U32(16) | half(low(active)), active)


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


_SPACES = {"LDS": "shared", "STS": "shared", "ATOMS": "shared", "LDL": "local", "STL": "local", "LDG": "global",
           "STG": "global", "LD": "generic", "ST": "generic"}  # fmt: skip


def bytes_of(instruction: Instruction) -> int:
    """How many bytes a lane of a load or store moves."""
    modifiers = instruction.modifiers
    if modifiers & {"U8", "S8"}:
        return 1
    return 2 if modifiers & {"U16", "S16"} else 16 if "128" in modifiers else 8 if "64" in modifiers else 4


@operation("LDS", "LDL", "LDG", "LD", "STS", "STL", "STG", "ST", "ATOMS")
def _memory(machine: Machine, instruction: Instruction) -> Run:
    space, size = _SPACES[instruction.base], bytes_of(instruction)
    operands = [text for text in instruction.operands if not is_predicate(text)]
    place = next(i for i, text in enumerate(operands) if text.endswith("]"))
    inside = re.search(r"\[([^\[\]]*)\]$", operands[place])[1]
    address = address_of(machine, inside, wide=space in ("global", "generic"))
    stored = [operands[place + 1]] if len(operands) > place + 1 else []
    first = row_of(stored[0]) if stored and instruction.base != "ATOMS" else None
    atomic = word(machine, stored[0]) if instruction.base == "ATOMS" and stored else lambda active: U32(1)
    signed = bool(instruction.modifiers & {"S8", "S16"})

    def run(active: Active) -> None:
        lanes = active.lanes()
        mine = Active(lanes, None)
        at = np.broadcast_to(address(mine), lanes.shape)
        words = max(size // 4, 1)
        if instruction.base == "ATOMS":
            if not instruction.modifiers & {"ADD", "INC"}:
                raise NotImplementedError(str(instruction))
            machine.write(row_of(operands[0]), exchange(machine, lanes, at, atomic(mine)), mine)
        elif first is None:
            row = row_of(operands[0])
            for i, value in enumerate(access(machine, space, lanes, at, size, None)):
                if signed:
                    value = (value << U32(32 - 8 * size)).view(I32) >> I32(32 - 8 * size)
                machine.write(row + i, value.view(U32), mine)
        else:
            access(machine, space, lanes, at, size, [machine.rows[first + i if first != RZ else RZ][lanes] for i in range(words)])

    return run


# Where to go next

_BRANCHES = {"BRA", "EXIT", "RET", "CALL", "BRX"}


@operation("NOP", "BSSY", "BSYNC", "WARPSYNC", "BMOV", "DEPBAR", "YIELD", "BREAK", "MEMBAR", "ERRBAR", "CCTL", "ULEPC")
def _nothing(machine: Machine, instruction: Instruction) -> Run:
    return lambda active: None


@operation("BAR")
def _barrier(machine: Machine, instruction: Instruction) -> Run:
    def goto(mask: NDArray, following: int) -> None:
        machine.pc[mask] = following
        machine.arrive(mask)

    return lambda active: goto


@operation("BRA", "CALL", "EXIT")
def _branch(machine: Machine, instruction: Instruction) -> Run:
    conditions = [predicate(machine, text) for text in [instruction.guard, *instruction.operands] if text and is_predicate(text)]
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
