"""The access trace finds each fault that it promises to find, and none in a kernel without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CLEAN = {"traffic": 1.0, "outside": 0, "stored_twice": 0, "missing": 0, "foreign_loads": 0}


@pytest.fixture(scope="module")
def traced() -> dict[str, dict]:
    command = [sys.executable, str(Path(__file__).with_name("planted_faults.py"))]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("none", {}),
        ("missing", {"missing": 4, "traffic": 124 / 128}),
        ("outside", {"missing": 1, "outside": 2}),
        ("stored twice", {"stored_twice": 64, "traffic": 2.0}),
        ("foreign load", {"foreign_loads": 64}),
        ("read twice", {"traffic": 1.5}),
        ("computed 1", {"products": 1.0, "exponentials": 1.0}),
        ("computed 3", {"products": 3.0, "exponentials": 3.0}),
    ],
)
def test_each_planted_fault_is_found(traced: dict[str, dict], fault: str, found: dict) -> None:
    assert traced[fault] == pytest.approx(CLEAN | found, abs=1e-4)
