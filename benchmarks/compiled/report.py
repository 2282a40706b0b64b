"""What every kernel of the package takes on every target, compiled ahead of time: no GPU needed.

    python -m benchmarks.compiled                     # all kernels, all targets, and the traces
    python -m benchmarks.compiled --select "n198 d64" --capability 90
    python -m benchmarks.compiled --check             # exit 1 when a kernel leaves the committed budget
    python -m benchmarks.compiled --update            # write the numbers of this Triton as the budget

Columns: registers a thread, bytes of stack and spill instructions, shared memory and columns of tensor memory a block,
warps resident on a multiprocessor, matrix instructions, 16-byte global loads / smaller ones, the same for stores. Then,
from a trace of the interpreter: bytes moved, operations of matrix products and exponentials over the minimum, and the
four counts that must be 0 (trace.py).

The budget (budget.json) gates the Triton it was written with, on sm_80, sm_89 and sm_90; sm_100, sm_120 and
every other Triton are reported. A number here is a property of a binary, not a time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import triton

from benchmarks.compiled.cases import compile_cases, trace_cases
from benchmarks.compiled.cases.case import CompileCase
from benchmarks.compiled.resources import CAPABILITIES, compile_resources

BUDGET = Path(__file__).with_name("budget.json")
GATED = (80, 89, 90)
RATIOS = ("traffic", "products", "exponentials")  # of a trace, to the minimum; all else that it counts must be 0


def selected(cases: list[CompileCase], select: str, capability: int | None) -> list[tuple[CompileCase, int]]:
    """Every (case, target) that is asked for."""
    targets = CAPABILITIES if capability is None else (capability,)
    return [
        (case, target)
        for case in cases
        for target in targets
        if case.capability in (None, target) and select in case.name
    ]


def compile_all(work: list[tuple[CompileCase, int]]) -> dict[str, dict[str, dict]]:
    """Resources of each case and target, {"sm_90": {case name: numbers}}, printed as they come."""
    report: dict[str, dict[str, dict]] = {}
    for case, target in work:
        numbers = compile_resources(case, target)
        report.setdefault(f"sm_{target}", {})[case.name] = numbers
        print(row(case.name, target, numbers), flush=True)
    return report


def row(name: str, target: int, numbers: dict) -> str:
    matrix = " ".join(f"{count} {kind}" for kind, count in numbers["matrix"].items()) or "-"
    return (
        f"{name:<44} sm_{target:<4}{numbers['registers']:>4} reg {numbers['stack_bytes']:>4} B"
        f" {numbers['spills']:>4} spill {numbers['shared_bytes'] / 1024:>6.1f} KB {numbers['tensor_columns']:>4} col"
        f" {numbers['warps']:>3} warps  {matrix:<22} ld {numbers['loads_128']}/{numbers['loads_narrow']}"
        f"  st {numbers['stores_128']}/{numbers['stores_narrow']}"
    )


def traces(names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Access traces, taken in a process of its own: the interpreter is chosen when triton is imported."""
    command = [sys.executable, "-m", "benchmarks.compiled.trace", *names]
    output = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, stdout=subprocess.PIPE, check=True)
    return json.loads(output.stdout)


def unusable(report: dict[str, dict[str, dict]]) -> list[str]:
    """Every kernel, of any target and Triton, that cannot be launched or that the compiler dropped.

    Past 512 columns of tensor memory Triton 3.8 compiles a kernel of four registers that loads and stores nothing.
    """
    found = []
    for target, cases in report.items():
        for name, numbers in cases.items():
            if numbers["warps"] == 0:
                found.append(f"{name} {target}: does not fit on a multiprocessor")
            elif numbers["stores_128"] + numbers["stores_narrow"] == 0:
                found.append(f"{name} {target}: stores nothing")
    return found


def violations(report: dict[str, dict[str, dict]], budget: dict[str, dict[str, dict]]) -> list[str]:
    """Every number of a gated target that is worse than the budget, and every kernel that the budget does not know."""
    found = []
    for target, cases in report.items():
        if int(target.removeprefix("sm_")) not in GATED:
            continue
        for name, numbers in cases.items():
            allowed = budget.get(target, {}).get(name)
            if allowed is None:
                found.append(f"{name} {target}: not in the budget; run with --update and look at the difference")
                continue
            found += [f"{name} {target}: {worse}" for worse in _worse(numbers, allowed)]
    return found


def _worse(numbers: dict, allowed: dict) -> list[str]:
    most = ("registers", "stack_bytes", "spills", "shared_bytes", "loads_narrow", "stores_narrow")
    least = ("warps", "loads_128", "stores_128")
    worse = [f"{key} {numbers[key]}, budget {allowed[key]}" for key in most if numbers[key] > allowed[key]]
    worse += [f"{key} {numbers[key]}, budget {allowed[key]}" for key in least if numbers[key] < allowed[key]]
    lost = [kind for kind in allowed["matrix"] if kind not in numbers["matrix"]]
    return worse + [f"no {kind} instruction any more" for kind in lost]


def trace_violations(traced: dict[str, dict[str, float]], budget: dict[str, dict[str, float]]) -> list[str]:
    """Every trace that moves or computes more than its budget, or stores, misses or reads what it must not."""
    found = []
    for name, numbers in traced.items():
        allowed = budget.get(name)
        if allowed is None:
            found.append(f"{name}: not in the budget; run with --update and look at the difference")
        else:
            more = [kind for kind in RATIOS if numbers.get(kind, 0) > allowed.get(kind, 0)]
            found += [f"{name}: {kind} {numbers[kind]}, budget {allowed.get(kind, 0)}" for kind in more]
        found += [f"{name}: {count} {kind}" for kind, count in numbers.items() if kind not in RATIOS and count]
    return found


def updated(report: dict[str, dict[str, dict]], traced: dict[str, dict[str, float]], partial: bool) -> dict:
    """The budget with these numbers; `partial`: what was not selected keeps its own."""
    budget = json.loads(BUDGET.read_text()) if partial else {"kernels": {}, "traces": {}}
    kernels = {target: budget["kernels"].get(target, {}) | numbers for target, numbers in report.items()}
    return {
        "triton": triton.__version__,
        "kernels": budget["kernels"] | kernels,
        "traces": budget["traces"] | traced,
    }


def as_lines(value: object, depth: int = 0) -> str:
    """JSON with one line for each kernel and trace, so that a change of the budget reads well in a diff."""
    if not isinstance(value, dict) or (depth and not all(isinstance(inner, dict) for inner in value.values())):
        return json.dumps(value)
    inner = (f"{' ' * depth} {json.dumps(key)}: {as_lines(value[key], depth + 1)}" for key in sorted(value))
    return "{\n" + ",\n".join(inner) + "\n" + " " * depth + "}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__.split("\n")[0])
    parser.add_argument("--select", default="", help="only cases whose name contains this")
    parser.add_argument("--capability", type=int, help="only this target, as 90")
    parser.add_argument("--check", action="store_true", help="exit 1 when a kernel leaves the budget")
    parser.add_argument("--update", action="store_true", help="write the budget of this Triton")
    arguments = parser.parse_args()

    partial = bool(arguments.select) or arguments.capability is not None
    if arguments.update and partial and triton.__version__ != json.loads(BUDGET.read_text())["triton"]:
        parser.error("the budget is of another Triton: type --update without --select and --capability")
    print(f"Triton {triton.__version__}")
    report = compile_all(selected(compile_cases(), arguments.select, arguments.capability))
    traced = traces(case.name for case in trace_cases() if arguments.select in case.name)
    for name, numbers in traced.items():
        ratios = ", ".join(f"{numbers[kind]:.3f} {kind}" for kind in RATIOS if kind in numbers)
        counts = ", ".join(f"{count} {kind}" for kind, count in numbers.items() if kind not in RATIOS)
        print(f"{name:<52} x the minimum: {ratios}; {counts}")
    if arguments.update:
        BUDGET.write_text(as_lines(updated(report, traced, partial)) + "\n")
    if arguments.check:
        budget = json.loads(BUDGET.read_text())
        found = unusable(report) + trace_violations(traced, budget["traces"])
        if triton.__version__ == budget["triton"]:
            found += violations(report, budget["kernels"])
        else:
            print(f"registers and instructions are reported: their budget is that of Triton {budget['triton']}")
        print("\n".join(found) or "within the budget")
        raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
