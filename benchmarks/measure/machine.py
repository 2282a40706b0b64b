"""What a number depends on: the kind of machine, the versions, the commit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh", ".sh")
PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pillow", "simplejpeg", "triton", "kornia")


def kind() -> str:
    """`NVIDIA-H100-80GB-HBM3`, or `2-core-amd-epyc` where there is no card."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "-")
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    name = found[1] if found else platform.machine()
    words = re.sub(r"\(.*?\)|@.*|\bCPU\b|\bProcessor\b", " ", name).lower().split()
    return "-".join([f"{len(os.sched_getaffinity(0))}-core", *words])


def versions() -> dict[str, str]:
    """The versions of Python and of the compared packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def sources() -> str:
    """A digest of all code that is measured or measures; unlike a commit it says nothing of texts and results."""
    digest = hashlib.sha256()
    for folder in ("csrc", "kernels", "deit_fast", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SOURCES:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def commit() -> str:
    """The commit that is measured, with a plus sign where files differ from it; "unknown" without git or a clone."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    if not shutil.which("git"):
        return "unknown"
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"
