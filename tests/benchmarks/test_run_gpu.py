"""run_gpu.sh as far as it can be shown without a card: it refuses, and parts become one file, the worst rows last."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.results import measured

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/run_gpu.sh"


def test_the_script_is_well_formed_and_names_files_that_exist() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    named = [word for word in SCRIPT.read_text().split() if word.startswith("tests/") and word.endswith(".py")]
    assert len(named) == 3 and all((ROOT / name).exists() for name in named)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_stops_at_once(tmp_path: Path) -> None:
    run = subprocess.run(
        ["bash", SCRIPT, tmp_path / "results.json"], env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1 and "no CUDA card" in run.stderr
    assert not list(tmp_path.iterdir())


def test_parts_become_one_file_and_the_ten_worst_ratios_are_printed(tmp_path: Path) -> None:
    for group, first in (("attention", 0.5), ("loss", 3.0)):
        content = measured(0, rows=8) | {"minutes": 1.2, "date": "2026-11-24"}
        for number, row in enumerate(content["rows"]):
            row["group"], row["extra_info"]["ratio_to_peer"] = group, first + number / 10
        (tmp_path / f"{group}.json").write_text(json.dumps(content))
    (tmp_path / "tune.json").write_text('{"rows": []}')
    out = tmp_path / "merged.results"
    command = [sys.executable, "-m", "benchmarks.card_results", str(tmp_path), "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    merged = json.loads(out.read_text())
    assert len(merged["rows"]) == 16 and merged["minutes"] == 2.4 and merged["tuned"] == {"rows": []}
    assert merged["command"] == "benchmarks/run_gpu.sh"
    printed = run.stdout.splitlines()[3:]
    assert len(printed) == 10 and "0.50 × peer" in printed[0] and "3.10 × peer" in printed[-1]


def test_a_folder_without_parts_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.card_results", str(tmp_path), "--out", str(tmp_path / "out.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and f"{tmp_path} holds no results" in run.stderr
