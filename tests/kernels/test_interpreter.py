"""The Triton kernels of every op, run on the CPU by Triton's interpreter: one pytest process for each `interpreter` folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = sorted(Path(__file__).parent.glob("*/interpreter"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
@pytest.mark.parametrize("speed", ["fast", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_agree_with_their_references(folder: Path, speed: str) -> None:
    selection = "slow" if speed == "slow" else "not slow"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-m",
        selection,
        str(folder),
    ]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    print(run.stdout[-20_000:], run.stderr[-5_000:])
    passed = re.search(r"(\d+) passed", run.stdout)
    assert run.returncode == 0, f"{folder}: pytest exited with {run.returncode}; its report is above"
    assert passed and int(passed.group(1)) > 0, f"{folder}: no test ran"
    print(f"{folder.parent.name}: {passed.group(1)} interpreter tests passed ({speed})")


def test_every_interpreter_folder_is_known() -> None:
    assert FOLDERS, "no interpreter folder: the kernels would be untested"
