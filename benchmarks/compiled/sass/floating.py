"""Instructions on floating-point numbers."""

from __future__ import annotations

import functools
import operator
import re

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
    joined,
    number,
    operation,
    pair,
    row_of,
    word,
    write_comparison,
    write_pair,
)
from benchmarks.compiled.sass.state import Active, State

# Floats


@operation("FADD", "FMUL", "FFMA")
def _single(state: State, instruction: Instruction) -> Run:
    """FTZ leaves small numbers as they are."""
    mode = instruction.modifiers - {"FTZ"} or {"RN"}
    if not mode <= {"RN", "RZ", "RM", "RP"}:
        raise ValueError("only FTZ and roundings")
    parts = Parts(state, instruction)
    reads = [number(state, text) for text in parts.sources]
    compute = {"FADD": operator.add, "FMUL": operator.mul, "FFMA": rounding.fused}[instruction.base]
    if mode != {"RN"}:
        exact = {"FADD": rounding.odd_sum, "FMUL": rounding.exact_product, "FFMA": rounding.odd_fused}[instruction.base]
        compute = lambda *values: rounding.convert(exact(*values), F32, *mode)  # noqa: E731
    return lambda active: state.write(parts.row, compute(*(read(active) for read in reads)).view(U32), active)


@operation("HFMA2")
def _half_constants(state: State, instruction: Instruction) -> Run:
    """0 · 0 plus two halves: constants, or those of a register without their signs."""
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
    bfloat16 = "BF16_V2" in modifiers
    pairs = [[_half(state, text, place, bfloat16) for text in parts.sources] for place in (0, 1)]

    def run(active: Active) -> None:
        given = parts.carries[0](active)
        results = [_compared(modifiers, *(read(active) for read in reads)) for reads in pairs]
        for text, result in zip(parts.first, results, strict=True):
            state.write_predicate(row_of(text), joined(modifiers, result, given), active)

    return run


@operation("FSET")
def _compare_to_float(state: State, instruction: Instruction) -> Run:
    """1.0 where a comparison holds, else 0.0."""
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    if "BF" not in modifiers:
        raise ValueError("only FSET.BF")
    a, b = (number(state, text) for text in parts.sources)

    def run(active: Active) -> None:
        holds = joined(modifiers, _compared(modifiers, a(active), b(active)), parts.carries[0](active))
        state.write(parts.row, holds.astype(F32).view(U32), active)

    return run


def _compared(modifiers: set[str], left: NDArray, right: NDArray) -> NDArray:
    nan = np.isnan(left) | np.isnan(right)
    (name,) = (name for name in modifiers if name.rstrip("U") in COMPARE or name in ("NUM", "NAN"))
    if name in ("NUM", "NAN"):
        return nan if name == "NAN" else ~nan
    value = COMPARE[name.rstrip("U")](left, right)
    return value | nan if name.endswith("U") else value & ~nan


@operation("DADD", "DMUL", "DFMA")
def _double(state: State, instruction: Instruction) -> Run:
    parts = Parts(state, instruction)
    reads = [number(state, text, double=True) for text in parts.sources]
    compute = {"DADD": operator.add, "DMUL": operator.mul, "DFMA": rounding.fused_double}[instruction.base]
    return lambda active: write_pair(state, parts.row, compute(*(read(active) for read in reads)), active)


@operation("FSETP", "DSETP")
def _compare_floats(state: State, instruction: Instruction) -> Run:
    parts, modifiers = Parts(state, instruction), instruction.modifiers
    a, b = (number(state, text, instruction.base == "DSETP") for text in parts.sources)

    def run(active: Active) -> None:
        left, right = a(active), b(active)
        if modifiers & {"MIN", "MAX"}:  # whether it is the first, and whether the second is NaN
            first = left < right if "MIN" in modifiers else left > right
            for text, result in zip(parts.first, (first, np.isnan(right)), strict=True):
                state.write_predicate(row_of(text), result, active)
        else:
            write_comparison(state, parts, modifiers, _compared(modifiers, left, right), active)

    return run


@operation("MUFU")
def _special_function(state: State, instruction: Instruction) -> Run:
    parts = Parts(state, instruction)
    compute = rounding.SPECIAL[instruction.opcode.split(".")[1]]
    read = (word if "64H" in instruction.opcode else number)(state, parts.sources[0])
    return lambda active: state.write(parts.row, compute(read(active)), active)


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


@operation("F2IP")
def _two_bytes(state: State, instruction: Instruction) -> Run:
    """Two floats cut off and clipped to bytes, NaN to 0, above them two bytes of a third operand."""
    parts = Parts(state, instruction)
    if not {"U8", "F32", "TRUNC"} <= instruction.modifiers:
        raise ValueError("only F2IP.U8.F32.TRUNC")
    high, low = (number(state, text) for text in parts.sources[:2])
    upper = word(state, parts.sources[2])

    def byte(value: NDArray) -> NDArray:
        return np.clip(np.nan_to_num(value), 0, 255).astype(U32)

    def run(active: Active) -> None:
        state.write(parts.row, byte(low(active)) | byte(high(active)) << U32(8) | upper(active) << U32(16), active)

    return run


@operation("F2FP")
def _two_halves(state: State, instruction: Instruction) -> Run:
    modifiers = instruction.modifiers
    if not modifiers <= {"BF16", "F16", "F32", "PACK_AB", "RZ"}:
        raise ValueError("only F2FP of two float32 to the nearest or towards 0")
    parts = Parts(state, instruction)
    high, low = (number(state, text) for text in parts.sources)
    convert = functools.partial(rounding.bfloat16 if "BF16" in modifiers else rounding.float16, cut="RZ" in modifiers)
    return lambda active: state.write(parts.row, convert(high(active)) << U32(16) | convert(low(active)), active)
