"""How fast a run could be: measured at its end, where there is time, and without a trace in its files."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from deit_fast.config import Config, OptimConfig
from deit_fast.data.batch import BatchBuilder
from deit_fast.ranks.group import Ranks
from deit_fast.run.report import Reporter
from deit_fast.train import dry_run, train
from deit_fast.train.dry_run import headroom
from deit_fast.train.prepare import prepare


@pytest.fixture
def long(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run whose end may take as long as it likes, for a few steps of each part."""
    monkeypatch.setattr(dry_run, "SHARE", 1e6)
    monkeypatch.setattr(dry_run, "_MOST", 5)
    return tiny.replace(report=True, epochs=4)


def last(run: Path, key: str) -> dict:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(row[key] for row in reversed(rows) if key in row)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return {file.name + name: tensor for file in sorted((run / "checkpoints").rglob("*.safetensors"))
            for name, tensor in load_file(file).items()}  # fmt: skip


@pytest.mark.parametrize(("in_memory", "cached"), [(False, True), (True, False)])
def test_every_speed_is_measured_and_nothing_on_disk_changes(long: Config, tmp_path, in_memory, cached) -> None:
    cache = str(tmp_path / "labels") if cached else ""
    config = long.replace(in_memory=in_memory, teacher_cache=cache)
    measured = last(train(config).run, "headroom")
    assert measured.pop("steps") == dry_run._MOST
    assert measured.keys() == {"as it is", "teacher", "loader"} | ({"augment"} if not in_memory else set())
    assert all(speed > 0 for speed in measured.values())
    quick = train(config.replace(report=False, out=str(tmp_path / "quick"))).run
    ours, theirs = tensors(Path(config.run.out)), tensors(quick)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_a_teacher_it_is_not_freed(long: Config) -> None:
    plain = long.replace(distill="none", teacher="", model="deit_tiny_patch16_224")
    assert "teacher" not in last(train(plain).run, "headroom")


def test_a_loader_that_waits_is_what_the_loaders_headroom_shows(long: Config, monkeypatch) -> None:
    """Batches that come slowly cost the run as it is, and cost nothing where the loader is free."""
    finish = BatchBuilder.finish

    def slow(self: BatchBuilder, *arguments: object) -> object:
        time.sleep(0.1)
        return finish(self, *arguments)

    monkeypatch.setattr(BatchBuilder, "finish", slow)
    measured = last(train(long).run, "headroom")
    assert measured["as it is"] < 8 / 0.1
    assert measured["loader"] > measured["as it is"]


@pytest.mark.parametrize(("ranks", "seconds", "why"), [(1, 0.1, "so short a training"), (2, 1e9, "one process only")])
def test_what_is_left_out_is_said(ranks: int, seconds: float, why: str) -> None:
    data = SimpleNamespace(optim=OptimConfig(batch_size=8))
    prepared = SimpleNamespace(ranks=SimpleNamespace(world_size=ranks, device=torch.device("cpu")), data=data)
    assert why in headroom(prepared, seconds, 100.0)["left_out"]


def test_a_measurement_that_fails_is_a_sentence(long: Config, monkeypatch, capsys) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(dry_run, "headroom", fail)
    run = train(long).run
    assert (run / "summary.json").is_file()
    assert "lacks what the run's speed could be (RuntimeError: no memory)" in " ".join(capsys.readouterr().out.split())


def test_random_numbers_and_labels_are_as_before(long: Config, tmp_path: Path) -> None:
    """A teacher that is trained first must leave no trace in its student."""
    ranks = Ranks(0, 1, torch.device("cpu"))
    prepared = prepare(long.replace(dropout=0.1), tmp_path / "run", ranks, Reporter(False), lambda _: None)
    teacher, before = prepared.step.teacher, torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in prepared.step.model.state_dict().items()}
    headroom(prepared, 1e9, 100.0)
    assert prepared.step.teacher is teacher and torch.equal(torch.get_rng_state(), before)
    after = prepared.step.model.state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in weights)  # at learning rate 0
