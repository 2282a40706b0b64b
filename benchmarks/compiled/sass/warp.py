"""Instructions that ask which lane of which block they are, or read other lanes of the warp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiled.sass.listing import Instruction
from benchmarks.compiled.sass.operands import (
    F32,
    I32,
    RZ,
    U32,
    U64,
    WARP,
    Active,
    Parts,
    Run,
    is_predicate,
    operation,
    predicate,
    row_of,
    word,
    write_pair,
)

if TYPE_CHECKING:
    from benchmarks.compiled.sass.machine import Machine


@operation("S2R", "S2UR", "CS2R")
def _special(machine: Machine, instruction: Instruction) -> Run:
    row, name = row_of(instruction.operands[0]), instruction.operands[1]
    if name in ("SRZ", "SR_CgaCtaId"):
        two = instruction.base == "CS2R" and "32" not in instruction.modifiers
        zero = np.zeros(machine.pc.shape, U64)
        return lambda active: (write_pair(machine, row, zero[active.at], active) if two
                               else machine.write(row, zero[active.at].astype(U32), active))  # fmt: skip
    values = machine.special[name]
    return lambda active: machine.write(row, values[active.at], active)


@operation("VOTE", "VOTEU")
def _vote(machine: Machine, instruction: Instruction) -> Run:
    rows = [row_of(text) for text in instruction.operands if not is_predicate(text)]
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
        for row in rows:
            machine.write(row, ballot, mine)
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


@operation("IMMA")
def _product(machine: Machine, instruction: Instruction) -> Run:
    """16 × 32 bytes by 32 × 8, added to 16 × 8 sums; which lane holds what: csrc/cuda/matrix.cuh."""
    shape, *kinds = instruction.opcode.split(".")[1:]
    if shape != "16832" or not {*kinds} <= {"U8", "S8"} or len(kinds) != 2:
        raise ValueError("only IMMA.16832 of 8-bit integers")
    destination, *sources = (row_of(text.split(".")[0]) for text in instruction.operands)

    def registers(first: int, count: int, lanes: NDArray) -> NDArray:
        """(warps, groups, places, registers)"""
        rows = [machine.rows[RZ if first == RZ else first + i][lanes] for i in range(count)]
        return np.stack(rows, axis=-1).reshape(-1, 8, 4, count)

    def bytes_(words: NDArray, kind: str) -> NDArray:
        return np.ascontiguousarray(words).view(np.int8 if kind == "S8" else np.uint8).astype(I32)

    def run(active: Active) -> None:
        lanes = active.lanes()
        if len(lanes) % WARP or (machine.lane_in_warp[lanes] != np.tile(np.arange(WARP), len(lanes) // WARP)).any():
            raise RuntimeError(f"{instruction}: not all lanes of a warp take part")
        left = bytes_(registers(sources[0], 4, lanes), kinds[0]).reshape(-1, 8, 4, 2, 2, 4)
        left = left.transpose(0, 4, 1, 3, 2, 5).reshape(-1, 16, 32)  # by row, depth
        right = bytes_(registers(sources[1], 2, lanes), kinds[1]).reshape(-1, 8, 4, 2, 4)
        right = right.transpose(0, 3, 2, 4, 1).reshape(-1, 32, 8)  # by depth, column
        sums = (left.astype(F32) @ right.astype(F32)).astype(I32)  # below 2**21: exact
        sums = sums.reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(-1, 4).view(U32)
        added = registers(sources[2], 4, lanes).reshape(-1, 4)
        for i in range(4):
            machine.write(destination + i, sums[:, i] + added[:, i], Active(lanes, None))

    return run


@operation("REDUX")
def _sum_of_lanes(machine: Machine, instruction: Instruction) -> Run:
    if "SUM" not in instruction.modifiers:
        raise ValueError("only REDUX.SUM")
    row, read = row_of(instruction.operands[0]), word(machine, instruction.operands[1])

    def run(active: Active) -> None:
        lanes = active.lanes()
        mine = Active(lanes, None)
        sums = np.zeros(machine.warp[-1] + 1, U32)
        np.add.at(sums, machine.warp[lanes], read(mine))
        machine.write(row, sums[machine.warp[lanes]], mine)

    return run
