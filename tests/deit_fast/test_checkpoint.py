"""A checkpoint is whole or absent, and what is restored is what was saved."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from deit_fast import checkpoint


def trained(steps: int):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_everything_comes_back_bit_for_bit(tmp_path) -> None:
    model, optimizer = trained(3)
    average, _ = trained(1)
    folder = checkpoint.save(tmp_path, 3, model, average, optimizer, {"seconds": 1.5}, keep=2)
    assert folder == checkpoint.newest(tmp_path)
    other, other_optimizer = trained(0)
    other_average, _ = trained(0)
    state = checkpoint.load(folder, other, other_average, other_optimizer)
    assert state == {"format": checkpoint.FORMAT, "step": 3, "seconds": 1.5}
    for restored, saved in ((other, model), (other_average, average)):
        for name, value in saved.state_dict().items():
            assert torch.equal(restored.state_dict()[name], value)
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(other_optimizer.state_dict()["state"][index][name], value)


def test_the_newest_are_kept(tmp_path) -> None:
    model, optimizer = trained(1)
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, model, None, optimizer, {}, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["newest", "step_00000003", "step_00000004"]
    assert checkpoint.newest(tmp_path).name == "step_00000004"


@pytest.mark.parametrize("crash_at", ["model.safetensors", "optimizer.safetensors", "state.json", "newest"])
def test_a_crash_while_writing_leaves_the_one_before(tmp_path, monkeypatch, crash_at: str) -> None:
    model, optimizer = trained(1)
    checkpoint.save(tmp_path, 1, model, None, optimizer, {}, keep=2)
    write_file = checkpoint.write_file

    def crashing(path, write):
        if path.name == crash_at:
            raise OSError("disk full")
        write_file(path, write)

    monkeypatch.setattr(checkpoint, "write_file", crashing)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, 2, model, None, optimizer, {}, keep=2)
    assert checkpoint.newest(tmp_path).name == "step_00000001"
    monkeypatch.setattr(checkpoint, "write_file", write_file)
    checkpoint.save(tmp_path, 2, model, None, optimizer, {}, keep=2)
    assert checkpoint.newest(tmp_path).name == "step_00000002"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["newest", "step_00000001", "step_00000002"]


def test_no_checkpoint_is_none_and_a_foreign_one_is_refused(tmp_path) -> None:
    assert checkpoint.newest(tmp_path) is None
    folder = tmp_path / "checkpoints" / "step_00000009"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": 9}))
    (tmp_path / "checkpoints" / "newest").write_text(folder.name)
    with pytest.raises(ValueError, match="is not a whole checkpoint of this version"):
        checkpoint.newest(tmp_path)


def test_steps_that_are_trained_again_never_push_out_the_new_checkpoint(tmp_path) -> None:
    model, optimizer = trained(1)
    checkpoint.save(tmp_path, 100, model, None, optimizer, {}, keep=1)
    stale = tmp_path / "checkpoints" / "step_00000120"  # renamed, then a crash before the pointer moved
    shutil.copytree(tmp_path / "checkpoints" / "step_00000100", stale)
    checkpoint.save(tmp_path, 110, model, None, optimizer, {}, keep=1)
    assert checkpoint.newest(tmp_path).name == "step_00000110"
    assert not stale.exists()


def test_a_crash_before_the_first_pointer_loses_nothing(tmp_path) -> None:
    model, optimizer = trained(1)
    folder = checkpoint.save(tmp_path, 5, model, None, optimizer, {}, keep=1)
    (tmp_path / "checkpoints" / "newest").unlink()
    assert checkpoint.newest(tmp_path) == folder


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_missing_or_cut_file_is_named_and_the_one_before_offered(tmp_path, name: str) -> None:
    model, optimizer = trained(1)
    checkpoint.save(tmp_path, 5, model, None, optimizer, {}, keep=2)
    folder = checkpoint.save(tmp_path, 6, model, None, optimizer, {}, keep=2)
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing.*write step_00000005 into"):
        checkpoint.newest(tmp_path)
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=name):
        checkpoint.load(checkpoint.newest(tmp_path), model, None, optimizer)


def test_everything_is_durable_before_the_pointer_moves(tmp_path, monkeypatch) -> None:
    events = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def recorded_replace(source, target) -> None:
        events.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    model, optimizer = trained(1)
    checkpoint.save(tmp_path, 5, model, None, optimizer, {}, keep=1)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        written = next(i for i, (what, file) in enumerate(events) if what == "sync" and name in file)
        assert written < events.index(("rename", name)) < events.index(("rename", "step_00000005"))
    assert events.index(("rename", "step_00000005")) < events.index(("rename", "newest"))
    synced = [i for i, event in enumerate(events) if event == ("sync", "checkpoints")]
    assert any(events.index(("rename", "step_00000005")) < i < events.index(("rename", "newest")) for i in synced)
    assert synced[-1] > events.index(("rename", "newest"))


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch) -> None:
    def full(*_args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    model, optimizer = trained(1)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 5, model, None, optimizer, {}, keep=1)
    assert not list((tmp_path / "checkpoints").iterdir())
