"""Where a result comes from: command, date, machine and versions."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("deit-fast", "torch", "timm", "numpy")


def provenance(command: str, arguments: Sequence[str]) -> dict[str, object]:
    """{"command", "date", "machine", "versions": {package: version}} of a result of `command`."""
    found = dict.fromkeys(PACKAGES, "not installed") | versions(PACKAGES)
    return {
        "command": shlex.join([*command.split(), *arguments]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **found},
    }


def machine() -> str:
    """Such as "2-core AMD EPYC, no GPU" or "16-core Intel(R) Xeon(R), 8 x NVIDIA H100 80GB HBM3"."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.machine())
    cores = len(os.sched_getaffinity(0))
    cards = torch.cuda.device_count()
    gpus = f"{cards} x {torch.cuda.get_device_name(0)}" if cards else "no GPU"
    return f"{cores}-core {model}, {gpus}"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of every package that is installed; a clone on PYTHONPATH is not."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
