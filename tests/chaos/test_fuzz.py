"""Damaged files of every kind: see fuzz.py, which is a program so that a crash of a library is seen as one."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import deit_kernels
from tests.chaos.fuzz import KINDS

ROOT = Path(__file__).parents[2]


def fuzzed(kind: str, cases: int, environment: Mapping[str, str] | None = None) -> dict[str, int]:
    """How often each outcome occurred; the program has ended by itself, with nothing unexpected."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.chaos.fuzz", kind, str(cases)]
    done = subprocess.run(command, env={**variables, **(environment or {})}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = re.findall(r"'([^']+)': (\d+)", done.stdout)
    return {name: int(count) for name, count in outcomes}


def test_every_kind_of_damaged_file_is_read_or_refused() -> None:
    outcomes = fuzzed("all", 60)
    assert {"bad image", "read", "made again", "refused, ValueError"} <= outcomes.keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damaged_files(kind: str) -> None:
    cases = 10_000 if kind == "images" else 2_000
    assert sum(fuzzed(kind, cases).values()) == cases


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with AddressSanitizer")
def test_the_extension_under_address_sanitizer(tmp_path: Path) -> None:
    """The extension is built again with the sanitizer, and augments what the damaged images decode to."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(Path(deit_kernels.__file__).parent, tmp_path / "kernels" / "deit_kernels")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "deit_fast", tmp_path / "deit_fast")
    for binary in (tmp_path / "kernels" / "deit_kernels").glob("_C*.so"):
        binary.unlink()
    build = {**os.environ, "CXX": "g++ -fsanitize=address -fno-omit-frame-pointer", "CUDA_HOME": str(tmp_path)}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=tmp_path, env=build, capture_output=True, text=True)
    binary = tmp_path / "kernels" / "deit_kernels" / "_C.abi3.so"
    assert binary.exists(), built.stderr[-3000:]
    assert b"__asan_report" in binary.read_bytes()
    # torch throws before the sanitizer would find __cxa_throw by itself, hence libstdc++ beside it.
    names = ("libasan.so", "libstdc++.so")
    found = [subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True) for name in names]
    libraries = " ".join(each.stdout.strip() for each in found)
    sanitized = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "kernels"), str(ROOT), *sys.path]),
        "LD_PRELOAD": libraries,
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:exitcode=99",
    }
    assert fuzzed("images", 3_000, sanitized)["read"] > 100
