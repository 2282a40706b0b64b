"""The benchmark of the training step runs here at its smallest size, with the code that a card runs."""

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.alone import alone

ROOT = Path(__file__).parents[2]


def test_a_row_holds_the_ratio_to_timm_and_how_it_was_measured(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_train.py", "-q", "-p", "no:cacheprovider"]
    command += ["-k", "live_teacher and tiny-fp32", f"--benchmark-json={results}"]
    run = subprocess.run(command, cwd=ROOT, env=alone(), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    (row,) = (benchmark["extra_info"] for benchmark in json.loads(results.read_text())["benchmarks"])
    assert row["ours"] == "deit_fast" and row["clock"] == "processor time" and row["unit"] == "images/s"
    assert row["ratio_to_timm"] > 0 and row["ratio_to_official"] > 0
    assert {"card", "torch", "model", "teacher", "batch", "versions"} <= row.keys()
