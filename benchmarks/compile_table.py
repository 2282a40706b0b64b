"""The compile budget as a page: one table and one picture for every architecture, and what moved since the last change.

    python -m benchmarks.compile_table                       # writes docs/compile-report.md and its pictures
    python -m benchmarks.compile_table --against v0.1.0      # drift against the budget of another commit

A row is one kernel in one configuration. Warps are those resident on a multiprocessor, of the most it can hold;
traffic is bytes moved over the bytes that any algorithm must move, from the trace of the interpreter (benchmarks/
access_trace.py), where that configuration is traced. Drift is in registers and instructions. A time stands beside a
kernel where benchmarks/results holds a file of that architecture's card.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from benchmarks.compile_report import BUDGET
from benchmarks.table import read, rows_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compile-report.md"
RESULTS = Path(__file__).with_name("results")
# The card whose results file belongs to a target, and the warps that its multiprocessor can hold.
CARDS = {"sm_80": "A100", "sm_89": "L40S", "sm_90": "H100", "sm_100": "B200", "sm_120": "RTX-5090"}
MOST_WARPS = {"sm_80": 64, "sm_89": 48, "sm_90": 64, "sm_100": 64, "sm_120": 48}
HEADER = "kernel|registers|spills|shared KB|warps|occupancy|matrix instructions|loads 16 B / less|stores 16 B / less"
COLUMNS = [*HEADER.split("|"), "instructions", "traffic × minimum", "drift", "measured"]


def budget_of(commit: str) -> dict | None:
    """The budget that a commit holds; None where it has none."""
    command = ["git", "show", f"{commit}:{BUDGET.relative_to(ROOT)}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return json.loads(run.stdout) if run.returncode == 0 else None


def previous_commit() -> str:
    """The commit before the budget's last change; "" where it never changed, or outside a clone."""
    command = ["git", "log", "-2", "--format=%h", "--", str(BUDGET.relative_to(ROOT))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return run.stdout.split()[-1] if len(run.stdout.split()) == 2 else ""


def measured(target: str) -> dict[str, float]:
    """Microseconds of a call by row, from the newest results file of the target's card; empty where there is none."""
    files = sorted(RESULTS.glob(f"*{CARDS[target]}*.json"))
    rows = rows_of(read(files[-1])["rows"]) if files else []
    return {row.name: 1e6 / row.rate for row in rows if row.unit == "calls/s"}


def times_of(kernel: str, times: dict[str, float]) -> str:
    """The times of the rows that call a kernel: same direction, tokens; "–" where none was measured."""
    direction = next((word for word in ("forward", "backward") if word in kernel), "")
    tokens = next((word[1:] for word in kernel.split() if word[0] == "n" and word[1:].isdigit()), "")
    fitting = [f"{us:.0f} µs" for name, us in times.items() if tokens and f"-N{tokens}-" in name and direction in name]
    return ", ".join(fitting) or "–"


def drift(now: dict, before: dict | None) -> str:
    if before is None:
        return "new"
    moved = {key: now[key] - before[key] for key in ("registers", "instructions") if now[key] != before[key]}
    return ", ".join(f"{change:+} {key}" for key, change in moved.items()) or "none"


def traffic_of(kernel: str, traced: dict[str, dict]) -> str:
    """Of the trace of the same op, direction, tokens and features: "attention_forward_resident n198 d64"."""
    name, *sizes = kernel.split()
    for form in ("_resident", "_tiled"):
        name = name.removesuffix(form)
    numbers = traced.get(" ".join([name, *sizes]))
    return f"{numbers['traffic']:.2f}" if numbers else "–"


def cells(kernel: str, target: str, numbers: dict, budget: dict, before: dict | None, times: dict) -> list[str]:
    matrix = " ".join(f"{count} {kind}" for kind, count in numbers["matrix"].items()) or "–"
    old = None if before is None else before["kernels"].get(target, {}).get(kernel)
    return [
        kernel, str(numbers["registers"]), str(numbers["spills"]), f"{numbers['shared_bytes'] / 1024:.1f}",
        str(numbers["warps"]), f"{100 * numbers['warps'] / MOST_WARPS[target]:.0f} %", matrix,
        f"{numbers['loads_128']} / {numbers['loads_narrow']}", f"{numbers['stores_128']} / {numbers['stores_narrow']}",
        str(numbers["instructions"]), traffic_of(kernel, budget["traffic"]), drift(numbers, old),
        times_of(kernel, times),
    ]  # fmt: skip


def page(budget: dict, before: dict | None, against: str) -> str:
    """The Markdown page of all architectures."""
    compared = f"Drift is against the budget of {against}." if before else "There is no earlier budget to compare with."
    lines = [
        "# What the kernels compile to", "",
        f"Triton {budget['triton']}, written by `python -m benchmarks.compile_table` from "
        "[compile_budget.json](../benchmarks/compile_budget.json); columns are explained in "
        f"[compile_table.py](../benchmarks/compile_table.py). {compared} These are properties of binaries, not times.",
    ]  # fmt: skip
    for target, kernels in sorted(budget["kernels"].items(), key=lambda item: int(item[0][3:])):
        times = measured(target)
        seen = "" if times else f" No results file of this card ({CARDS[target]}) exists: not measured."
        lines += ["", f"## {target}", "", f"{len(kernels)} kernels.{seen}", "", f"![warps]({picture(target).name})", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for kernel, numbers in sorted(kernels.items()):
            lines.append("| " + " | ".join(cells(kernel, target, numbers, budget, before, times)) + " |")
    return "\n".join(lines) + "\n"


def picture(target: str) -> Path:
    return PAGE.with_name(f"compile-report-{target}.png")


def draw(target: str, kernels: dict[str, dict]) -> None:
    """Occupancy of every kernel; kernels that spill are marked."""
    from matplotlib.figure import Figure

    names = sorted(kernels, reverse=True)
    figure = Figure(figsize=(7, 0.8 + 0.13 * len(names)), layout="constrained")
    axes = figure.subplots()
    shares = [100 * kernels[name]["warps"] / MOST_WARPS[target] for name in names]
    axes.barh(range(len(names)), shares, color=["C3" if kernels[name]["spills"] else "C0" for name in names])
    axes.set_yticks(range(len(names)), names, fontsize=5)
    axes.set_ylim(-1, len(names))
    axes.set_xlabel("resident warps, % of the most that fit; red: the kernel spills registers", fontsize=7)
    axes.set_title(target, fontsize=8)
    axes.tick_params(axis="x", labelsize=6)
    figure.savefig(picture(target), dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_table", description=__doc__.split("\n")[0])
    parser.add_argument("--against", default=previous_commit(), help="commit whose budget is compared")
    arguments = parser.parse_args()
    budget = json.loads(BUDGET.read_text())
    before = budget_of(arguments.against) if arguments.against else None
    if arguments.against and before is None:
        parser.error(f"{arguments.against} holds no {BUDGET.name}: name a commit that does, as git log lists them")
    PAGE.write_text(page(budget, before, arguments.against))
    for target, kernels in budget["kernels"].items():
        draw(target, kernels)
    print(f"{PAGE.relative_to(ROOT)} and {len(budget['kernels'])} pictures")


if __name__ == "__main__":
    main()
