"""Read the machine code of a kernel: instructions with their control bits, branches, loops, and the path of a warp.

ptxas schedules in the binary. Each instruction of 128 bits says in its upper half for how many clocks its warp issues
nothing after it (bits 41 to 44), which of six scoreboards it holds until its result is written (46 to 48) and until its
operands are read (49 to 51), and for which of them it waits (52 to 57); 7 is no scoreboard. The places of the bits are
those that Jia et al., "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking" (2018), found; they hold for
every target since.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

NO_SCOREBOARD = 7
_POLL = 8  # instructions
_LABEL = re.compile(r"^(\.L_\w+):")
_LINE = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:(?P<predicate>@!?U?P\w+)\s+)?"
    r"(?P<opcode>[A-Z][A-Z0-9_.]*[A-Za-z0-9_.]*)(?P<operands>[^;]*);?\s*/\* 0x[0-9a-f]{16} \*/"
)
_UPPER_HALF = re.compile(r"^\s+/\* 0x(?P<bits>[0-9a-f]{16}) \*/")
_TARGET = re.compile(r"`\((\.L_\w+)\)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
        address: in bytes from the kernel's first.
        predicate: as "@!P0"; "" where it always runs.
        opcode: with its modifiers, as "LDG.E.128".
        operands: as written.
        target: index of the instruction that a BRA goes to; None for all others.
        stall: clocks until the warp's next instruction may issue.
        written: scoreboard held until the result is written; `NO_SCOREBOARD`.
        read: scoreboard held until the operands are read; `NO_SCOREBOARD`.
        waits: scoreboards that must be free before it issues.
    """

    address: int
    predicate: str
    opcode: str
    operands: str
    target: int | None
    stall: int
    written: int
    read: int
    waits: tuple[int, ...]

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def conditional(self) -> bool:
        """Whether it may be skipped; `BRA.U !UP0, …` carries its predicate among the operands."""
        before_target = self.operands.partition("`")[0]
        return bool(self.predicate) or ".DIV" in self.opcode or bool(re.search(r"\bU?P\d", before_target))


@dataclass(frozen=True)
class Loop:
    """Instructions `first` to `last`, by index; the last one branches back to the first."""

    first: int
    last: int


@dataclass(frozen=True)
class Program:
    """A kernel's instructions in the order of their addresses."""

    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """Every loop that repeats work, in the order in which they end; inner ones before those around them.

        Not counted: a few instructions that poll a barrier, and the way back from code behind an EXIT, where the
        compiler puts what hardly ever runs.
        """
        found = [
            Loop(branch.target, index)
            for index, branch in enumerate(self.instructions)
            if branch.name == "BRA" and branch.target is not None and branch.target < index  # itself: the final trap
        ]
        return [loop for loop in found if not self._polls(loop) and not self._passes_the_end(loop)]

    @functools.cached_property
    def forks(self) -> list[int]:
        """Indices of the conditional branches to the other of two ways with a loop each: there kinds of program part.

        The way that falls through never runs into the other: an EXIT or a branch past it stands before.
        """
        found = []
        for index, branch in enumerate(self.instructions):
            if branch.name == "BRA" and branch.conditional and branch.target is not None and branch.target > index:
                last = self.instructions[branch.target - 1]
                parted = last.name in ("EXIT", "BRA") and not last.conditional and (last.target or index) >= index
                passed = any(index < loop.first and loop.last < branch.target for loop in self.loops)
                if parted and passed and any(loop.first >= branch.target for loop in self.loops):
                    found.append(index)
        return found

    def path(self, trips: tuple[int, ...], taken: frozenset[int] = frozenset()) -> list[Instruction]:
        """What one warp issues from the first instruction to its EXIT.

        A conditional branch forwards falls through unless it is among `taken`: what it skips is the rare case.

        Args:
            trips: how often each of `loops` runs, of an inner one in each run of the outer.
            taken: indices of conditional branches that are taken.

        Raises:
            ValueError: there are fewer or more trips than loops.
        """
        loops = self.loops
        if len(trips) != len(loops):
            raise ValueError(f"{len(loops)} loops in the machine code, {len(trips)} trips: {trips}")
        rounds = dict(zip(loops, trips, strict=True))
        closing = {loop.last: loop for loop in loops}
        leaving = {self._way_out(loop): loop for loop in loops if not self.instructions[loop.last].conditional}
        skipped = {loop.first: loop.last + 1 for loop, count in rounds.items() if count == 0}
        done, place, issued = dict.fromkeys(loops, 1), 0, []
        while place < len(self.instructions):
            if place in skipped:
                place = skipped[place]
                continue
            instruction = self.instructions[place]
            issued.append(instruction)
            leaves = place in leaving and done[leaving[place]] == rounds[leaving[place]]
            if _always_exits(instruction) or (leaves and instruction.name == "EXIT") or instruction.target == place:
                break
            following = place + 1
            if place in closing:
                loop = closing[place]
                again = done[loop] < rounds[loop]
                done[loop] = done[loop] + 1 if again else 1
                following = loop.first if again else following
            elif leaves:
                done[leaving[place]] = 1
                following = instruction.target
            elif instruction.target is not None and (place in taken or not instruction.conditional):
                following = instruction.target
            place = following
        return issued

    def _polls(self, loop: Loop) -> bool:
        body = self.instructions[loop.first : loop.last + 1]
        return len(body) <= _POLL and any("TRYWAIT" in one.opcode or one.name == "NANOSLEEP" for one in body)

    def _passes_the_end(self, loop: Loop) -> bool:
        return any(_always_exits(instruction) for instruction in self.instructions[loop.first : loop.last])

    def _way_out(self, loop: Loop) -> int:
        """Where a loop that always branches back is left: its last conditional EXIT or branch to the outside."""
        return max(
            (
                index
                for index in range(loop.first, loop.last)
                if self.instructions[index].conditional
                and (self.instructions[index].name == "EXIT" or (self.instructions[index].target or 0) > loop.last)
            ),
            default=loop.last,
        )


def _always_exits(instruction: Instruction) -> bool:
    return instruction.name == "EXIT" and not instruction.conditional


def parse(text: str) -> Program:
    """The program that `nvdisasm -hex -c` printed."""
    found: list[tuple[re.Match, int]] = []
    labels: dict[str, int] = {}
    line_of = None
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(found)
        elif match := _LINE.match(line):
            line_of = match
        elif line_of is not None and (upper := _UPPER_HALF.match(line)):
            found.append((line_of, int(upper["bits"], 16)))
            line_of = None
    return Program(tuple(_instruction(match, bits, labels) for match, bits in found))


def _instruction(match: re.Match, bits: int, labels: dict[str, int]) -> Instruction:
    named = _TARGET.search(match["operands"]) if match["opcode"].startswith("BRA") else None
    waits = bits >> 52 & 63
    return Instruction(
        address=int(match["address"], 16),
        predicate=match["predicate"] or "",
        opcode=match["opcode"],
        operands=match["operands"].strip(),
        target=labels.get(named.group(1)) if named else None,
        stall=bits >> 41 & 15,
        written=bits >> 46 & 7,
        read=bits >> 49 & 7,
        waits=tuple(board for board in range(6) if waits >> board & 1),
    )
