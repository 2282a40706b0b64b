"""One results file out of the parts that run_gpu.sh leaves, and the rows to look at first.

    python -m benchmarks.card_results benchmarks/results/NVIDIA-H100.parts --out benchmarks/results/NVIDIA-H100.json

The parts are the results files of single groups, `tune.json`, and `left_out`: a line for each that is not there, or not
whole, and why. What the numbers depend on goes beside them: card,
driver, clocks, power limit, versions. The ten rows with the smallest ratio to their best peer are printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

from benchmarks.table import read, rows_of, text_table

FIELDS = ("name", "driver_version", "clocks.max.sm", "clocks.max.memory", "clocks.sm", "power.limit", "temperature.gpu")
WORST = 10


def card() -> dict[str, str]:
    """What nvidia-smi says about the first card; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"]
    query = subprocess.run(command, capture_output=True, text=True)
    return dict(zip(FIELDS, query.stdout.splitlines()[0].split(", "), strict=True)) if query.returncode == 0 else {}


def merge(parts: Path) -> dict:
    """The rows of all parts under the facts of the first.

    Raises:
        ValueError: no part holds rows.
    """
    contents = [read(path) for path in sorted(parts.glob("*.json")) if path.name != "tune.json"]
    if not contents:
        raise ValueError(f"{parts} holds no results: run benchmarks/run_gpu.sh, which writes them")
    merged = {key: value for key, value in contents[0].items() if key not in ("rows", "minutes", "command")}
    merged |= {"command": "benchmarks/run_gpu.sh", "card": card()}
    merged["minutes"] = round(sum(content["minutes"] for content in contents), 1)
    tuned = parts / "tune.json"
    if tuned.exists():
        merged["tuned"] = json.loads(tuned.read_text())
    left_out = parts / "left_out"
    merged["left out"] = left_out.read_text().splitlines() if left_out.exists() else []
    merged["rows"] = [row for content in contents for row in content["rows"]]
    return merged


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card_results", description=__doc__.split("\n")[0])
    parser.add_argument("parts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        merged = merge(arguments.parts)
    except ValueError as error:
        parser.error(str(error))
    arguments.out.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n")
    worst = sorted((row for row in rows_of(merged["rows"]) if row.ratios), key=lambda row: row.worst)[:WORST]
    print(f"the {len(worst)} rows with the smallest ratio to their best peer\n{text_table(worst)}")


if __name__ == "__main__":
    main()
