"""Processes run on the cores beside their GPU and share them fairly."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deit_fast.ranks.cores import bind, parse_cores, share_of_cores

GPU = torch.device("cuda", 3)


@pytest.fixture
def pci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose GPU 3 hangs on node 1 with the first core that is allowed here."""
    properties = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    device = tmp_path / "0000:3b:00.0"
    device.mkdir()
    (device / "numa_node").write_text("1\n")
    (device / "local_cpulist").write_text(f"{min(os.sched_getaffinity(0))},1000-1003\n")
    return tmp_path


@pytest.fixture(autouse=True)
def same_cores_afterwards():
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def test_a_process_is_bound_to_the_allowed_cores_beside_its_gpu(pci: Path) -> None:
    first = min(os.sched_getaffinity(0))
    assert bind(GPU, pci) == "bound to NUMA node 1, beside GPU 3"
    assert os.sched_getaffinity(0) == {first}


def test_nothing_changes_where_the_kernel_does_not_say_or_the_scheduler_gave_other_cores(pci: Path) -> None:
    before, device = os.sched_getaffinity(0), pci / "0000:3b:00.0"
    (device / "local_cpulist").write_text("1000-1003\n")
    assert "no core of NUMA node 1" in bind(GPU, pci)
    (device / "numa_node").write_text("-1\n")
    assert bind(GPU, pci) == "not bound: this machine shows one NUMA node"
    assert "the kernel does not say" in bind(GPU, pci / "nowhere")
    assert bind(torch.device("cpu")) == "not bound: no GPU"
    assert os.sched_getaffinity(0) == before


def test_the_kernels_notation() -> None:
    assert parse_cores("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cores("\n") == set()


@pytest.mark.parametrize(
    ("everyone", "share"),
    [
        ([range(8)], 8),
        ([range(8)] * 4, 2),
        ([range(8)] * 3, 2),
        ([range(8), range(8, 16)], 8),  # a scheduler gave each its own
        ([range(8), range(8), range(8, 16), range(8, 16)], 4),  # two nodes with two GPUs each
        ([range(1)] * 4, 1),
    ],
)
def test_the_share_of_the_first_process(everyone: list, share: int) -> None:
    assert share_of_cores(everyone[0], everyone) == share
