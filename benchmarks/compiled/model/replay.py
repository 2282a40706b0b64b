"""Replay the machine code of the warps that share a sub-partition: what the bounds hide, latency and too few warps.

One sub-partition of one multiprocessor is played, the other three are taken to do the same. Each clock it issues one
instruction of the warp that has been ready longest, in the warp's own order: after the stall count of the one before,
when the scoreboards it waits for are free and its pipe takes it. Matrix products of a warp group run asynchronously,
copies into shared memory complete in groups, barriers wait for the program's warps, a program that ends makes room for
the next, and loads and stores share the DRAM.

Programs run in waves of those that are resident. Of many waves `WAVES` are played; the rest take what the waves before
the last took, once those that began in step with each other are out of phase (within 3 % of playing them all).

Latencies are in clocks, rounded: Luo et al. 2024 (pipes.py) for shared memory and DRAM; ptxas's own stall counts hold
the rest. Memory and warp-group products have queues, so that their issue does not wait for a busy pipe at once.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.compiled.model.pipes import GLOBAL_STORES, SUB_PARTITIONS, Card, cost
from benchmarks.compiled.model.sass import Instruction

WAVES, IN_STEP = 6, 3
SAME = 0.005  # a faster DRAM that changes the clocks by less changes nothing
LAUNCH = 400  # from a program's start to its first instruction
DRAM_LATENCY = 650
L2_LATENCY = 280  # in the middle of 222 to 339: "Non-Uniform L2 Cache Latency …", arXiv 2606.22588, of an L40
SHARED_LATENCY = 30
SPECIAL_LATENCY = 14  # after the pipe is free again
INTEGER_LATENCY = 20
UNIFORM_LATENCY = 24
WARP_PRODUCT_LATENCY = 24
GROUP_PRODUCT_LATENCY = 30
READ_LATENCY = 15  # until a memory instruction has read its registers
STORE_LATENCY = 20
FENCE = 30
BARRIER = 25
MEMORY_QUEUE = 64
GROUP_QUEUE = 256

# Places in the list of times at which a pipe takes the next instruction. A float runs on either half of the arithmetic,
# an integer multiplication on the first only.
_NONE, _FLOAT, _MULTIPLY, _INTEGER, _SPECIAL, _MEMORY, _TENSOR = range(7)
_PIPE = {
    "float": _FLOAT, "multiply": _MULTIPLY, "integer": _INTEGER, "special": _SPECIAL, "memory": _MEMORY,
    "shuffle": _MEMORY, "tensor": _TENSOR,
}  # fmt: skip
_NAMES = {_FLOAT: "float", _MULTIPLY: "multiply", _INTEGER: "integer", _SPECIAL: "special", _MEMORY: "memory"}
_NAMES |= {_TENSOR: "tensor"}

# What an instruction does besides taking a pipe.
_PLAIN, _SHARED, _LOAD, _STORE, _COPY, _GROUP, _COMMIT, _BARRIER, _UNIFORM, _FENCE = range(10)
_AWAIT_GROUP, _AWAIT_COPY = 10, 11


class _Step(NamedTuple):
    """An instruction, made ready for the replay."""

    pipe: int
    queue: int
    does: int
    clocks: float
    waits: tuple[int, ...]
    written: int
    read: int
    stall: int
    amount: float  # DRAM bytes; of an await, how many groups may be open; of a product, whether it ends a group


@dataclass(frozen=True)
class Traffic:
    """What the lanes' loads and stores mean for the DRAM.

    Attributes:
        load, store: share of the lanes' bytes that comes from or goes to the DRAM; the rest is padding or found in L2.
        busy: multiprocessors that have a program, among which the bandwidth is shared.
        latency: clocks that a load takes on average; the DRAM's for all of them is what calibration.py holds.
    """

    load: float = 1.0
    store: float = 1.0
    busy: int = 1 << 20
    latency: float = DRAM_LATENCY


@dataclass(frozen=True)
class Replay:
    """Of one sub-partition.

    Attributes:
        clocks: from the launch to the end of the last program.
        busy: pipe, "issue" and "dram" -> share of the played clocks in which it worked.
        idle: reason -> share of the played clocks in which nothing was issued.
    """

    clocks: float
    busy: dict[str, float]
    idle: dict[str, float]


class _Program:
    """A program's warps in this sub-partition."""

    def __init__(self, warps: int) -> None:
        self.left, self.arrived, self.waiting = warps, 0, []


class _Warp:
    __slots__ = ("boards", "copies", "groups", "open", "place", "program", "ready", "steps")

    def __init__(self, program: _Program, steps: list[_Step], ready: float) -> None:
        self.program, self.steps, self.ready, self.place = program, steps, ready, 0
        self.boards = [0.0] * 8  # the last two take what holds no scoreboard
        self.groups: list[float] = []
        self.copies: list[float] = [0.0]
        self.open = 0.0

    def earliest(self) -> float:
        """When the next instruction could issue if every pipe were free."""
        step, at, boards = self.steps[self.place], self.ready, self.boards
        for board in step.waits:
            if boards[board] > at:
                at = boards[board]
        if step.does >= _AWAIT_GROUP:
            ends = self.groups if step.does == _AWAIT_GROUP else self.copies
            may_be_open = int(step.amount)
            if len(ends) > may_be_open and ends[-1 - may_be_open] > at:
                at = ends[-1 - may_be_open]
        return at

    def reason(self, at: float) -> str:
        """Why the next instruction did not issue before `at`."""
        step = self.steps[self.place]
        if at > self.earliest():
            return f"{_NAMES[step.pipe]} pipe"
        if at <= self.ready:
            return "stall count or barrier"
        if any(self.boards[board] >= at for board in step.waits):
            return "scoreboard"
        return "matrix product" if step.does == _AWAIT_GROUP else "copy into shared memory"


def replay(
    paths: Sequence[Sequence[Sequence[Instruction]]], card: Card, *, warps: int, resident: int, programs: int,
    traffic: Traffic,
) -> Replay:  # fmt: skip
    """Play `programs` programs on one multiprocessor, `resident` at a time.

    Multiprocessors are out of phase: while others compute, one takes more of the DRAM than its share. How much more is
    found by playing again with the DRAM faster by the factor by which the whole took longer than its DRAM traffic.

    Args:
        paths: of a program what each of its warps in the sub-partition issues, or one path for all of them; programs
            take them in turn.
        warps: of a program.
        resident: programs that fit on a multiprocessor.
        programs: that this multiprocessor runs.

    Raises:
        ValueError: the warps of a program come to different numbers of barriers.
    """
    for program in paths:
        if len({sum(instruction.name == "BAR" for instruction in path) for path in program}) > 1:
            raise ValueError("the warps of a program come to different numbers of barriers")
    share = max(1, warps // SUB_PARTITIONS)
    beside = max(1, SUB_PARTITIONS // warps)  # programs of one or two warps lie in sub-partitions beside each other
    resident, programs = max(1, resident // beside), -(-programs // beside)
    rate = card.dram_bytes(traffic.busy)
    most = card.dram_bytes(1) / rate
    steps = [[_steps(path, card, traffic) for path in program] for program in paths]
    burst, before = 1.0, 0.0
    for _ in range(5):
        played = _play(steps, card, share, resident, programs, rate, burst, traffic.latency)
        wanted = min(max(1.0, 0.95 / max(played.busy["dram"], 1e-9)), most)
        if abs(wanted - burst) < 0.05 * burst or abs(played.clocks - before) < SAME * before:
            break
        before = played.clocks
        burst = (wanted + burst) / 2
    return played


def _steps(path: Sequence[Instruction], card: Card, traffic: Traffic) -> list[_Step]:
    made: dict[int, _Step] = {}
    for instruction in path:
        if instruction.address not in made:
            made[instruction.address] = _step(instruction, card, traffic)
    return [made[instruction.address] for instruction in path]


def _step(instruction: Instruction, card: Card, traffic: Traffic) -> _Step:
    taken, name, opcode = cost(instruction, card), instruction.name, instruction.opcode
    does, amount, queue = _PLAIN, 0.0, 0
    if taken.pipe in ("memory", "shuffle"):
        does, queue = _SHARED, MEMORY_QUEUE
        if taken.global_bytes:
            does = _STORE if name in GLOBAL_STORES else _COPY if name == "LDGSTS" else _LOAD
            amount = taken.global_bytes * (traffic.store if does == _STORE else traffic.load)
    elif name == "HGMMA":
        does, queue, amount = _GROUP, GROUP_QUEUE, float("gsb0" in instruction.operands)
    elif name == "WARPGROUP" and "DEPBAR" in opcode:
        does, amount = _AWAIT_GROUP, _open_groups(r"0x([0-9a-f]+)", instruction.operands)
    elif name == "DEPBAR":
        does, amount = _AWAIT_COPY, _open_groups(r"SB\d, 0x([0-9a-f]+)", instruction.operands)
    elif name in ("LDGDEPBAR", "BAR"):
        does = _COMMIT if name == "LDGDEPBAR" else _BARRIER
    elif name in ("MEMBAR", "FENCE"):
        does = _FENCE
    elif taken.pipe == "uniform" or name == "LDC":
        does = _UNIFORM
    return _Step(
        _PIPE.get(taken.pipe, _NONE), queue, does, taken.clocks, instruction.waits, instruction.written,
        instruction.read, max(1, instruction.stall), amount,
    )  # fmt: skip


def _open_groups(pattern: str, operands: str) -> float:
    named = re.search(pattern, operands)
    return float(int(named.group(1), 16)) if named else 0.0


def _play(
    steps: list[list[list[_Step]]], card: Card, share: int, resident: int, programs: int, rate: float, burst: float,
    latency: float,
) -> Replay:  # fmt: skip
    played = min(programs, WAVES * resident)
    halves = card.float_lanes == 32
    free = [0.0] * 7
    heavy = lite = dram = 0.0  # the halves of the float pipe, and the DRAM
    busy, idle = Counter(issue=0), Counter()
    queue: list[tuple[float, int, int, _Warp]] = []
    started, ends, number = 0, [], 0
    clock = 0.0

    def launch(at: float) -> None:
        nonlocal started, number
        program = _Program(share)
        mine = steps[started % len(steps)]
        for place in range(share):
            warp = _Warp(program, mine[place % len(mine)], at + LAUNCH)
            number += 1
            heapq.heappush(queue, (warp.earliest(), 1, number, warp))
        started += 1

    for _ in range(min(resident, played)):
        launch(0.0)
    while queue:
        at, rank, order, warp = queue[0]
        step = warp.steps[warp.place]
        pipe, queued, does, clocks, _, written, read, stall, amount = step
        if free[pipe] - queued > at:
            heapq.heapreplace(queue, (free[pipe] - queued, rank, order, warp))
            continue
        now = at
        if at < clock:
            now = clock
        elif at > clock:
            idle[warp.reason(at)] += at - clock
        clock = now + 1
        busy["issue"] += 1
        done = released = now
        if pipe == _FLOAT:
            if halves and lite < heavy:
                lite = max(lite, now) + 2
            else:
                heavy = max(heavy, now) + 2
            free[_FLOAT], free[_MULTIPLY] = (min(heavy, lite) if halves else heavy), heavy
            busy[_FLOAT] += clocks
        elif pipe == _MULTIPLY:
            free[_MULTIPLY] = heavy = max(heavy, now) + clocks
            free[_FLOAT] = min(heavy, lite) if halves else heavy
            busy[_MULTIPLY] += clocks
        elif pipe:
            free[pipe] = end = max(free[pipe], now) + clocks
            busy[pipe] += clocks
            if pipe == _INTEGER:
                done = now + INTEGER_LATENCY
            elif pipe == _SPECIAL:
                done = end + SPECIAL_LATENCY
            elif pipe == _TENSOR:
                done = end + (GROUP_PRODUCT_LATENCY if does == _GROUP else WARP_PRODUCT_LATENCY)
                if amount:
                    warp.groups.append(done)
            else:
                done = end + SHARED_LATENCY
                if amount:
                    needed = amount / rate
                    dram = max(dram, now) + needed / burst
                    busy["dram"] += needed
                    done = max(dram, end + latency)
                    if does == _COPY:
                        warp.open = max(warp.open, done)
                    if does != _LOAD:
                        done = end + STORE_LATENCY
                released = min(done, end + READ_LATENCY)
        elif does == _UNIFORM:
            done = now + UNIFORM_LATENCY
        elif does == _COMMIT:
            warp.copies.append(max(warp.open, warp.copies[-1]))
            warp.open = 0.0
        elif does == _FENCE:
            done = warp.ready = now + FENCE
        boards = warp.boards
        if done > boards[written]:
            boards[written] = done
        released = released if pipe == _MEMORY else now + 10
        if released > boards[read]:
            boards[read] = released
        if now + stall > warp.ready:
            warp.ready = now + stall
        warp.place += 1
        if warp.place == len(warp.steps):
            heapq.heappop(queue)
            warp.program.left -= 1
            if warp.program.left == 0:
                ends.append(now)
                if started < played:
                    launch(now)
        elif does == _BARRIER:
            heapq.heappop(queue)
            program = warp.program
            program.arrived += 1
            program.waiting.append((order, warp))
            if program.arrived == program.left:
                for place, other in program.waiting:
                    other.ready = max(other.ready, now + BARRIER)
                    heapq.heappush(queue, (other.earliest(), 1, place, other))
                program.arrived, program.waiting = 0, []
        else:
            heapq.heapreplace(queue, (warp.earliest(), 0, order, warp))
    finish = max(ends[-1], dram)
    return Replay(
        finish + (programs - played) * _steady(ends, resident),
        {_NAMES.get(pipe, pipe): taken / finish for pipe, taken in ({"dram": 0} | busy).items()},
        {reason: lost / finish for reason, lost in idle.most_common()},
    )


def _steady(ends: list[float], resident: int) -> float:
    """Clocks a program between the end of the waves in step and the start of the last."""
    if len(ends) < WAVES * resident:
        return 0.0
    return (ends[-1 - resident] - ends[IN_STEP * resident - 1]) / ((WAVES - 1 - IN_STEP) * resident)
