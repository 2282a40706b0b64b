"""The benchmarks run here at small sizes, with the code that a card runs, so that they cannot rot."""

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.alone import alone

ROOT = Path(__file__).parents[2]


def test_the_attention_benchmark_reports_every_number(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_attention.py", "-q", "-p", "no:cacheprovider"]
    command.append(f"--benchmark-json={results}")
    run = subprocess.run(command, cwd=ROOT, env=alone(), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    reported = [timing["extra_info"] for timing in json.loads(results.read_text())["benchmarks"]]
    timed = {(numbers["provider"], numbers["direction"]): numbers for numbers in reported}
    for name in ("ours", "sdpa_math", "compiled"):
        for direction in ("forward", "backward", "both"):
            numbers = timed[name, direction]
            assert {"card", "torch", "us", "tflops", "gb_per_s", "host_us", "percent_of_floor"} <= set(numbers)
            assert numbers["us"] > 0


def test_pytest_collects_the_benchmarks_of_the_folder_once() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, env=alone(), capture_output=True, text=True)
    names = [line for line in run.stdout.splitlines() if line.startswith("benchmarks/bench_attention.py::")]
    assert names and len(names) == len(set(names))
