"""Checkpoints written beside the training: of the moment they were asked for, one after the other, never in its way."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deit_fast.run import checkpoint
from deit_fast.run.snapshot import Snapshots

CPU = torch.device("cpu")


def tensors(value: float) -> checkpoint.Tensors:
    return {"model": {"weight": torch.full((4,), value)}, "optimizer": {"0.step": torch.tensor(value)}}


def saved(run: Path) -> float:
    return load_file(checkpoint.newest(run) / "model.safetensors")["weight"][0].item()


def test_the_weights_of_the_moment_are_written_whatever_happens_to_them_next(tmp_path, monkeypatch) -> None:
    changed, save = threading.Event(), checkpoint.save

    def late(*arguments):
        assert changed.wait(30)
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", late)
    with Snapshots(tmp_path, 2, CPU, saved=None) as snapshots:
        weights = tensors(1.0)
        snapshots.take(1, weights, {})
        weights["model"]["weight"].fill_(5.0)
        changed.set()
    assert saved(tmp_path) == 1.0
    assert snapshots.saved == 1


def test_a_snapshot_waits_for_the_one_before_and_the_end_for_the_last(tmp_path, monkeypatch) -> None:
    writing, most, save = [], [], checkpoint.save

    def counted(*arguments):
        writing.append(1)
        most.append(len(writing))
        save(*arguments)
        writing.pop()

    monkeypatch.setattr(checkpoint, "save", counted)
    with Snapshots(tmp_path, 2, CPU, saved=None) as snapshots:
        for step in range(1, 6):
            snapshots.take(step, tensors(step), {})
    assert most == [1] * 5
    assert saved(tmp_path) == 5.0
    assert not [thread for thread in threading.enumerate() if "checkpoint" in thread.name]


def test_what_the_disk_refuses_is_a_warning_and_the_one_before_stays(tmp_path, monkeypatch, caplog) -> None:
    save = checkpoint.save

    def full(run, step, *rest):
        if step == 2:
            raise OSError(28, "No space left on device")
        return save(run, step, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    with Snapshots(tmp_path, 2, CPU, saved=None) as snapshots:
        snapshots.take(1, tensors(1.0), {})
        snapshots.take(2, tensors(2.0), {})
        snapshots.wait()
        assert snapshots.saved == 1 and saved(tmp_path) == 1.0
        assert "the checkpoint of step 2 is not written ([Errno 28] No space left on device)" in caplog.text
        assert "the one of step 1 stays, and the training goes on" in caplog.text
        snapshots.take(3, tensors(3.0), {})
    assert saved(tmp_path) == 3.0


def test_a_defect_of_ours_is_no_warning(tmp_path, monkeypatch) -> None:
    def broken(*_arguments):
        raise AssertionError("a defect")

    monkeypatch.setattr(checkpoint, "save", broken)
    with pytest.raises(AssertionError, match="a defect"), Snapshots(tmp_path, 2, CPU, saved=None) as snapshots:
        snapshots.take(1, tensors(1.0), {})


def test_the_best_is_what_scored_best_also_after_a_restart(tmp_path) -> None:
    for score, step in ((40.0, 3), (70.0, 6), (70.0, 9), (60.0, 12)):
        with Snapshots(tmp_path, 2, CPU, saved=None) as snapshots:
            snapshots.offer(step, {"weight": torch.tensor(float(step))}, {"top1": score})
    file, content = checkpoint.best(tmp_path)
    assert (content["step"], content["top1"]) == (6, 70.0)
    assert load_file(file)["weight"] == 6.0


def test_after_best_weights_that_the_disk_refused_the_next_best_are_kept(tmp_path, monkeypatch) -> None:
    save_best = checkpoint.save_best

    def refuse_step_6(run, step, *rest):
        if step == 6:
            raise OSError(28, "No space left on device")
        save_best(run, step, *rest)

    monkeypatch.setattr(checkpoint, "save_best", refuse_step_6)
    with Snapshots(tmp_path, 2, CPU, saved=None) as snapshots:
        for score, step in ((40.0, 3), (70.0, 6), (60.0, 9)):
            snapshots.offer(step, {"weight": torch.tensor(float(step))}, {"top1": score})
    assert checkpoint.best(tmp_path)[1]["step"] == 9
    assert len(snapshots.failures) == 1 and "best weights, of step 6" in snapshots.failures[0]


def test_what_must_be_durable_before_a_checkpoint_is(tmp_path, monkeypatch) -> None:
    events, save = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: (events.append("checkpoint"), save(*arguments)))
    with Snapshots(tmp_path, 2, CPU, saved=None, before=lambda: events.append("metrics")) as snapshots:
        snapshots.take(1, tensors(1.0), {})
    assert events == ["metrics", "checkpoint"]


@pytest.mark.gpu
def test_on_a_gpu_the_next_step_does_not_overwrite_what_is_copied(tmp_path) -> None:
    device = torch.device("cuda")
    weight = torch.full((1 << 26,), 1.0, device=device)
    with Snapshots(tmp_path, 2, device, saved=None) as snapshots:
        snapshots.take(1, {"model": {"weight": weight}, "optimizer": {"0.step": torch.tensor(1.0)}}, {})
        for _ in range(20):
            weight.add_(1.0)
    assert (load_file(checkpoint.newest(tmp_path) / "model.safetensors")["weight"] == 1.0).all()
