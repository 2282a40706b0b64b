"""Instructions on floating-point numbers."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass import rounding
from benchmarks.compiled.sass.listing import Instruction
from benchmarks.compiled.sass.operands import (
    COMPARE,
    U32,
    U64,
    Active,
    Parts,
    Run,
    number,
    operation,
    pair,
    row_of,
    simple,
    word,
    write_comparison,
    write_pair,
)

if TYPE_CHECKING:
    from benchmarks.compiled.sass.machine import Machine


# Floats


@simple("FADD", read=number)
def _fadd(a: NDArray, b: NDArray) -> NDArray:
    return (a + b).view(U32)


@simple("FMUL", read=number)
def _fmul(a: NDArray, b: NDArray) -> NDArray:
    return (a * b).view(U32)


@simple("FFMA", read=number)
def _ffma(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    return rounding.fused(a, b, c).view(U32)


@simple("HFMA2", read=number)
def _half_constants(a: NDArray, b: NDArray, high: NDArray, low: NDArray) -> NDArray:
    """As a move of two halves, the one way in which kernels without halves have it."""
    if a.any() or b.any():
        raise NotImplementedError("HFMA2 of anything but 0 * 0")
    halves = [value.astype(np.float16).view(np.uint16).astype(U32) for value in (high, low)]
    return halves[0] << U32(16) | halves[1]


@operation("DADD", "DMUL", "DFMA")
def _double(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    reads = [number(machine, text, double=True) for text in parts.sources]
    compute = {"DADD": operator.add, "DMUL": operator.mul, "DFMA": rounding.fused_double}[instruction.base]
    return lambda active: write_pair(machine, parts.row, compute(*(read(active) for read in reads)), active)


@operation("FSETP", "DSETP")
def _compare_floats(machine: Machine, instruction: Instruction) -> Run:
    parts, modifiers = Parts(machine, instruction), instruction.modifiers
    double = instruction.base == "DSETP"
    a, b = (number(machine, text, double) for text in parts.sources)
    (name,) = (name for name in modifiers if name.rstrip("U") in COMPARE or name in ("NUM", "NAN", "MIN", "MAX"))

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
            value = COMPARE[name.rstrip("U")](left, right)
            value = value | nan if name.endswith("U") else value & ~nan
        write_comparison(machine, parts, modifiers, value, active)

    return run


@operation("MUFU")
def _special_function(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    compute = rounding.SPECIAL[instruction.opcode.split(".")[1]]
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
    source, target, mode = rounding.conversion(instruction.base, instruction.opcode.split(".")[1:])
    wide = np.dtype(source).itemsize == 8
    if np.dtype(source).kind == "f":
        read = number(machine, instruction.operands[1], wide)
    else:
        bits = (pair if wide else word)(machine, instruction.operands[1])
        read = lambda active: rounding.integers(bits(active), source)  # noqa: E731

    def run(active: Active) -> None:
        value = rounding.convert(read(active), target, mode)
        if value.dtype.itemsize == 8:
            write_pair(machine, row, value.view(U64), active)
        else:
            machine.write(row, value.view(U32), active)

    return run


@operation("F2IP")
def _two_bytes(machine: Machine, instruction: Instruction) -> Run:
    """Two floats cut off and clipped to bytes, NaN to 0, above them two bytes of a third operand."""
    parts = Parts(machine, instruction)
    if not {"U8", "F32", "TRUNC"} <= instruction.modifiers:
        raise ValueError("only F2IP.U8.F32.TRUNC")
    high, low = (number(machine, text) for text in parts.sources[:2])
    upper = word(machine, parts.sources[2])

    def byte(value: NDArray) -> NDArray:
        return np.clip(np.nan_to_num(value), 0, 255).astype(U32)

    def run(active: Active) -> None:
        machine.write(parts.row, byte(low(active)) | byte(high(active)) << U32(8) | upper(active) << U32(16), active)

    return run


@operation("F2FP")
def _two_halves(machine: Machine, instruction: Instruction) -> Run:
    parts = Parts(machine, instruction)
    high, low = (number(machine, text) for text in parts.sources)
    half = rounding.bfloat16 if "BF16" in instruction.modifiers else rounding.float16
    return lambda active: machine.write(parts.row, half(high(active)) << U32(16) | half(low(active)), active)
