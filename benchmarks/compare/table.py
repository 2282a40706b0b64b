"""Rows of a results file as a table and as a picture.

python -m benchmarks.compare.table benchmarks/results/2-core-amd-epyc-2026-11-25.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One comparison.

    Attributes:
        group: loader, augment, …
        name: of the test, without "test_".
        rate: of ours, in `unit`.
        ratios: {peer: our rate over its rate}; empty where there is no peer.
        percent: of the limit; None where that is not known.
        seconds: {contender: seconds for a unit of work, one a round}; the first is ours.
    """

    group: str
    name: str
    unit: str
    rate: float
    ratios: dict[str, float]
    percent: float | None
    limit: str
    seconds: dict[str, list[float]]
    info: dict

    @property
    def worst(self) -> float:
        """The ratio to the best peer."""
        return min(self.ratios.values(), default=float("inf"))


def rows_of(benchmarks: Iterable[dict]) -> list[Row]:
    """The rows of pytest-benchmark's entries, in the order of their groups; entries without `seconds` are none."""
    rows = []
    for entry in benchmarks:
        info = entry["extra_info"]
        if "seconds" not in info:
            continue
        ratios = {peer: info[f"ratio_to_{peer}"] for peer in info["seconds"] if f"ratio_to_{peer}" in info}
        name = entry["name"].removeprefix("test_")
        rate = info["rate"][info["ours"]]
        percent, limit = info.get("percent_of_limit"), info.get("limit", "")
        rows.append(Row(entry["group"] or "", name, info["unit"], rate, ratios, percent, limit, info["seconds"], info))
    return sorted(rows, key=lambda row: row.group)


def read(path: str | Path) -> dict:
    """A results file: {"machine", "date", "command", "commit", "versions", "rows": entries}.

    Raises:
        ValueError: there is none of that name, or it is something else.
    """
    try:
        content = json.loads(Path(path).read_text())
        if "rows" not in content:
            raise ValueError("it has no rows")
        return content
    except (OSError, ValueError, TypeError) as error:
        hint = "to write one, type python -m benchmarks --out FILE"
        raise ValueError(f"{path} is not a results file ({error}); {hint}") from error


def cells(row: Row) -> list[str]:
    peers = ", ".join(f"{ratio:.2f} × {peer}" for peer, ratio in sorted(row.ratios.items(), key=lambda item: item[1]))
    percent = "" if row.percent is None else f"{row.percent:.0f} %"
    return [row.group, row.name, f"{row.rate:,.4g} {row.unit}", peers or _variants(row), percent]


def _variants(row: Row) -> str:
    """The slowest and the fastest of our other variants."""
    rates = sorted(row.info["rate"].items(), key=lambda item: item[1])
    ends = [f"{rate:,.4g} {name}" for name, rate in (rates[0], rates[-1]) if name != row.info["ours"]]
    return "no peer" if len(rates) == 1 else f"own variants: {', '.join(ends)}"


HEADER = ["group", "row", "ours", "ours ÷ peer, the best peer first", "of limit"]


def text_table(rows: list[Row]) -> str:
    lines = [HEADER, *(cells(row) for row in rows)]
    widths = [min(72, max(len(line[i]) for line in lines)) for i in range(len(HEADER))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def draw(rows: list[Row], path: str | Path, title: str) -> None:
    """A bar for every row with a peer: our rate over the best peer's."""
    from deit_fast.picture import picture  # needs more than a machine with a card need have

    with_peers = [row for row in rows if row.ratios]
    groups = sorted({row.group for row in with_peers})
    with picture(Path(path), figsize=(9, 1.2 + 0.24 * len(with_peers))) as (_, axes):
        for position, row in enumerate(reversed(with_peers)):
            peer = min(row.ratios, key=row.ratios.__getitem__)
            axes.barh(position, row.worst - 1, left=1, color=f"C{groups.index(row.group)}")
            axes.text(max(row.worst, 1) * 1.03, position, f"{row.worst:.2f} × {peer}", va="center", fontsize=7)
        names = [f"{row.group}: {row.name}" for row in reversed(with_peers)]
        axes.set_yticks(range(len(with_peers)), names, fontsize=7)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_ylim(-1, len(with_peers))
        axes.set_xlim(min(0.4, *(row.worst / 1.2 for row in with_peers)), 3 * max(row.worst for row in with_peers))
        axes.set_xlabel("ours ÷ best peer (right of the line, ours is faster)")
        axes.set_title(title, fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    try:
        print(text_table(rows_of(read(sys.argv[1])["rows"])))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
