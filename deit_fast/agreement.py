"""What the ranks of a run tell each other before they begin, and whether it fits together."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import deit_kernels

from .config import Config, flag
from .data import Dataset

# A machine's own affair; everything else decides either the weights or which collectives are called when.
MAY_DIFFER = ("threads", "in_memory", "gpus")


@dataclass
class Introduction:
    """What one rank says of itself; JSON values only.

    Attributes:
        problem: why it cannot take part, or None.
        gpu, gpu_id, gpu_memory: name, identity and bytes of its GPU; empty and 0 on a CPU.
        cores: on which its threads may run.
        code: of torch, deit_fast and deit_kernels.
    """

    host: str
    problem: str | None
    gpu: str
    gpu_id: str
    gpu_memory: int
    cores: list[int]
    code: str
    config: dict[str, Any]


def introduce(config: Config, device: torch.device, problem: str | None) -> Introduction:
    """This rank's introduction, with what is wrong with its configuration."""
    if problem is None:
        try:
            config.check()
        except ValueError as error:
            problem = str(error)
    gpu, gpu_id, memory = "", "", 0
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu, gpu_id, memory = properties.name, str(properties.uuid), properties.total_memory
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in MAY_DIFFER}
    cores = sorted(os.sched_getaffinity(0))
    return Introduction(socket.gethostname(), problem, gpu, gpu_id, memory, cores, code_version(), fields)


@lru_cache(maxsize=1)
def code_version() -> str:
    """Versions of torch and of every Python file of ours, such as "torch 2.14.1, deit_fast 3f9a01c2"."""
    digest = hashlib.sha256()
    for package in (Path(__file__).parent, Path(deit_kernels.__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return f"torch {torch.__version__}, deit_fast {digest.hexdigest()[:8]}"


def finding(everyone: Sequence[Introduction]) -> str | None:
    """The first thing that keeps these ranks from training together, in one sentence; None when nothing does."""
    first = everyone[0]
    for rank, other in enumerate(everyone):
        who = f"rank {rank} on {other.host}"
        if other.problem:
            return other.problem if rank == 0 else f"{other.problem} ({who})"
        if bool(other.gpu) != bool(first.gpu):
            without, having = (who, "rank 0 has one") if first.gpu else (f"rank 0 on {first.host}", f"{who} has one")
            return f"{without} has no GPU, {having}: start fewer processes, or hide all with CUDA_VISIBLE_DEVICES="
        if other.code != first.code:
            return f"{who} runs {other.code}, rank 0 {first.code}: install the same version on all machines"
        changes = [
            f"{flag(name)} {other.config.get(name)!r}, rank 0 {value!r}"
            for name, value in first.config.items()
            if other.config.get(name) != value
        ]
        if changes:
            return f"{who} has {'; '.join(changes)}: type the same command on all machines"
    shared = [gpu for gpu, count in Counter(other.gpu_id for other in everyone if other.gpu_id).items() if count > 1]
    if shared:
        who = [f"{rank} on {other.host}" for rank, other in enumerate(everyone) if other.gpu_id == shared[0]]
        return f"ranks {' and '.join(who)} have the same GPU: start one process for each GPU, no more"
    return None


def warnings(everyone: Sequence[Introduction]) -> list[str]:
    """What works, but not as fast as it could."""
    said = []
    kinds = Counter((other.gpu, other.gpu_memory >> 30) for other in everyone if other.gpu)
    if len(kinds) > 1:
        listed = ", ".join(f"{count} x {name} ({memory} GiB)" for (name, memory), count in kinds.most_common())
        said.append(f"the GPUs differ: {listed}; every step takes as long as the slowest")
    loads = Counter(other.host for other in everyone)
    if len(set(loads.values())) > 1:
        said.append(f"the machines run different numbers of processes: {dict(loads)}")
    return said


def data_digest(described: dict[str, Any], *sets: Dataset) -> str:
    """A digest of a data set's classes, labels and the places of a thousand of its images."""
    digest = hashlib.sha256(repr(sorted(described.items())).encode())
    for dataset in sets:
        for index in range(0, len(dataset), max(1, len(dataset) // 1000)):
            digest.update(dataset.path(index).encode())
    return digest.hexdigest()[:12]
