"""Every comparison of this machine in one run: one table, one results file, one picture.

    python -m benchmarks                          # all groups; make bench does the same after its set-up
    python -m benchmarks augment loader           # only these groups
    python -m benchmarks --out my-results.json
    python -m benchmarks --out my-results.json --continue    # only the rows that the file does not hold yet

The file is benchmarks/results/<machine>-<date>.json, the picture lies beside it. Exit code 1 when a benchmark failed:
the others are still written. Rows of every size, which take hours on a card, are asked for by pytest's own -m:
pytest benchmarks/bench_loss.py -m "slow or not slow" --benchmark-json=loss.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare.table import draw, read, rows_of
from benchmarks.measure.machine import commit, kind, sources, versions

FOLDER = Path(__file__).parent


def groups() -> dict[str, Path]:
    """The benchmark files by what they compare."""
    return {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}


class Others:
    """A plugin of pytest that leaves out the rows whose names are known, and the tests that measure nothing."""

    def __init__(self, known: set[str]) -> None:
        self._known = known

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if not self._known:
            return
        left_out = [item for item in items if item.name in self._known or "benchmark" not in item.fixturenames]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def main() -> int:
    known = groups()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(known))
    parser.add_argument("--out", type=Path, help="the results file")
    parser.add_argument("-k", metavar="WORDS", default="", help="only rows whose name matches, as pytest's -k")
    parser.add_argument("--continue", action="store_true", dest="go_on", help="keep the rows of the file, add others")
    arguments = parser.parse_args()
    if unknown := set(arguments.groups) - set(known):
        parser.error(f"no group {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    out = arguments.out or FOLDER / "results" / f"{kind()}-{time.strftime('%Y-%m-%d')}.json"
    if out.is_dir():
        parser.error(f"{out} is a folder: type --out {out / 'results.json'}")
    out.parent.mkdir(parents=True, exist_ok=True)

    files = [str(known[name]) for name in arguments.groups or known]
    began, load = time.monotonic(), os.getloadavg()[0]
    kept: dict[str, Any] = {"rows": [], "minutes": 0.0, "sources": sources()}
    try:
        kept = read(out) if arguments.go_on and out.exists() else kept
    except ValueError as error:
        parser.error(str(error))
    if kept.get("sources") != sources():
        parser.error(f"{out} is of other sources than these: leave --continue out, or name another file")
    with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / "pytest-benchmark.json"
        status = pytest.main(
            ["-q", "-p", "no:cacheprovider", "-k", arguments.k, f"--benchmark-json={partial}", *files],
            plugins=[Others({row["name"] for row in kept["rows"]})],
        )
        entries = json.loads(partial.read_text())["benchmarks"] if partial.exists() else []
    if not entries:
        if kept["rows"] and status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            print(f"{out} holds every row that runs here")
            return 0
        print("nothing was measured", file=sys.stderr)
        return int(status) or 1
    rows = [*kept["rows"], *({key: entry[key] for key in ("group", "name", "extra_info")} for entry in entries)]
    content: dict[str, Any] = {
        "machine": kind(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "sources": sources(),
        "command": " ".join(["python -m benchmarks", *arguments.groups, *(["-k", arguments.k] if arguments.k else [])]),
        "minutes": round(kept["minutes"] + (time.monotonic() - began) / 60, 1),
        "load when it began": round(load, 2),
        "versions": versions(),
        "rows": rows,
    }
    out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"{content['minutes']} minutes; {out}")
    if importlib.util.find_spec("matplotlib"):
        draw(rows_of(content["rows"]), out.with_suffix(".png"), f"{content['machine']}, {content['date']}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
