"""What became slower or faster between two results files of the same kind of machine.

    python -m benchmarks.compare before.json after.json                # exit code 1 when a row became slower
    python -m benchmarks.compare before.json after.json again.json     # … in every one of the later files
    python -m benchmarks.compare before.json after.json --by 0.05

A row is judged by our speed over a peer's in the same round: a slower machine or a busy minute slows both, and cancels.
"Slower" takes three things: against every peer of the row the median moved by more than a tenth (--by), and by more
than two and a half standard errors, estimated from the rounds; and our own time rose by more than half of that against
the machine, which is the median change of all peers in the files. So a peer's slow moment does not count against us.

What the rounds of one process cannot show is where its memory happens to lie. What is slower is therefore to be
measured again: the command for it is printed, and a row that `again` holds counts only when it is slower there as well.
A row without a peer cannot tell slower code from a slower machine: it is shown and never counts. How often this is
right: README.md.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.compare.table import Row, read, rows_of

BY, ERRORS = 0.10, 2.5
Rows = dict[tuple[str, str], Row]
Verdict = Literal["slower", "faster", "same"]


class Change(NamedTuple):
    """How one row changed.

    Attributes:
        factor: our speed after over before; 0.8 is a fifth slower.
        error: standard error of its logarithm.
        counts: whether it was judged by peers.
    """

    group: str
    row: str
    factor: float
    error: float
    verdict: Verdict
    counts: bool
    note: str

    @property
    def name(self) -> str:
        return f"{self.group}: {self.row}"


def speeds(row: Row, peer: str = "") -> list[float]:
    """The logarithm of our speed, or of that over a peer's, round by round."""
    own, *_ = row.seconds.values()
    theirs = row.seconds[peer] if peer else [1.0] * len(own)
    return [math.log(other) - math.log(mine) for other, mine in zip(theirs, own, strict=True)]


def machine_change(before: Rows, after: Rows) -> float:
    """The logarithm of how much faster the machine became: the median over all peers."""
    changes = [
        math.log(statistics.median(before[key].seconds[peer]) / statistics.median(after[key].seconds[peer]))
        for key in before.keys() & after.keys()
        for peer in before[key].ratios.keys() & after[key].ratios.keys()
    ]
    return statistics.median(changes) if changes else 0.0


def error_of_difference(first: list[float], second: list[float]) -> float:
    """The standard error of the difference of two medians.

    The spread is that of all rounds about their own median, by the median absolute deviation, which a few disturbed
    rounds do not move.
    """
    away = [abs(value - statistics.median(values)) for values in (first, second) for value in values]
    deviation = 1.4826 * statistics.median(away) * math.sqrt(len(away) / max(1, len(away) - 2))
    return 1.2533 * deviation * math.sqrt(1 / len(first) + 1 / len(second))


def change(before: Row, after: Row, by: float = BY, machine: float = 0.0) -> Change:
    """How our side of a row moved.

    Args:
        by: the smallest change that counts.
        machine: `machine_change` of the files.
    """
    peers = [name for name in before.ratios if name in after.ratios]
    least = -math.log(1 - by)
    found = []
    for peer in peers or [""]:
        first, second = speeds(before, peer), speeds(after, peer)
        found.append((statistics.median(second) - statistics.median(first), error_of_difference(first, second)))
    moved, error = min(found, key=lambda each: abs(each[0]))
    own = statistics.median(speeds(after)) - statistics.median(speeds(before)) - machine
    verdict: Verdict = "same"
    if all(abs(each) > max(least, ERRORS * its_error) for each, its_error in found):
        if all(each < 0 for each, _ in found) and own < -least / 2:
            verdict = "slower"
        if all(each > 0 for each, _ in found) and own > least / 2:
            verdict = "faster"
    old, new = before.info.get("versions", {}), after.info.get("versions", {})
    notes = [f"{peer} {old.get(peer)} → {new.get(peer)}" for peer in peers if old.get(peer) != new.get(peer)]
    if not peers:
        notes.append("no peer: the code or the machine")
    return Change(before.group, before.name, math.exp(moved), error, verdict, bool(peers), "; ".join(notes))


def compare(before: dict, *after: dict, by: float = BY) -> tuple[list[Change], list[str]]:
    """The changes of all rows that the first two files hold, the worst first; and the rows that only one holds.

    Where a further file holds a row, the change is the smaller one, and none where the files disagree.
    """
    old, new, *again = ({(row.group, row.name): row for row in rows_of(each["rows"])} for each in (before, *after))
    first = machine_change(old, new)
    # A file of a few rows does not tell the machine's change from those rows'.
    machines = [first, *(machine_change(old, rows) if len(rows) > len(new) / 2 else first for rows in again)]
    changes = []
    for key in old.keys() & new.keys():
        files = zip((new, *again), machines, strict=True)
        found = [change(old[key], rows[key], by, machine) for rows, machine in files if key in rows]
        smallest = min(found, key=lambda each: abs(math.log(each.factor)))
        agreed = len({each.verdict for each in found}) == 1
        changes.append(smallest if agreed else smallest._replace(verdict="same"))
    only = [
        f"{': '.join(key)} is only in the {'first' if key in old else 'second'} file" for key in old.keys() ^ new.keys()
    ]
    return sorted(changes, key=lambda change: change.factor), sorted(only)


def confirmation(slower: list[Change], before: Path, after: Path) -> str:
    """How to measure the slower rows again and judge by both."""
    groups = sorted({change.group for change in slower})
    # pytest's -k takes no brackets.
    words = " or ".join(sorted({f"test_{change.row.partition('[')[0]}" for change in slower}))
    measure = shlex.join(["python", "-m", "benchmarks", *groups, "-k", words, "--out", "again.json"])
    return f"{measure} && {shlex.join(['python', '-m', 'benchmarks.compare', str(before), str(after), 'again.json'])}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("again", type=Path, nargs="*", help="what was slower, measured once more")
    parser.add_argument("--by", type=float, default=BY, help="the smallest change that counts, a share (default 0.1)")
    arguments = parser.parse_args()
    if not 0 < arguments.by < 1:
        parser.error(f"--by is a share between 0 and 1, as 0.1, not {arguments.by}")
    try:
        before, *later = (read(path) for path in (arguments.before, arguments.after, *arguments.again))
    except ValueError as error:
        parser.error(str(error))
    for other in {content["machine"] for content in later} - {before["machine"]}:
        print(f"different machines: {before['machine']}, {other}; only ratios to peers can be compared")
    changes, only = compare(before, *later, by=arguments.by)
    for each in changes:
        if each.verdict != "same":
            note = f"   ({each.note})" if each.note else ""
            print(f"{each.verdict}  {each.factor:5.2f} × ± {100 * each.error:.0f} %  {each.name}{note}")
    print("\n".join(only), end="\n" if only else "")
    slower, faster = ([each for each in changes if each.counts and each.verdict == v] for v in ("slower", "faster"))
    print(f"{len(changes)} rows, {len(slower)} slower, {len(faster)} faster")
    if slower and not arguments.again:
        print(f"measure these again:  {confirmation(slower, arguments.before, arguments.after)}")
    return int(bool(slower))
