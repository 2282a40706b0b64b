"""The Triton kernels of every op in Triton's interpreter: a pytest process for each `interpreter` folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = sorted(Path(__file__).parent.glob("*/interpreter"))
NO_TEST_SELECTED = 5  # pytest's exit status


def run_folder(folder: Path, selection: str) -> tuple[int, int]:
    """(exit status, tests passed); the report goes to our own output, where pytest shows it when this test fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selection, str(folder)]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    print(run.stdout[-20_000:], run.stderr[-5_000:])
    passed = re.search(r"(\d+) passed", run.stdout)
    return run.returncode, int(passed.group(1)) if passed else 0


def test_there_are_kernels_to_run() -> None:
    assert FOLDERS, "no folder tests/kernels/*/interpreter"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_kernels_agree_with_their_reference(folder: Path, record_property) -> None:
    status, passed = run_folder(folder, "not slow")
    record_property("passed", passed)
    assert status == 0, f"pytest exited with {status} in {folder}; its report is below"
    assert passed > 0, f"no test ran in {folder}"


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_kernels_agree_with_their_reference_in_full(folder: Path, record_property) -> None:
    status, passed = run_folder(folder, "slow")
    record_property("passed", passed)
    if status == NO_TEST_SELECTED:
        pytest.skip(f"{folder} marks no test as slow")
    assert status == 0, f"pytest exited with {status} in {folder}; its report is below"
    assert passed > 0, f"no test ran in {folder}"
