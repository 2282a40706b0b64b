"""The compile budget as a page: one table and one picture for every architecture, and what moved since the last change.

    python -m benchmarks.compiled.page                       # writes docs/compile-report.md and its pictures
    python -m benchmarks.compiled.page --against v0.1.0      # drift against the budget of another commit

A row is one kernel in one configuration. Warps are those resident on a multiprocessor, of the most it can hold. Before
"× minimum" stands what a trace of the whole pass in the same blocks counted (trace.py), over what any
algorithm needs: bytes moved; operations of matrix products, and with them the matrix instructions executed (padding to
blocks and logits computed twice are more than needed); exponentials. Instructions: lines of machine code, loops once.
Drift is in registers and instructions. A time stands beside a kernel where benchmarks/results holds a file of that
architecture's card.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path

from benchmarks.compare.table import read, rows_of
from benchmarks.compiled.cases import compile_cases
from benchmarks.compiled.report import BUDGET, RATIOS
from deit_fast.picture import picture

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compile-report.md"
RESULTS = ROOT / "benchmarks" / "results"
EARLIER_BUDGET = "benchmarks/compile_budget.json"  # its path in commits before this folder was made
# The card whose results file belongs to a target, and the warps that its multiprocessor can hold.
CARDS = {"sm_80": "A100", "sm_89": "L40S", "sm_90": "H100", "sm_100": "B200", "sm_120": "RTX-5090"}
MOST_WARPS = {"sm_80": 64, "sm_89": 48, "sm_90": 64, "sm_100": 64, "sm_120": 48}
HEADER = "registers|spills|shared KB|warps|occupancy|matrix instructions|loads 16 B / less|stores 16 B / less"
MINIMA = {kind: f"{kind} × minimum" for kind in RATIOS}
COLUMNS = ["kernel", *HEADER.split("|"), "instructions", *MINIMA.values(), "drift", "measured"]


def budget_of(commit: str) -> dict | None:
    """The budget that a commit holds; None where it has none."""
    for path in (BUDGET.relative_to(ROOT), EARLIER_BUDGET):
        run = subprocess.run(["git", "show", f"{commit}:{path}"], cwd=ROOT, capture_output=True, text=True)
        if run.returncode == 0:
            return json.loads(run.stdout)
    return None


def commit_of(name: str) -> str:
    """The short hash of a commit by any name: HEAD moves on, a page does not; "" for ""."""
    command = ["git", "rev-parse", "--short", f"{name}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() if name else ""


def previous_commit() -> str:
    """The commit before the budget's last change; "" where it never changed, or outside a clone."""
    command = ["git", "log", "-2", "--format=%h", "--follow", "--diff-filter=AM", "--", str(BUDGET.relative_to(ROOT))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return run.stdout.split()[-1] if len(run.stdout.split()) == 2 else ""


def measured(target: str) -> dict[str, float]:
    """Microseconds of a call by row, from the newest results file of the target's card; empty where there is none."""
    files = sorted(RESULTS.glob(f"*{CARDS[target]}*.json"))
    rows = rows_of(read(files[-1])["rows"]) if files else []
    return {row.name: 1e6 / row.rate for row in rows if row.unit == "calls/s"}


def times_of(kernel: str, times: dict[str, float]) -> str:
    """The times of the rows that call a kernel: same direction, tokens or form and classes; "–" where there is none.

    Attention is timed at 64 features a head, and a call of the loss is its forward and mean kernels.
    """
    name, *sizes = kernel.split()
    direction = next((word for word in ("forward", "backward") if word in name), "")
    if name.startswith("attention_") and sizes[-1] == "d64" and direction:
        row = re.compile(rf"attention\[B\d+-N{sizes[0][1:]}-.*-{direction}\]")
    elif name.startswith("loss_") and sizes[:-1] in (["hard", "mixed"], ["soft", "dense"]):
        row = re.compile(rf"loss\[{'-'.join(sizes[:-1])}-B\d+-C{sizes[-1][1:]}-{direction}\]")
    else:
        return "–"
    return ", ".join(f"{us:.0f} µs" for called, us in times.items() if row.fullmatch(called)) or "–"


def drift(now: dict, before: dict | None) -> str:
    if before is None:
        return "new"
    moved = {key: now[key] - before[key] for key in ("registers", "instructions") if now[key] != before[key]}
    return ", ".join(f"{change:+} {key}" for key, change in moved.items()) or "none"


def traced_of(budget: dict) -> dict[str, dict[str, dict[str, float]]]:
    """What the trace in a kernel's own blocks counted, {target: {kernel: ratios and counts}}; {} where none ran it."""
    names = {(case.name, case.capability and f"sm_{case.capability}"): case.trace for case in compile_cases()}
    return {
        target: {
            kernel: budget["traces"].get(names.get((kernel, target)) or names.get((kernel, None), ""), {})
            for kernel in kernels
        }
        for target, kernels in budget["kernels"].items()
    }


def cells(
    kernel: str, target: str, numbers: dict, traced: dict[str, float], before: dict | None, times: dict
) -> list[str]:
    matrix = " ".join(f"{count} {kind}" for kind, count in numbers["matrix"].items()) or "–"
    old = None if before is None else before["kernels"].get(target, {}).get(kernel)
    return [
        kernel,
        str(numbers["registers"]), str(numbers["spills"]), f"{numbers['shared_bytes'] / 1024:.1f}",
        str(numbers["warps"]), f"{100 * numbers['warps'] / MOST_WARPS[target]:.0f} %", matrix,
        f"{numbers['loads_128']} / {numbers['loads_narrow']}", f"{numbers['stores_128']} / {numbers['stores_narrow']}",
        str(numbers["instructions"]), *(f"{traced[kind]:.2f}" if kind in traced else "–" for kind in MINIMA),
        drift(numbers, old), times_of(kernel, times),
    ]  # fmt: skip


def page(budget: dict, before: dict | None, against: str) -> str:
    """The Markdown page of all architectures."""
    compared = f"Drift is against the budget of {against}." if before else "No earlier budget exists."
    lines = [
        "# What the kernels compile to", "",
        f"Triton {budget['triton']}, written by `python -m benchmarks.compiled.page` from "
        "[budget.json](../benchmarks/compiled/budget.json); columns are explained in "
        f"[page.py](../benchmarks/compiled/page.py). {compared} These are properties of binaries, not times. No card "
        "has run these kernels. [What was predicted](predicted.md) has times, good to ±25 %.",
    ]  # fmt: skip
    traced = traced_of(budget)
    for target, kernels in sorted(budget["kernels"].items(), key=lambda item: int(item[0][3:])):
        times = measured(target)
        seen = "" if times else f" No results file of this card ({CARDS[target]}) exists: not measured."
        drawn = f"![occupancy and work over the minimum]({picture_of(target).name})"
        lines += ["", f"## {target}", "", f"{len(kernels)} kernels.{seen}", "", drawn, ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for kernel, numbers in sorted(kernels.items()):
            row = cells(kernel, target, numbers, traced[target][kernel], before, times)
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def picture_of(target: str) -> Path:
    return PAGE.with_name(f"compile-report-{target}.png")


def draw(target: str, kernels: dict[str, dict], traced: dict[str, dict[str, float]]) -> None:
    """Occupancy of every kernel, those that spill marked, and what it moves and computes over the minimum.

    Args:
        traced: of each kernel, what its trace counted; {} where none ran it.
    """
    names = sorted(kernels, reverse=True)
    shares = [100 * kernels[name]["warps"] / MOST_WARPS[target] for name in names]
    size, columns = (12, 0.8 + 0.13 * len(names)), 1 + len(MINIMA)
    with picture(picture_of(target), 1, columns, figsize=size, sharey=True) as (figure, (first, *others)):
        first.barh(range(len(names)), shares, color=["C3" if kernels[name]["spills"] else "C0" for name in names])
        first.set_yticks(range(len(names)), names, fontsize=5)
        first.set_ylim(-1, len(names))
        first.set_xlabel("resident warps, % of the most that fit; red: spills", fontsize=7)
        for axes, (kind, title) in zip(others, MINIMA.items(), strict=True):
            over = [max(traced[name].get(kind, 1) - 1, 0) for name in names]
            axes.barh(range(len(names)), over, left=1, color="C1")
            axes.axvline(1, color="C1", linewidth=0.8)
            axes.set_xlim(0.9, 5)
            axes.set_xlabel(f"{title}, from 1; cut at 5", fontsize=7)
        for axes in (first, *others):
            axes.tick_params(axis="x", labelsize=6)
            axes.grid(axis="x", alpha=0.3)
        figure.suptitle(target, fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled.page", description=__doc__.split("\n")[0])
    parser.add_argument("--against", default=previous_commit(), help="commit whose budget is compared")
    arguments = parser.parse_args()
    budget = json.loads(BUDGET.read_text())
    before = budget_of(arguments.against) if arguments.against else None
    if arguments.against and before is None:
        parser.error(f"{arguments.against} holds no {BUDGET.name}: name a commit that does, as git log lists them")
    PAGE.write_text(page(budget, before, commit_of(arguments.against)))
    traced = traced_of(budget)
    for target, kernels in budget["kernels"].items():
        draw(target, kernels, traced[target])
    print(f"{PAGE.relative_to(ROOT)} and {len(budget['kernels'])} pictures")


if __name__ == "__main__":
    main()
