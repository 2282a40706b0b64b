"""Operands of machine code, and the register of what instructions do with them.

`compiled(machine, instruction)` gives a function that runs one instruction for some lanes. It returns None, or where
they go next: the index of an instruction, or a function where they part or stop.
"""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass.listing import Instruction

if TYPE_CHECKING:
    from benchmarks.compiled.sass.machine import Machine

U32, U64, I32, I64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
UNIFORM, URZ, RZ = 256, 256 + 63, 255  # rows of the register file: R0 to R254, RZ, then UR0 to UR62, URZ
PT, UNIFORM_PREDICATES, UPT = 7, 8, 15
WARP = 32
BRANCHES = {"BRA", "EXIT", "RET", "CALL", "BRX"}  # their guard says whether they are taken


@dataclass
class Active:
    """The lanes of a step. Where many are active, arrays are computed whole and written through `mask`."""

    at: slice | NDArray
    mask: NDArray | None

    def lanes(self) -> NDArray:
        return np.flatnonzero(self.mask) if self.mask is not None else self.at


Read = Callable[[Active], NDArray]
Run = Callable[[Active], object]
Build = Callable[["Machine", Instruction], Run]

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


def compiled(machine: Machine, instruction: Instruction) -> Run:
    build = _BUILD.get(instruction.base)
    if build is None:
        return lambda active: _unknown(instruction)
    try:
        run = build(machine, instruction)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{instruction}: {error}") from error
    if instruction.guard is None or instruction.base in BRANCHES:
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
    size = (
        (lambda active: np.abs(bits(active).view(kind))) if body[0] == "|" else (lambda active: bits(active).view(kind))
    )
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
        named = left and not compares and re.fullmatch(r"U?R(\d+|Z)", left[0])
        self.row = row_of(left.pop(0)) if named else None
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


def write_comparison(machine: Machine, parts: Parts, modifiers: set[str], value: NDArray, active: Active) -> None:
    join = next(_JOIN[name] for name in _JOIN if name in modifiers)
    given = parts.carries[0](active)
    results = join(value, given), join(~value, given)  # before one of them is written over `given`
    for text, result in zip(parts.first, results, strict=False):
        machine.write_predicate(row_of(text), result, active)
