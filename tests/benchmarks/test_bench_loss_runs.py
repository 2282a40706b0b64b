"""The benchmark of the loss runs here at a small size, with the code that a card runs, so that it cannot rot."""

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.alone import alone

ROOT = Path(__file__).parents[2]


def test_every_number_is_reported_and_the_providers_agree(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    chosen = "agree or ((hard-mixed or soft-int) and (ours or eager or timm))"
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_loss.py", "-q", "-p", "no:cacheprovider", "-k", chosen]
    run = subprocess.run(
        [*command, f"--benchmark-json={results}"], cwd=ROOT, env=alone(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    infos = [benchmark["extra_info"] for benchmark in json.loads(results.read_text())["benchmarks"]]
    for provider in ("ours", "eager", "timm"):
        for direction in ("forward", "backward", "both"):
            numbers = next(i for i in infos if (i["provider"], i["direction"]) == (provider, direction))
            assert numbers["floor_bytes"] > 0 and numbers["host_us"] > 0
            assert {"card", "torch", "kernels", "percent_of_floor", "in_a_graph"} <= numbers.keys()
