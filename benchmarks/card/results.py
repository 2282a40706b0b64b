"""One results file out of the parts that run_gpu.sh leaves, and the rows to look at first.

    python -m benchmarks.card.results benchmarks/results/NVIDIA-H100.parts --out benchmarks/results/NVIDIA-H100.json

The parts are the results files of single groups, what benchmarks/card measured besides, `left_out` (a line for each
part that is not there, or not whole, and why) and `tests.jsonl`. No time of an op whose test failed is stated, nor of
what uses it: `failed` holds the tests with their messages, `quarantine` what is left out, by op. What the numbers
depend on goes beside them: card, driver, clocks, power limit, versions.

Rows that the model of the machine predicts (benchmarks/compiled) get `predicted_us` and `measured_over_predicted`, and
are printed with both; the median says by what the model is wrong on this card. Then the ten rows with the smallest
ratio to their best peer are printed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path

from benchmarks.card.quarantine import USES, blocked, failures, uses
from benchmarks.compare.table import read, rows_of, text_table
from benchmarks.compiled.predicted import Kernels, predictions, row_us

FIELDS = (
    "name", "compute_cap", "driver_version", "clocks.max.sm", "clocks.max.memory", "clocks.sm", "power.limit",
    "temperature.gpu",
)  # fmt: skip
WORST = 10
# Parts that hold no rows, and what they are called in the results.
OTHERS = {"tune": "tuned", "constants": "constants", "counters": "counters", "step": "step by part"}


def card() -> dict[str, str]:
    """What nvidia-smi says about the first card; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"]
    query = subprocess.run(command, capture_output=True, text=True)
    return dict(zip(FIELDS, query.stdout.splitlines()[0].split(", "), strict=True)) if query.returncode == 0 else {}


def target_of(card: dict[str, str]) -> str:
    """`sm_90` of an H100, as the budget of the kernels names it; "" where nvidia-smi says nothing."""
    capability = card.get("compute_cap", "")
    return f"sm_{capability.replace('.', '')}" if re.fullmatch(r"\d+\.\d", capability) else ""


def compare_with_predictions(rows: list[dict], kernels: Kernels) -> list[tuple[str, float, float]]:
    """(name, predicted, measured microseconds) of every row that is predicted.

    The row's entry in the results file gets the prediction and the ratio.

    Args:
        kernels: the budget's of the card that the rows were measured on.
    """
    compared = []
    for row in rows:
        info, name = row["extra_info"], row["name"].removeprefix("test_")
        predicted = row_us(kernels, name) if info.get("unit") == "calls/s" else None
        if predicted is None:
            continue
        measured = 1e6 / info["rate"][info["ours"]]
        info["predicted_us"], info["measured_over_predicted"] = round(predicted, 1), round(measured / predicted, 3)
        compared.append((name, predicted, measured))
    return compared


def comparison_table(compared: list[tuple[str, float, float]], target: str, median: float) -> str:
    width = max(len(name) for name, *_ in compared)
    lines = [f"{'row':<{width}}  predicted µs  measured µs  measured ÷ predicted"]
    lines += [f"{name:<{width}}  {predicted:12.1f}  {measured:11.1f}  {measured / predicted:20.2f}"
              for name, predicted, measured in compared]  # fmt: skip
    return "\n".join([*lines, f"median of {len(compared)} rows: {median:.2f} times what is predicted for {target}"])


def merge(parts: Path) -> dict:
    """The rows of all parts under the facts of the first, without those that use what is wrong.

    Raises:
        ValueError: no part holds rows, and no test failed.
    """
    failed = failures(parts / "tests.jsonl")
    contents = [read(path) for path in sorted(parts.glob("*.json")) if path.stem not in OTHERS]
    if not contents and not failed:
        raise ValueError(f"{parts} holds no results: run benchmarks/run_gpu.sh, which writes them")
    first = contents[0] if contents else {}
    merged = {key: value for key, value in first.items() if key not in ("rows", "minutes", "command")}
    merged |= {"command": "benchmarks/run_gpu.sh", "card": card()}
    merged["minutes"] = round(sum(content["minutes"] for content in contents), 1)
    left_out = parts / "left_out"
    merged["left out"] = left_out.read_text().splitlines() if left_out.exists() else []
    merged["failed"] = [{"op": each.op, "test": each.test, "message": each.message} for each in failed]
    quarantine = merged["quarantine"] = {each.op: [] for each in failed}

    def stands(used: str, name: str) -> bool:
        """Whether nothing that it uses is wrong."""
        wrong = blocked(used, quarantine)
        for op in wrong:
            quarantine[op].append(name)
        return not wrong

    for name, title in OTHERS.items():
        path = parts / f"{name}.json"
        if path.exists() and stands(USES.get(name, ""), title):
            merged[title] = json.loads(path.read_text())
    for title, key in (("counters", "kernels"), ("step by part", "parts")):
        if each := merged.get(title):
            each[key] = [one for one in each.get(key, []) if stands(one["op"], f"{title}: {one['name']}")]
    merged["rows"] = [
        row
        for content in contents
        for row in content["rows"]
        if stands(uses(row["group"], name := row["name"].removeprefix("test_")), f"{row['group']} {name}")
    ]
    return merged


def quarantine_table(merged: dict) -> str:
    """A line for each op with failed tests, and one for each test."""
    lines = []
    for op, rows in merged["quarantine"].items():
        lines.append(f"quarantine: {op}, no time of it is stated ({len(rows)} results that use it are left out)")
        tests = [each for each in merged["failed"] if each["op"] == op]
        lines += [f"    {each['test']}: {(each['message'].splitlines() or [''])[0]}" for each in tests]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card.results", description=__doc__.split("\n")[0])
    parser.add_argument("parts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", help="whose predictions, as sm_90; default: those of the card here")
    arguments = parser.parse_args()
    if arguments.target is not None and not re.fullmatch(r"sm_\d+", arguments.target):
        parser.error(f"--target is like sm_90, got {arguments.target}")
    try:
        merged = merge(arguments.parts)
    except ValueError as error:
        parser.error(str(error))
    target = arguments.target or target_of(merged["card"])
    compared = compare_with_predictions(merged["rows"], predictions(target))
    if compared:
        median = statistics.median(measured / predicted for _, predicted, measured in compared)
        merged["predictions"] = {"target": target, "median of measured over predicted": round(median, 3)}
        print(comparison_table(compared, target, median))
    if merged["failed"]:
        print(quarantine_table(merged))
    arguments.out.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n")
    worst = sorted((row for row in rows_of(merged["rows"]) if row.ratios), key=lambda row: row.worst)[:WORST]
    print(f"the {len(worst)} rows with the smallest ratio to their best peer\n{text_table(worst)}")


if __name__ == "__main__":
    main()
