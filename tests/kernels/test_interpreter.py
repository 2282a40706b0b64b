"""The Triton kernels of every op in Triton's interpreter: a pytest process for each file of an `interpreter` folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*/interpreter/test_*.py"))
NO_TEST_SELECTED = 5  # pytest's exit status

pytestmark = pytest.mark.proof
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HERE)))


def run_file(file: Path, selection: str) -> None:
    """The report goes to our own output, where pytest shows it when this test fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selection, str(file)]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    print(run.stdout[-20_000:], run.stderr[-5_000:])
    if run.returncode == NO_TEST_SELECTED:
        pytest.skip(f"no test of {file.name} is {selection}")
    assert run.returncode == 0, f"pytest exited with {run.returncode} in {file}; its report is below"
    assert re.search(r"\d+ passed", run.stdout), f"no test ran in {file}"


def test_every_op_with_a_triton_kernel_is_run() -> None:
    assert {file.parent.parent.name for file in FILES} == {"attention", "distill_loss"}


@each_file
def test_kernels_agree_with_their_reference(file: Path) -> None:
    run_file(file, "not slow")


@pytest.mark.slow
@each_file
def test_kernels_agree_with_their_reference_in_full(file: Path) -> None:
    run_file(file, "slow")
