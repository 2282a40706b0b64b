"""run_gpu.sh as far as it can be shown without a card: it refuses, and parts become one file, the worst rows last."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import groups
from tests.benchmarks.results import measured

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/run_gpu.sh"


def test_the_script_is_well_formed_and_names_files_that_exist() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    named = re.findall(r"tests/[\w/]+\.py", SCRIPT.read_text())
    assert len(named) == 3 and all((ROOT / name).exists() for name in named)
    measured = re.search(r"for limited in (.*); do", SCRIPT.read_text()).group(1)
    assert {part.partition(":")[0] for part in measured.split()} == {*groups(), "tune"} - {"ranks"}


# A python that has a card: it writes down what it is asked for, and fails or hangs where it is told to.
STUB = """#!/usr/bin/env bash
case "$*" in
    -) cat > /dev/null ;;
    *get_device_name*) echo A-Card ;;
    *sources\\(\\)*) echo abc1234 ;;
    *commit\\(\\)*) echo abc1234 ;;
    "-m benchmarks.card_results"*) exec {python} "$@" ;;
    *)
        echo "$*" >> "$CALLS"
        for word in "$@"; do
            [ "$word" = "$FAIL" ] && { echo "SyntaxError: a broken file" >&2; exit 3; }
            [ "$word" = "$HANG" ] && sleep 100
            case $word in *.json) echo '{results}' > "$word" ;; esac
        done ;;
esac
exit 0
"""


@pytest.fixture
def with_a_card(tmp_path: Path):
    """Runs the script: (exit code, what it printed, the modules and groups that were run)."""
    results = json.dumps(measured(0, rows=1) | {"minutes": 1.0, "date": "2026-11-25"})
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(STUB.replace("{python}", sys.executable).replace("{results}", results))
    stub.chmod(0o755)

    def run(**settings: str) -> tuple[int, str, list[str]]:
        calls.write_text("")
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(stub), "CALLS": str(calls), "FAIL": "", "HANG": ""}
        command = ["bash", SCRIPT, tmp_path / "out.json"]
        done = subprocess.run(command, env=environment | settings, capture_output=True, text=True)
        ran = [line.split()[2 if line.startswith("-m benchmarks") else 1] for line in calls.read_text().splitlines()
               if line.startswith("-m")]  # fmt: skip
        return done.returncode, done.stdout, [*ran, *(["build"] if "setup.py" in calls.read_text() else [])]

    return run


def test_every_step_runs_once_and_only_what_failed_runs_again(with_a_card, tmp_path: Path) -> None:
    code, printed, ran = with_a_card(FAIL="train")
    assert code == 1 and "train is left out: exit code 3, in part at least" in printed
    groups_run = ["attention", "loss", "train", "augment", "inference", "overhead", "resume", "loader"]
    assert sorted(ran) == sorted(["build", "pytest", "deit_kernels.tune", *groups_run])
    merged = json.loads((tmp_path / "out.json").read_text())
    assert merged["left out"] == ["train is left out: exit code 3, in part at least"] and len(merged["rows"]) == 7
    code, printed, ran = with_a_card()
    assert code == 0 and ran == ["train"] and "loss: done before" in printed
    merged = json.loads((tmp_path / "out.json").read_text())
    assert merged["left out"] == [] and len(merged["rows"]) == 8 and "tuned" in merged
    assert "train is left out" in (tmp_path / "out.log").read_text()


def test_a_wrong_result_stops_it_before_anything_is_measured(with_a_card, tmp_path: Path) -> None:
    code, printed, ran = with_a_card(FAIL="pytest")
    assert code == 3 and "tests is left out" in printed and sorted(ran) == ["build", "pytest"]
    assert not (tmp_path / "out.json").exists()


def test_a_step_that_hangs_ends_at_the_limit_and_the_rest_is_named(with_a_card, tmp_path: Path) -> None:
    code, printed, ran = with_a_card(HANG="loss", LIMIT="12")
    assert code == 1 and "loss is left out: exit code" in printed
    assert "train is left out: no time is left: run the same command again" in printed
    assert "train" not in ran and json.loads((tmp_path / "out.json").read_text())["rows"]


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
