"""Proofs of kernels by content: `--skip-proven` leaves out what has passed for the same sources and tools.

A test marked `proof` depends on the files and versions of `digest` alone, and is heavy: an interpreter, a compiler, an
emulation. When it passes, its name is written to build/proven/<digest>. `make test` skips what it finds there, a fresh
clone finds nothing, and `make test-all` skips nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PACKAGE = Path(importlib.util.find_spec("deit_kernels").origin).parent  # with the built binaries
COMPILERS = ("g++", "/usr/local/cuda/bin/nvcc", "nvcc")


def digest() -> str:
    """Of sources, built binaries, installed packages, compilers and the instruction set: all that a proof reads."""
    packages = sorted({path.name for folder in sys.path for path in Path(folder).glob("*.dist-info")})
    machine = sys.version, torch.__version__, torch.backends.cpu.get_cpu_capability()
    found = hashlib.sha256(repr((packages, machine)).encode())
    for compiler in filter(shutil.which, COMPILERS):
        found.update(subprocess.run([compiler, "--version"], capture_output=True).stdout)
    read = "csrc", "tests/kernels", "tests/benchmarks/compiled", "benchmarks/compiled"
    for folder in (PACKAGE, *(ROOT / name for name in read)):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                found.update(f"{path.relative_to(folder)} {len(content)} ".encode() + content)
    found.update((ROOT / "setup.py").read_bytes())
    return found.hexdigest()[:16]


class Proven:
    """The plugin; one of the process that writes, so of no xdist worker."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before, self.passed = folder, digest(), []
        self.known = set(self._file.read_text().split("\n")) if self._file.exists() else set()

    @property
    def _file(self) -> Path:
        return self.folder / self.before

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for item in items:
            if item.get_closest_marker("proof") and config.option.skip_proven and item.nodeid in self.known:
                item.add_marker(pytest.mark.skip(reason=f"proven for these sources: build/proven/{self.before}"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and "proof" in report.keywords:
            self.passed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        new = [name for name in self.passed if name not in self.known]
        # A file that was changed during the run belongs to neither digest.
        if new and "PYTEST_XDIST_WORKER" not in os.environ and digest() == self.before:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write("".join(f"{name}\n" for name in new))
