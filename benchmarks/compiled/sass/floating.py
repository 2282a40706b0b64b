"""Instructions on floating-point numbers."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass import rounding
from benchmarks.compiled.sass.listing import Instruction
from benchmarks.compiled.sass.operands import (
    COMPARE,
    F32,
    U32,
    U64,
    Parts,
    Read,
    Run,
    double,
    joined,
    number,
    operation,
    pair,
    result,
    row_of,
    word,
    write_comparison,
    write_pair,
)
from benchmarks.compiled.sass.state import Active, State

Modifiers = set[str]


def _single(nearest: Callable, exact: Callable, modifiers: Modifiers, *values: NDArray) -> NDArray:
    """FTZ leaves small numbers as they are."""
    mode = modifiers - {"FTZ"} or {"RN"}
    if not mode <= {"RN", "RZ", "RM", "RP"}:
        raise ValueError("only FTZ and roundings")
    return nearest(*values) if mode == {"RN"} else rounding.convert(exact(*values), F32, *mode)


result("FADD", read=number)(partial(_single, operator.add, rounding.odd_sum))
result("FMUL", read=number)(partial(_single, operator.mul, rounding.exact_product))
result("FFMA", read=number)(partial(_single, rounding.fused, rounding.odd_fused))
for _name, _compute in (("DADD", operator.add), ("DMUL", operator.mul), ("DFMA", rounding.fused_double)):
    result(_name, read=double, wide=True)(lambda _, *values, compute=_compute: compute(*values))


@result("MUFU", read=number)
def _special_function(modifiers: Modifiers, value: NDArray) -> NDArray:
    (name,) = modifiers & rounding.SPECIAL.keys()
    return rounding.SPECIAL[name](value)


@result("F2IP", read=number)
def _two_bytes(modifiers: Modifiers, high: NDArray, low: NDArray, upper: NDArray) -> NDArray:
    """Two floats cut off and clipped to bytes, NaN to 0, above them two bytes of a third operand."""
    if not {"U8", "F32", "TRUNC"} <= modifiers:
        raise ValueError("only F2IP.U8.F32.TRUNC")
    first, second = (np.clip(np.nan_to_num(value), 0, 255).astype(U32) for value in (low, high))
    return first | second << U32(8) | upper.view(U32) << U32(16)


@result("F2FP", read=number)
def _two_halves(modifiers: Modifiers, high: NDArray, low: NDArray) -> NDArray:
    if not modifiers <= {"BF16", "F16", "F32", "PACK_AB", "RZ"}:
        raise ValueError("only F2FP of two float32 to the nearest or towards 0")
    convert = partial(rounding.bfloat16 if "BF16" in modifiers else rounding.float16, cut="RZ" in modifiers)
    return convert(high) << U32(16) | convert(low)


@result("FSET", read=number)
def _compare_to_float(modifiers: Modifiers, a: NDArray, b: NDArray, given: NDArray) -> NDArray:
    """1.0 where a comparison holds, else 0.0."""
    if "BF" not in modifiers:
        raise ValueError("only FSET.BF")
    return joined(modifiers, _compared(modifiers, a, b), given).astype(F32)


def _compared(modifiers: Modifiers, left: NDArray, right: NDArray) -> NDArray:
    nan = np.isnan(left) | np.isnan(right)
    (name,) = (name for name in modifiers if name.rstrip("U") in COMPARE or name in ("NUM", "NAN"))
    if name in ("NUM", "NAN"):
        return nan if name == "NAN" else ~nan
    value = COMPARE[name.rstrip("U")](left, right)
    return value | nan if name.endswith("U") else value & ~nan


@operation("FSETP", "DSETP")
def _compare_floats(state: State, instruction: Instruction) -> Run:
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    a, b = (number(state, text, instruction.base == "DSETP") for text in parts.sources)

    def run(active: Active) -> None:
        left, right = a(active), b(active)
        if not modifiers & {"MIN", "MAX"}:
            return write_comparison(state, parts, modifiers, _compared(modifiers, left, right), active)
        first = left < right if "MIN" in modifiers else left > right
        for text, side in zip(parts.first, (first, np.isnan(right)), strict=True):  # and whether the second is NaN
            state.write_predicate(row_of(text), side, active)

    return run


@operation("FCHK")
def _division_check(state: State, instruction: Instruction) -> Run:
    """Whether a quotient needs the slow way: an exponent near the ends, of 0 too where it divides."""
    parts = Parts(state, instruction)
    row, (a, b) = row_of(parts.first[0]), (number(state, text) for text in parts.sources)

    def run(active: Active) -> None:
        above, below = np.frexp(a(active))[1], np.frexp(b(active))[1]
        usual = (np.abs(below) < 120) & (np.abs(above - below) < 120) & np.isfinite(a(active)) & (b(active) != 0)
        state.write_predicate(row, ~usual, active)

    return run


@operation("I2F", "I2FP", "F2I", "F2F", "FRND")
def _convert(state: State, instruction: Instruction) -> Run:
    row = row_of(instruction.operands[0])
    source, target, mode = rounding.conversion(instruction.base, instruction.opcode.split(".")[1:])
    wide = np.dtype(source).itemsize == 8
    if np.dtype(source).kind == "f":
        read = number(state, instruction.operands[1], wide)
    else:
        bits = (pair if wide else word)(state, instruction.operands[1])
        read = lambda active: rounding.integers(bits(active), source)  # noqa: E731

    def run(active: Active) -> None:
        value = rounding.convert(read(active), target, mode)
        if value.dtype.itemsize == 8:
            write_pair(state, row, value.view(U64), active)
        else:
            state.write(row, value.view(U32), active)

    return run


# Halves


@operation("HFMA2")
def _half_constants(state: State, instruction: Instruction) -> Run:
    """0 · 0 plus two halves: constants, or a register's halves without their signs."""
    parts = Parts(state, instruction)
    if {text.strip("-").split(".")[0] for text in parts.sources[:2]} != {"RZ"}:
        raise ValueError("only HFMA2 of 0 * 0")
    added = parts.sources[2:]
    if len(added) == 2:
        halves = [np.float16(float(text)).view(np.uint16) for text in added]
        value = U32(int(halves[0]) << 16 | int(halves[1]))
        return lambda active: state.write(parts.row, value, active)
    if not re.fullmatch(r"\|R\d+\|", added[0]):
        raise ValueError("only HFMA2 of two constants or |R0|")
    read = word(state, added[0].strip("|"))
    return lambda active: state.write(parts.row, read(active) & U32(0x7FFF7FFF), active)


def _half(state: State, text: str, place: int, bfloat16: bool = False) -> Read:
    """The lower (0) or upper (1) half of an operand, as float32; .H1_H1 takes the upper one for both."""
    body, _, chosen = text.replace("|", "").lstrip("-").partition(".")
    shift = U32(16 * (int(chosen[1]) if chosen else place))
    read, negative, absolute = word(state, body), text[0] == "-", "|" in text

    def run(active: Active) -> NDArray:
        bits = read(active) >> shift
        value = (bits << U32(16)).view(F32) if bfloat16 else bits.astype(np.uint16).view(np.float16).astype(F32)
        value = np.abs(value) if absolute else value
        return -value if negative else value

    return run


@operation("HADD2")
def _wider_half(state: State, instruction: Instruction) -> Run:
    parts = Parts(state, instruction)
    if instruction.opcode != "HADD2.F32" or parts.sources[0] != "-RZ":
        raise ValueError("only HADD2.F32 of -RZ")
    read = _half(state, parts.sources[1], 0)
    return lambda active: state.write(parts.row, read(active).view(U32), active)


@operation("HSETP2")
def _compare_halves(state: State, instruction: Instruction) -> Run:
    """The lower halves give the first predicate, the upper ones the second."""
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    pairs = [[_half(state, text, place, "BF16_V2" in modifiers) for text in parts.sources] for place in (0, 1)]

    def run(active: Active) -> None:
        given = parts.carries[0](active)
        sides = [_compared(modifiers, *(read(active) for read in reads)) for reads in pairs]
        for text, side in zip(parts.first, sides, strict=True):
            state.write_predicate(row_of(text), joined(modifiers, side, given), active)

    return run
