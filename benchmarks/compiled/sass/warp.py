"""Instructions that ask which lane of which block they are, or read other lanes of the warp."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass import rounding
from benchmarks.compiled.sass.listing import Instruction
from benchmarks.compiled.sass.memory import Fault
from benchmarks.compiled.sass.operands import (
    F32,
    F64,
    I32,
    U32,
    U64,
    Parts,
    Run,
    operation,
    row_of,
    word,
    write_pair,
)
from benchmarks.compiled.sass.state import RZ, WARP, Active, State


@operation("S2R", "S2UR", "CS2R")
def _special(state: State, instruction: Instruction) -> Run:
    row, name = row_of(instruction.operands[0]), instruction.operands[1]
    if name in ("SRZ", "SR_CgaCtaId"):
        two = instruction.base == "CS2R" and "32" not in instruction.modifiers
        zero = np.zeros(state.pc.shape, U64)
        return lambda active: (write_pair(state, row, zero[active.at], active) if two
                               else state.write(row, zero[active.at].astype(U32), active))  # fmt: skip
    values = state.special[name]
    return lambda active: state.write(row, values[active.at], active)


def _of_warps(state: State, active: Active, reduce: np.ufunc, first: np.generic, values: NDArray) -> NDArray:
    """The values of a warp's active lanes, reduced; each active lane gets its warp's result."""
    warps = state.warp[active.at]
    results = np.full(state.warp[-1] + 1, first)
    reduce.at(results, warps, values)
    return results[warps]


@operation("SHFL")
def _shuffle(state: State, instruction: Instruction) -> Run:
    """The register of lane IDX, or of this lane ^ BFLY."""
    parts = Parts(state, instruction)
    (form,) = instruction.modifiers
    if form not in ("IDX", "BFLY") or parts.first != ["PT"] or parts.sources[2] != "0x1f":
        raise ValueError("only SHFL.IDX and SHFL.BFLY in a whole warp")
    source, lane = state.rows[row_of(parts.sources[0])], word(state, parts.sources[1])

    def run(active: Active) -> None:
        mine = active.sparse()
        lanes = mine.at
        here = state.lane_in_warp[lanes]
        asked = lanes - here + (here ^ lane(mine) if form == "BFLY" else lane(mine) & U32(WARP - 1))
        there = np.zeros(len(state.pc), bool)
        there[lanes] = True
        if not there[asked].all():
            raise Fault("a lane reads one that takes no part")
        state.write(parts.row, source[asked], mine)

    return run


@operation("HMMA")
def _product_of_halves(state: State, instruction: Instruction) -> Run:
    """16 × 16 halves by 16 × 8, added to 16 × 8 float32: `rounding.accumulated` says how."""
    shape, total, *kind = instruction.opcode.split(".")[1:]
    if shape != "16816" or total != "F32" or kind not in ([], ["BF16"]):
        raise ValueError("only HMMA.16816.F32 of float16 and bfloat16")
    destination, *sources = (row_of(text) for text in instruction.operands)

    def halves(words: NDArray) -> NDArray:
        if kind:
            return (words.view(np.uint16).astype(U32) << U32(16)).view(F32).astype(F64)
        return words.view(np.float16).astype(F64)

    def run(active: Active) -> None:
        lanes = state.whole_warps(active)
        left = _left(halves(_registers(state, sources[0], 4, lanes)))
        right = _right(halves(_registers(state, sources[1], 2, lanes)))
        sums = _by_lane_inverse(_registers(state, sources[2], 4, lanes).view(F32)).astype(F64)
        for depth in (slice(0, 8), slice(8, 16)):
            products = left[:, :, None, depth] * right.swapaxes(1, 2)[:, None, :, depth]  # (warps, 16, 8, 8)
            sums = rounding.accumulated(products, sums)
        words = _by_lane(sums.astype(F32)).view(U32)
        for i in range(4):
            state.write(destination + i, words[:, i], Active(lanes, None))

    return run


def _registers(state: State, first: int, count: int, lanes: NDArray) -> NDArray:
    """(warps, groups, places, registers): a lane is one of 4 places of one of 8 groups."""
    rows = [state.rows[RZ if first == RZ else first + i][lanes] for i in range(count)]
    return np.stack(rows, axis=-1).reshape(-1, 8, 4, count)


def _left(values: NDArray) -> NDArray:
    """(warps, 16, depth) of the left factor's 4 registers: rows group and group + 8, then the same in the second half
    of the depth."""
    values = values.reshape(len(values), 8, 4, 2, 2, -1)
    return values.transpose(0, 4, 1, 3, 2, 5).reshape(len(values), 16, -1)


def _right(values: NDArray) -> NDArray:
    """(warps, depth, 8) of the right factor's 2 registers: column group, the first and second half of the depth."""
    values = values.reshape(len(values), 8, 4, 2, -1)
    return values.transpose(0, 3, 2, 4, 1).reshape(len(values), -1, 8)


def _by_lane(sums: NDArray) -> NDArray:
    """(lanes, 4) of (warps, 16, 8): of rows group and group + 8 two columns each."""
    return np.ascontiguousarray(sums.reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4)).reshape(-1, 4)


def _by_lane_inverse(values: NDArray) -> NDArray:
    """(warps, 16, 8) of (warps, groups, places, 4)."""
    return values.reshape(-1, 8, 4, 2, 2).transpose(0, 3, 1, 2, 4).reshape(-1, 16, 8)


@operation("REDUX")
def _reduction(state: State, instruction: Instruction) -> Run:
    """The sum of a warp's lanes, or the least of them."""
    if not instruction.modifiers <= {"SUM", "MIN", "S32"}:
        raise ValueError("only REDUX.SUM and REDUX.MIN.S32")
    row, read = row_of(instruction.operands[0]), word(state, instruction.operands[1])
    reduce, first = (np.add, I32(0)) if "SUM" in instruction.modifiers else (np.minimum, I32(np.iinfo(I32).max))

    def run(active: Active) -> None:
        mine = active.sparse()
        state.write(row, _of_warps(state, mine, reduce, first, read(mine).view(I32)).view(U32), mine)

    return run
