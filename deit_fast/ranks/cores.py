"""The cores of a process: those of its GPU's NUMA node, divided among the processes that may use them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import torch

_PCI = Path("/sys/bus/pci/devices")


def cores_beside(device: torch.device, pci: Path = _PCI) -> tuple[set[int], str]:
    """(cores of the GPU's NUMA node, its name), or (no cores, why the node is not known)."""
    properties = torch.cuda.get_device_properties(device)
    try:
        domain, bus, slot = (getattr(properties, f"pci_{part}_id") for part in ("domain", "bus", "device"))
        address = f"{domain:04x}:{bus:02x}:{slot:02x}.0"
        node = int((pci / address / "numa_node").read_text())
        cores = parse_cores((pci / address / "local_cpulist").read_text())
    except (AttributeError, OSError, ValueError) as error:
        return set(), f"the kernel does not say which cores lie beside the GPU: {error}"
    if node < 0:  # one node, or a virtual machine that hides them
        return set(), "this machine shows one NUMA node"
    return cores, f"NUMA node {node}, beside GPU {device.index}"


def parse_cores(text: str) -> set[int]:
    """The numbers in the kernel's notation: "0-3,8" are 0, 1, 2, 3 and 8."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


def bind(device: torch.device, pci: Path = _PCI) -> str:
    """Keep this process and its threads on those of its allowed cores that lie beside its GPU; returns what was done.

    Nothing changes on a CPU, where the node is not known, or where a scheduler has allowed other cores only.
    """
    if device.type != "cuda":
        return "not bound: no GPU"
    cores, where = cores_beside(device, pci)
    allowed = os.sched_getaffinity(0)
    if not cores & allowed:
        return f"not bound: {where}" if not cores else f"not bound: no core of {where} is allowed here"
    os.sched_setaffinity(0, cores & allowed)
    return f"bound to {where}"


def share_of_cores(mine: Collection[int], everyone: Iterable[Collection[int]]) -> int:
    """How many of its cores a process may keep busy: one that n of `everyone` on this machine may use counts 1 / n."""
    users = Counter(core for cores in everyone for core in cores)
    return max(1, int(sum(1 / max(users[core], 1) for core in mine) + 1e-6))
