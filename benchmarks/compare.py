"""What became slower or faster between two results files of the same kind of machine.

    python -m benchmarks.compare before.json after.json            # exit code 1 when a row became slower
    python -m benchmarks.compare before.json after.json --by 0.05

A row is judged by our speed over its peers' in the same round: a slower machine or a busy minute slows both, and
cancels. A row without a peer is judged by its own time, and needs the same machine in the same state. "Slower" takes
two things: the median moved by more than a tenth (--by), and by more than two and a half standard errors, estimated
from the rounds. Why these numbers: README.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.table import Row, read, rows_of

BY, ERRORS = 0.10, 2.5
Verdict = Literal["slower", "faster", "same"]


class Change(NamedTuple):
    """Of one row.

    Attributes:
        factor: our speed after over before; 0.8 is a fifth slower.
        error: standard error of its logarithm.
    """

    name: str
    factor: float
    error: float
    verdict: Verdict
    note: str


def speeds(row: Row, peers: list[str]) -> list[float]:
    """The logarithm of our speed over the peers', round by round."""
    own, *_ = row.seconds.values()
    if not peers:
        return [-math.log(mine) for mine in own]
    return [
        statistics.mean(math.log(row.seconds[peer][i]) for peer in peers) - math.log(mine) for i, mine in enumerate(own)
    ]


def error_of_difference(first: list[float], second: list[float]) -> float:
    """The standard error of the difference of two medians.

    The spread is that of all rounds about their own median, by the median absolute deviation, which a few disturbed
    rounds do not move.
    """
    away = [abs(value - statistics.median(values)) for values in (first, second) for value in values]
    deviation = 1.4826 * statistics.median(away) * math.sqrt(len(away) / max(1, len(away) - 2))
    return 1.2533 * deviation * math.sqrt(1 / len(first) + 1 / len(second))


def change(before: Row, after: Row, by: float = BY) -> Change:
    """How our side of a row moved, `by` being the smallest change that counts."""
    peers = [name for name in before.ratios if name in after.ratios]
    first, second = speeds(before, peers), speeds(after, peers)
    moved = statistics.median(second) - statistics.median(first)
    error = error_of_difference(first, second)
    verdict: Verdict = "same"
    if abs(moved) > max(-math.log(1 - by), ERRORS * error):
        verdict = "slower" if moved < 0 else "faster"
    old, new = before.info.get("versions", {}), after.info.get("versions", {})
    notes = [f"{peer} {old.get(peer)} → {new.get(peer)}" for peer in peers if old.get(peer) != new.get(peer)]
    if not peers:
        notes.append("no peer: the machine's own speed counts")
    return Change(f"{before.group}: {before.name}", math.exp(moved), error, verdict, "; ".join(notes))


def compare(before: dict, after: dict, by: float = BY) -> tuple[list[Change], list[str]]:
    """The changes of all rows that both files hold, the worst first; and the rows that only one holds."""
    old, new = ({(row.group, row.name): row for row in rows_of(content["rows"])} for content in (before, after))
    changes = [change(old[key], new[key], by) for key in old.keys() & new.keys()]
    only = [
        f"{': '.join(key)} is only in the {'first' if key in old else 'second'} file" for key in old.keys() ^ new.keys()
    ]
    return sorted(changes, key=lambda change: change.factor), sorted(only)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--by", type=float, default=BY, help="the smallest change that counts, a share (default 0.1)")
    arguments = parser.parse_args()
    if not 0 < arguments.by < 1:
        parser.error(f"--by is a share between 0 and 1, as 0.1, not {arguments.by}")
    before, after = read(arguments.before), read(arguments.after)
    if before["machine"] != after["machine"]:
        print(f"different machines: {before['machine']}, {after['machine']}; only ratios to peers can be compared")
    changes, only = compare(before, after, arguments.by)
    for each in changes:
        if each.verdict != "same":
            note = f"   ({each.note})" if each.note else ""
            print(f"{each.verdict}  {each.factor:5.2f} × ± {100 * each.error:.0f} %  {each.name}{note}")
    print("\n".join(only), end="\n" if only else "")
    slower = sum(each.verdict == "slower" for each in changes)
    print(f"{len(changes)} rows, {slower} slower, {sum(each.verdict == 'faster' for each in changes)} faster")
    return int(slower > 0)


if __name__ == "__main__":
    raise SystemExit(main())
