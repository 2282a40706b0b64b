"""Operands of machine code, and the register of what instructions do with them.

`compiled(state, instruction)` gives a function that runs one instruction for some lanes. It returns None, or where
they go next: the index of an instruction, or a function where they part or stop.
"""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass.listing import Instruction
from benchmarks.compiled.sass.state import PT, RZ, UNIFORM, UNIFORM_PREDICATES, UPT, URZ, Active, State

U32, U64, I32, I64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
BRANCHES = {"BRA", "EXIT", "RET", "CALL"}  # their guard says whether they are taken

Read = Callable[[Active], Any]  # of an array, or of one number for all lanes
Run = Callable[[Active], object]
Build = Callable[[State, Instruction], Run]
Operand = Callable[[State, str], Read]
Compute = Callable[..., NDArray]

_PREDICATE = re.compile(r"!?U?P[0-9T]")
_CONSTANT = re.compile(r"c\[0x(\w+)\]\[0x(\w+)\]")
_BUILD: dict[str, Build] = {}
COMPARE = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge, "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip
_JOIN = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}


def operation(*names: str) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        _BUILD.update(dict.fromkeys(names, build))
        return build

    return register


def compiled(state: State, instruction: Instruction) -> Run:
    build = _BUILD.get(instruction.base)
    if build is None:
        return lambda active: _unknown(instruction)
    try:
        run = build(state, instruction)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{instruction}: {error}") from error
    if instruction.guard is None or instruction.base in BRANCHES:
        return run
    guard = predicate(state, instruction.guard)

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
    """The row of a register in State.rows, or of a predicate in State.predicates."""
    match = re.fullmatch(r"(U?)([RP])(\d+|Z|T)", text)
    if match is None:
        raise ValueError(f"no register: {text}")
    uniform, kind, number = match.groups()
    if kind == "P":
        return (UPT if uniform else PT) if number == "T" else int(number) + UNIFORM_PREDICATES * bool(uniform)
    return (URZ if uniform else RZ) if number == "Z" else int(number) + UNIFORM * bool(uniform)


def is_predicate(text: str) -> bool:
    return _PREDICATE.fullmatch(text) is not None


def predicate(state: State, text: str) -> Read:
    row = state.predicates[row_of(text.lstrip("!"))]
    return (lambda active: ~row[active.at]) if text[0] == "!" else (lambda active: row[active.at])


def _bank(state: State, text: str, bytes_: int) -> int | None:
    match = _CONSTANT.search(text)
    if match is None:
        return None
    at = int(match[2], 16)
    content = state.constants[int(match[1], 16)][at : at + bytes_]
    return int.from_bytes(content.ljust(bytes_, b"\0"), "little")


def _row(state: State, text: str) -> Read:
    """A register's 32 bits, or a byte or half of it: R4.B1, R4.H0_H0."""
    name, _, part = text.partition(".")
    row = state.rows[row_of(name)]
    if part[:1] in ("B", "H") and part[1:2].isdigit():
        shift, mask = U32(8 * int(part[1]) * (1 + (part[0] == "H"))), U32(0xFF if part[0] == "B" else 0xFFFF)
        return lambda active: row[active.at] >> shift & mask
    return lambda active: row[active.at]


def word(state: State, text: str) -> Read:
    """32 bits: a register, a constant or an immediate, with its sign or complement."""
    sign, body = (text[0], text[1:]) if text[0] in "-~" else ("", text)
    if body[0] == "|":
        inner = word(state, body.strip("|"))
        return lambda active: np.abs(inner(active).view(I32)).view(U32)
    constant = _bank(state, body, 4)
    if constant is None and re.match(r"0x|\d", body):
        constant = int(body, 16) if body.startswith("0x") else struct.unpack("<I", struct.pack("<f", float(body)))[0]
    if constant is not None:
        value = U32({"": constant, "-": -constant, "~": ~constant}[sign] & 0xFFFFFFFF)
        return lambda active: value
    read = _row(state, body)
    if sign == "-":
        return lambda active: U32(0) - read(active)
    return (lambda active: ~read(active)) if sign else read


def pair(state: State, text: str) -> Read:
    """64 bits: two registers, a constant, or an immediate that is extended by its sign."""
    sign, body = (text[0], text[1:]) if text[0] in "-~" else ("", text)
    constant = _bank(state, body, 8)
    if constant is None and body.startswith("0x"):
        constant = int(body, 16)
    if constant is not None:
        value = U64((-constant if sign == "-" else constant) & 0xFFFFFFFFFFFFFFFF)
        return lambda active: value
    row = row_of(body.split(".")[0])
    if row in (RZ, URZ):
        return lambda active: U64(0)
    low, high = state.rows[row], state.rows[row + 1]

    def read(active: Active) -> NDArray:
        return high[active.at].astype(U64) << U64(32) | low[active.at]

    return (lambda active: U64(0) - read(active)) if sign == "-" else read


def number(state: State, text: str, wide: bool = False) -> Read:
    """A float32; `wide`: a float64 of two registers, of which an immediate has only the upper 32 bits."""
    sign, body = (text[0], text[1:]) if text[0] in "-+" else ("", text)
    kind = F64 if wide else F32
    if re.match(r"\d|INF|QNAN", body) and not body.startswith("0x"):
        value = kind(float(sign + body.replace("QNAN", "nan")))
        if wide:
            bits = int(value.view(U64)) + 0x80000000 >> 32 << 32
            value = U64(bits).view(F64)
        return lambda active: value
    read, absolute = (pair if wide else word)(state, body.strip("|")), body[0] == "|"

    def size(active: Active) -> NDArray:
        found = read(active).view(kind)
        return np.abs(found) if absolute else found

    return (lambda active: -size(active)) if sign == "-" else size


def write_pair(state: State, row: int, value: Any, active: Active) -> None:
    bits = np.asarray(value).view(U64) if np.asarray(value).dtype in (F64, I64) else value
    if row not in (RZ, URZ):
        state.write(row, np.asarray(bits & U64(0xFFFFFFFF)).astype(U32), active)
        state.write(row + 1, np.asarray(bits >> U64(32)).astype(U32), active)


double: Operand = partial(number, wide=True)


class Parts:
    """`[predicates,] destination, [predicates out,] sources, [predicates in]`."""

    def __init__(self, state: State, instruction: Instruction) -> None:
        left = list(instruction.operands)
        self.first = self._take(left)
        compares = "SETP" in instruction.base or instruction.base == "FCHK"
        named = left and not compares and re.fullmatch(r"U?R(\d+|Z)", left[0])
        self.row = row_of(left.pop(0)) if named else RZ
        self.out = [row_of(text) for text in self._take(left)]
        self.ins: list[str] = []
        while left and is_predicate(left[-1]):
            self.ins.insert(0, left.pop())
        self.sources = left
        self.carries = [predicate(state, text) for text in self.ins]

    @staticmethod
    def _take(left: list[str]) -> list[str]:
        taken = []
        while left and is_predicate(left[0]):
            taken.append(left.pop(0))
        return taken


def result(
    *names: str, read: Callable[[State, str], Read] = word, wide: bool = False
) -> Callable[[Callable], Callable]:
    """An instruction that writes one value: compute(modifiers, *sources, *predicates in) -> 32 bits; 64 if `wide`."""

    def register(compute: Compute) -> Compute:
        @operation(*names)
        def build(state: State, instruction: Instruction) -> Run:
            parts, write = Parts(state, instruction), partial(write_pair, state) if wide else state.write
            reads = [*(read(state, text) for text in parts.sources), *parts.carries]

            def run(active: Active) -> None:
                value = compute(instruction.modifiers, *(given(active) for given in reads))
                write(parts.row, value if wide else value.view(U32), active)

            return run

        return compute

    return register


def joined(modifiers: set[str], value: NDArray, given: NDArray) -> NDArray:
    return next(_JOIN[name] for name in _JOIN if name in modifiers)(value, given)


def write_comparison(state: State, parts: Parts, modifiers: set[str], value: NDArray, active: Active) -> None:
    given = parts.carries[0](active)
    sides = [joined(modifiers, side, given) for side in (value, ~value)]  # before one is written over `given`
    for text, side in zip(parts.first, sides, strict=False):
        state.write_predicate(row_of(text), side, active)
