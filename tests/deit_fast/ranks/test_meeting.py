"""Ranks that would not train the same thing do not begin; each difference is one sentence."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import deit_fast
import deit_kernels
from deit_fast.config import Config
from deit_fast.ranks import meeting
from deit_fast.ranks.meeting import Introduction


@pytest.fixture
def pair(tiny: Config) -> list[Introduction]:
    """Two ranks on two machines, each with a GPU."""
    own = meeting.introduce(tiny.agreed(), tiny.check, torch.device("cpu"), None)
    gpu = {"gpu": "H100", "gpu_memory": 80 << 30}
    return [dataclasses.replace(own, host=f"node{rank}", gpu_id=f"GPU-{rank}", **gpu) for rank in range(2)]


def test_equal_ranks_agree(pair: list[Introduction]) -> None:
    assert meeting.find_problem(pair) is None
    assert meeting.warnings(pair) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"code": "torch 2.0"}, "rank 1 on node1 runs torch 2.0, rank 0 torch .*: install the same version"),
        ({"gpu": "", "gpu_id": ""}, "rank 1 on node1 has no GPU, rank 0 has one: start fewer processes"),
        ({"gpu_id": "GPU-0"}, "ranks 0 on node0 and 1 on node1 have the same GPU: start one process for each"),
        ({"problem": "it rains"}, r"it rains \(rank 1 on node1\)"),
        ({"config": {"lr": 1.0}}, "rank 1 on node1 has .*--lr 1.0, rank 0 0.02; .*type the same command"),
    ],
)
def test_a_difference_is_named(pair: list[Introduction], changes: dict, says: str) -> None:
    if "config" in changes:
        changes = {"config": {**pair[1].config, **changes["config"]}}
        says = says.replace(".*--lr", "--lr").replace("; .*", ": ")
    pair[1] = dataclasses.replace(pair[1], **changes)
    found = meeting.find_problem(pair)
    assert found is not None and re.fullmatch(says + ".*", found), found


def test_what_is_a_machines_own_affair_may_differ(tiny: Config, pair: list[Introduction]) -> None:
    other = tiny.replace(threads=7, in_memory=True)
    pair[1].config = meeting.introduce(other.agreed(), other.check, torch.device("cpu"), None).config
    assert meeting.find_problem(pair) is None


def test_unequal_gpus_and_machines_are_a_warning(pair: list[Introduction]) -> None:
    slower = dataclasses.replace(pair[1], gpu="A100", gpu_id="GPU-2")
    (warning,) = meeting.warnings([pair[0], slower])
    assert "1 x H100 (80 GiB), 1 x A100 (80 GiB); every step takes as long as the slowest" in warning
    third = dataclasses.replace(pair[1], gpu_id="GPU-2")
    assert "different numbers of processes: {'node0': 1, 'node1': 2}" in meeting.warnings([*pair, third])[0]


def test_a_wrong_configuration_is_a_rank_s_problem(tiny: Config) -> None:
    own = meeting.introduce(tiny.agreed(), tiny.replace(flip=2.0).check, torch.device("cpu"), None)
    assert own.problem == "--flip lies between 0 and 1, got 2.0"


def test_the_code_version_covers_every_room_of_both_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(where: Path) -> str:
        monkeypatch.setattr(meeting.deit_fast, "__file__", str(where / "deit_fast" / "__init__.py"))
        monkeypatch.setattr(meeting.deit_kernels, "__file__", str(where / "deit_kernels" / "__init__.py"))
        return meeting.code_version.__wrapped__()

    installed = meeting.code_version.__wrapped__()
    for package in (deit_fast, deit_kernels):
        source = Path(package.__file__).parent
        for file in source.rglob("*.py"):
            copy = tmp_path / source.name / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    assert version(tmp_path) == installed
    folders = sorted({file.parent for file in tmp_path.rglob("*.py")})
    rooms = {folder.relative_to(tmp_path / "deit_fast").as_posix() for folder in folders if "deit_fast" in folder.parts}
    assert {".", "ranks", "train", "data", "data/sources", "weights"} <= rooms
    for folder in folders:
        file = next(iter(sorted(folder.glob("*.py"))))
        old = file.read_bytes()
        file.write_bytes(old + b"\n")
        assert version(tmp_path) != installed, f"a change of {file} is not seen"
        file.write_bytes(old)
    assert version(tmp_path) == installed


def test_other_files_are_other_data(tiny: Config) -> None:
    from deit_fast.data import open_dataset
    from deit_fast.data.training import data_digest, describe

    train, val = open_dataset(tiny.data.data)
    digest = data_digest(describe(train, val), train, val)
    assert digest == data_digest(describe(train, val), train, val)
    assert digest != data_digest(describe(val, train), val, train)
