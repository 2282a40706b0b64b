"""A checkpoint is whole or absent, what is restored is what was saved, and damage is found before it is used."""

import builtins
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from deit_fast.files import read_json
from deit_fast.run import checkpoint
from deit_fast.run.checkpoint import tensors_of


def trained(steps: int):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(run: Path, step: int, keep: int = 2) -> Path:
    """The checkpoint of a model that was trained for so many steps."""
    model, optimizer = trained(step)
    return checkpoint.save(run, step, tensors_of(model, None, optimizer), {}, keep)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_everything_comes_back_bit_for_bit(tmp_path) -> None:
    model, optimizer = trained(3)
    average, _ = trained(1)
    folder = checkpoint.save(tmp_path, 3, tensors_of(model, average, optimizer), {"seconds": 1.5}, keep=2)
    assert folder == checkpoint.newest(tmp_path)
    other, other_optimizer = trained(0)
    other_average, _ = trained(0)
    checkpoint.load(folder, other, other_average, other_optimizer)
    state = read_json(folder / "state.json")
    assert (state["format"], state["step"], state["seconds"]) == (checkpoint.FORMAT, 3, 1.5)
    for restored, saved in ((other, model), (other_average, average)):
        for name, value in saved.state_dict().items():
            assert torch.equal(restored.state_dict()[name], value)
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(other_optimizer.state_dict()["state"][index][name], value)


def test_the_newest_are_kept(tmp_path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["newest", "step_00000003", "step_00000004"]
    assert checkpoint.newest(tmp_path).name == "step_00000004"


class Disk:
    """Counts what a save asks of the disk, and instead of one of those calls does something else."""

    CALLS = ((os, "open"), (os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"),
             (builtins, "open"), (checkpoint, "save_file"))  # fmt: skip

    def __init__(self, monkeypatch: pytest.MonkeyPatch, instead_of: int | None = None, do=None) -> None:
        self.done: list[str] = []
        for module, name in self.CALLS:
            real = getattr(module, name)

            def counted(*arguments, real=real, name=name, **options):
                self.done.append(name)
                return do() if len(self.done) - 1 == instead_of else real(*arguments, **options)

            monkeypatch.setattr(module, name, counted)


def full() -> None:
    raise OSError(28, "No space left on device")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A run with two checkpoints, and what a third save asks of the disk."""
    for step in (1, 2):
        save(tmp_path / "sound", step)
    return tmp_path / "sound"


def test_whichever_call_to_the_disk_fails_there_is_a_whole_checkpoint(sound, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        shutil.copytree(sound, tmp_path / "counted")
        disk = Disk(patch)
        save(tmp_path / "counted", 3)
    assert {"open", "fsync", "replace", "mkdir", "save_file"} <= set(disk.done) and len(disk.done) > 25
    found = set()
    for call in range(len(disk.done)):
        run = tmp_path / f"failing_at_{call}"
        shutil.copytree(sound, run)
        with monkeypatch.context() as patch:
            Disk(patch, call, full)
            try:
                save(run, 3)
            except OSError as error:
                assert error.errno == 28
        found.add(checkpoint.newest(run).name)
        assert not list((run / "checkpoints").glob(".*.part")), "half a checkpoint would fill the disk further"
        save(run, 4)
        assert checkpoint.newest(run).name == "step_00000004"
        assert len(names(run)) == 3, "the pointer and two checkpoints"
    assert found == {"step_00000002", "step_00000003"}


def test_a_kill_at_any_call_to_the_disk_leaves_a_whole_checkpoint(sound, tmp_path, monkeypatch) -> None:
    found = set()
    model, optimizer = trained(3)
    tensors = tensors_of(model, None, optimizer)
    for call in range(10_000):
        run = tmp_path / f"killed_at_{call}"
        shutil.copytree(sound, run)
        if (child := os.fork()) == 0:  # which writes files and computes nothing: torch's threads are not forked
            Disk(monkeypatch, call, killed)
            checkpoint.save(run, 3, tensors, {}, keep=2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found.add(checkpoint.newest(run).name)
        save(run, 4)
        assert checkpoint.newest(run).name == "step_00000004"
        assert len(names(run)) == 3, "the pointer and two checkpoints"
        shutil.rmtree(run)
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert call > 25 and found == {"step_00000002", "step_00000003"}


def test_no_checkpoint_is_none_and_a_foreign_one_is_refused(tmp_path) -> None:
    assert checkpoint.newest(tmp_path) is None
    folder = tmp_path / "checkpoints" / "step_00000009"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": 9}))
    (tmp_path / "checkpoints" / "newest").write_text(folder.name)
    with pytest.raises(ValueError, match="holds no whole checkpoint of this version"):
        checkpoint.newest(tmp_path)


def test_a_checkpoint_of_another_version_is_refused_and_not_passed_over(tmp_path) -> None:
    save(tmp_path, 5)
    newer = save(tmp_path, 6) / "state.json"
    newer.write_text(newer.read_text().replace(checkpoint.FORMAT, "deit_fast checkpoint 1"))
    before = names(tmp_path)
    with pytest.raises(ValueError, match=r"written by another version of deit_fast .deit_fast checkpoint 1; this one"):
        checkpoint.newest(tmp_path)
    assert names(tmp_path) == before


def test_steps_that_are_trained_again_never_push_out_the_new_checkpoint(tmp_path) -> None:
    save(tmp_path, 10, keep=1)
    stale = tmp_path / "checkpoints" / "step_00000012"  # renamed, then a crash before the pointer moved
    shutil.copytree(tmp_path / "checkpoints" / "step_00000010", stale)
    save(tmp_path, 11, keep=1)
    assert checkpoint.newest(tmp_path).name == "step_00000011"
    assert not stale.exists()


def test_a_crash_before_the_first_pointer_loses_nothing(tmp_path) -> None:
    folder = save(tmp_path, 5)
    (tmp_path / "checkpoints" / "newest").unlink()
    assert checkpoint.newest(tmp_path) == folder


@pytest.mark.parametrize("content", ["", "../../elsewhere", "step_00000009", "\0\xff"])
def test_a_damaged_pointer_is_no_loss_and_leads_nowhere_else(tmp_path, caplog, content: str) -> None:
    save(tmp_path, 5)
    folder = save(tmp_path, 6)
    (tmp_path / "checkpoints" / "newest").write_bytes(content.encode("latin-1"))
    assert checkpoint.newest(tmp_path) == folder
    assert "which is not there" in caplog.text


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", [Path.unlink, cut, flip])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog, name: str, harm) -> None:
    before = save(tmp_path, 5)
    folder = save(tmp_path, 6)
    harm(folder / name)
    assert checkpoint.newest(tmp_path) == before
    assert f"{folder} is skipped" in caplog.text and name in caplog.text
    harm(before / name)
    with pytest.raises(ValueError, match=r"holds no whole checkpoint .* --fresh"):
        checkpoint.newest(tmp_path)


def test_tensors_of_another_model_are_refused(tmp_path) -> None:
    folder = save(tmp_path, 5)
    other = torch.nn.Linear(3, 4)
    with pytest.raises(ValueError, match="does not fit this model"):
        checkpoint.load(folder, other, None, torch.optim.AdamW(other.parameters()))


def test_the_best_weights_are_one_verified_file(tmp_path, caplog) -> None:
    assert checkpoint.best(tmp_path) is None
    for step, score in ((5, 40.0), (9, 60.0)):
        checkpoint.save_best(tmp_path, step, {"weight": torch.full((3,), float(step))}, {"top1": score})
    file, content = checkpoint.best(tmp_path)
    assert (file.name, content["step"], content["top1"]) == ("best_00000009.safetensors", 9, 60.0)
    assert names(tmp_path) == ["best.json", "best_00000009.safetensors"]
    flip(file)
    assert checkpoint.best(tmp_path) is None and "has changed" in caplog.text


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
    save(tmp_path, 5)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        written = next(i for i, (what, file) in enumerate(events) if what == "sync" and name in file)
        assert written < events.index(("rename", name)) < events.index(("rename", "step_00000005"))
    assert events.index(("rename", "step_00000005")) < events.index(("rename", "newest"))
    synced = [i for i, event in enumerate(events) if event == ("sync", "checkpoints")]
    assert any(events.index(("rename", "step_00000005")) < i < events.index(("rename", "newest")) for i in synced)
    assert synced[-1] > events.index(("rename", "newest"))
