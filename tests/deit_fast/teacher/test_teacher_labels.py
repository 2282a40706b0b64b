"""Training on cached labels: the same bits as with the teacher, which is not even loaded."""

import errno
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from deit_fast import files as durable
from deit_fast.config import Config
from deit_fast.data.training import TrainingData
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.ranks.group import Ranks
from deit_fast.run.folder import read_summary
from deit_fast.run.report import Reporter
from deit_fast.teacher import labels as teacher_labels
from deit_fast.teacher.__main__ import fill, main
from deit_fast.teacher.cache import LabelCache
from deit_fast.teacher.engine import TeacherEngine
from deit_fast.teacher.labels import cache_settings
from deit_fast.train import train
from tests.deit_fast.command import command_line
from tests.deit_fast.train.runs import assert_same_weights
from tests.deit_fast.world import called, world

ALONE = Ranks(0, 1, torch.device("cpu"))
SOFT = {"distill": "soft", "alpha": 0.3, "tau": 2.0, "kl_normalizer": "batch", "teacher_top_k": 2}


@pytest.fixture
def cached(tiny: Config, tmp_path: Path) -> Config:
    """With every stage that changes what the teacher sees, and a cache that is still empty."""
    return tiny.replace(
        teacher_cache=str(tmp_path / "labels"), rand_augment="rand-m9-mstd0.5-inc1", erase=0.25, mixup=0.8,
        cutmix=1.0, repeats=2,
    )  # fmt: skip


@pytest.fixture
def no_teacher(monkeypatch: pytest.MonkeyPatch):
    """Call it, and from then on a run that loads its teacher fails."""

    def forbid() -> None:
        def loaded(*_: object, **__: object) -> None:
            raise AssertionError("the teacher was loaded")

        monkeypatch.setattr(teacher_labels, "TeacherEngine", loaded)

    return forbid


def labels_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.safetensors")}


def table(folder: str, steps: int = 6) -> list[list[int]]:
    """Every label in the cache, by step and position."""
    cache = LabelCache(Path(folder), range(8), print)
    return [cache.lookup(step, np.arange(8)).classes.tolist() for step in range(steps)]


@pytest.mark.parametrize("changes", [{}, SOFT], ids=["hard", "soft"])
def test_cached_labels_train_the_bits_of_the_live_teacher(
    cached: Config, tmp_path: Path, no_teacher, changes: dict
) -> None:
    cached = cached.replace(**changes)
    live = cached.replace(teacher_cache="", out=str(tmp_path / "live"))
    again = cached.replace(out=str(tmp_path / "again"))
    train(live)
    train(cached)
    written = labels_of(cached.distill.teacher_cache)
    no_teacher()
    train(again)
    for other in (cached, again):
        assert_same_weights(live.run.out, other.run.out)
    assert labels_of(cached.distill.teacher_cache) == written
    assert (
        read_summary(Path(again.run.out))["teacher"] == read_summary(Path(live.run.out))["teacher"]
    )  # the cache keeps it


def test_five_seeds_and_another_student_share_one_cache(cached: Config, tmp_path: Path, no_teacher) -> None:
    one_epoch = cached.replace(epochs=1)
    assert fill(one_epoch) == 3
    no_teacher()
    for seed in range(5):
        train(one_epoch.replace(seed=seed, out=str(tmp_path / f"seed{seed}")))
    train(one_epoch.replace(width=64, out=str(tmp_path / "wider")))


class Interrupted(TeacherEngine):
    """A signal in the middle of a batch, after so many."""

    left, number = 0, signal.SIGINT

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if type(self).left == 0:
            signal.raise_signal(type(self).number)
        type(self).left -= 1
        return super().__call__(images)


def test_a_cache_filled_in_one_go_in_pieces_and_by_two_ranks_trains_the_same_bits(
    cached: Config, tmp_path: Path, teachers: Path, no_teacher, monkeypatch, capsys
) -> None:
    whole, pieces, ranks = (
        cached.replace(teacher_cache=str(tmp_path / name), micro_batch=4, out=str(tmp_path / f"run-{name}"))
        for name in ("whole", "pieces", "ranks")
    )
    assert main(command_line(whole)) == 0

    monkeypatch.setattr(teacher_labels, "TeacherEngine", Interrupted)
    for batches, number, code in ((3, signal.SIGINT, 130), (6, signal.SIGTERM, 75), (99, signal.SIGTERM, 0)):
        Interrupted.left, Interrupted.number = batches, number
        assert main(command_line(pieces)) == code
    monkeypatch.undo()
    assert len(labels_of(pieces.distill.teacher_cache)) == 3
    said = capsys.readouterr().err
    assert said.count("the labels made until then are kept: the same command continues") == 2
    assert "stopped by SIGTERM" in said

    monkeypatch.syspath_prepend(teachers)
    with world(2, tmp_path / "printed", called, "deit_fast.teacher.__main__", *command_line(ranks)) as running:
        assert running.wait() == [0, 0], running.printed(0) + running.printed(1)
    assert len(labels_of(ranks.distill.teacher_cache)) == 2

    no_teacher()
    for config in (whole, pieces, ranks):
        assert fill(config) == 0
        train(config)
    labels = table(whole.distill.teacher_cache)
    assert len({label for row in labels for label in row}) > 1
    assert table(pieces.distill.teacher_cache) == table(ranks.distill.teacher_cache) == labels
    assert_same_weights(whole.run.out, pieces.run.out)
    assert_same_weights(whole.run.out, ranks.run.out)


def test_damaged_labels_are_computed_again_and_the_training_is_the_same(cached: Config, tmp_path: Path, capsys) -> None:
    first = cached.replace(save_every=2)
    train(first)
    sound = labels_of(cached.distill.teacher_cache)
    assert len(sound) == 3
    piece = Path(cached.distill.teacher_cache) / sorted(sound)[1]
    piece.write_bytes(piece.read_bytes()[:-1])
    again = first.replace(out=str(tmp_path / "again"))
    train(again)
    captured = capsys.readouterr()
    assert f"{piece} is cut off or damaged" in captured.err and "4 of 6 steps are there" in captured.out
    assert labels_of(cached.distill.teacher_cache) == sound
    assert_same_weights(first.run.out, again.run.out)


def test_a_full_disk_ends_the_caching_and_not_the_training(cached: Config, tmp_path: Path, monkeypatch, capsys) -> None:
    config = cached.replace(save_every=2)
    write_file, written = durable.write_file, []

    def full_from_the_second(path: Path, write) -> None:
        if path.parent == Path(cached.distill.teacher_cache) and path.suffix == ".safetensors":
            written.append(path)
            if len(written) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, write)

    monkeypatch.setattr(durable, "write_file", full_from_the_second)
    train(config)
    assert "No space left on device): the run goes on without writing more" in capsys.readouterr().err
    assert len(written) == 2 and len(labels_of(cached.distill.teacher_cache)) == 1
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data_seed": 1}, "data_seed 0 -> 1"),
        ({"batch_size": 4}, "batch_size 8 -> 4"),
        ({"repeats": 1}, "repeats 2 -> 1"),
        ({"order": "official", "repeats": 1}, "order 'grouped' -> 'official'"),
        ({"flip": 0.1}, "policy.flip 0.5 -> 0.1"),
        ({"mixup": 0.5}, "policy.mix.mixup_alpha 0.8 -> 0.5"),
        ({"erase": 0.1}, "policy.erase.probability 0.25 -> 0.1"),
        ({"image_size": 24}, "policy.size 16 -> 24"),
        ({"teacher": "tiny_teachers:other"}, "teacher 'tiny_teachers:three_classes, "),
        ({"teacher_precision": "bf16"}, "teacher_precision 'float32' -> 'bfloat16'"),
        (SOFT, "labels 'hard' -> 'top 2 at tau 2'"),
    ],
)
def test_whatever_decides_a_label_is_among_the_settings(cached: Config, changes: dict, says: str, capsys) -> None:
    fill(cached.replace(epochs=1))
    assert main(command_line(cached.replace(epochs=1, **changes))) == 2
    error = capsys.readouterr().err
    assert says in error and "another --teacher-cache" in error and error.count("\n") == 1


def test_other_images_under_the_same_labels_are_another_data_set(cached: Config, tmp_path: Path) -> None:
    data = TrainingData.open(cached.data, cached.optim, ALONE)
    policy = cached.data.training_policy(IMAGENET_NORMALISATION)
    settings = cache_settings(cached.distill, cached.distill.teacher, torch.float32, data, policy)
    data.train_set.read = lambda index: b"other bytes"
    changed = cache_settings(cached.distill, cached.distill.teacher, torch.float32, data, policy)
    assert settings["data"].pop("images") != changed["data"].pop("images") and settings == changed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"distill": "none", "teacher": ""}, "--teacher-cache is given but --distill is none"),
        ({**SOFT, "teacher_top_k": 0}, "add --teacher-top-k 10"),
        ({"teacher_top_k": 5}, "--teacher-top-k belongs to --distill soft"),
    ],
)
def test_flags_that_do_not_fit(cached: Config, changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cached.replace(**changes).check()


def test_ranks_that_see_different_pieces_load_the_teacher_together(cached: Config) -> None:
    """Another machine may see a piece a minute later: a rank alone in loading the teacher would wait for the rest."""

    class Complete(Ranks):
        """Rank 0 of two; the other rank lacks the labels of a step."""

        def gather(self, value):
            return [value, 1] if isinstance(value, int) else [value, value]

        def main_first(self, body):
            return body()

    train(cached)
    for ranks, live in ((ALONE, False), (Complete(0, 2, torch.device("cpu")), True)):
        loaders = TrainingData.open(cached.data, cached.optim, ranks).loaders(IMAGENET_NORMALISATION, ranks)
        assert (
            teacher_labels.teacher_labels(cached.distill, cached.distill.teacher, loaders, ranks, Reporter(False)).live
            == live
        )


def test_an_exported_folder_is_another_teacher_when_its_weights_are_others(tmp_path: Path) -> None:
    identities = []
    for content in (b"these", b"those", b"these"):
        (tmp_path / "model.safetensors").write_bytes(content)
        identities.append(teacher_labels._identity(Config(), str(tmp_path)))
    assert identities[0] == identities[2] != identities[1]


def test_a_dry_run_of_filling_is_refused(cached: Config, capsys) -> None:
    assert main([*command_line(cached), "--dry-run"]) == 2
    assert "--dry-run" in capsys.readouterr().err
    assert not Path(cached.distill.teacher_cache).exists()


def test_filling_needs_a_folder(tiny: Config, capsys) -> None:
    assert main(command_line(tiny)) == 2
    assert "Type --teacher-cache FOLDER" in capsys.readouterr().err
