"""Labels that may be wrong: the teacher's votes are those of its cache, and planted errors are found."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deit_fast.config import Config
from deit_fast.data import open_dataset
from deit_fast.data.sources.builtin import write_builtin
from deit_fast.data.training import TrainingData
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.ranks.group import Ranks
from deit_fast.teacher.load import load_teacher
from deit_fast.tools.report import page, suspects
from deit_fast.tools.report.facts import Facts
from deit_fast.tools.report.look import SIDE, Seen
from deit_fast.tools.report.suspects import Votes, cached_votes, doubtful
from deit_fast.train import train

HEADS = ("model/dist", ["model/cls"], "teacher/cls")
CPU = torch.device("cpu")


def seen(label: list[int], **answers: list[tuple[int, float, float]]) -> Seen:
    """`answers`: of each image (answer, its probability, the label's)."""
    names = {"teacher": "teacher/cls", "dist": "model/dist", "cls": "model/cls"}
    columns = {names[key]: np.array(rows, np.float64).reshape(-1, 3) for key, rows in answers.items()}
    return Seen(
        np.arange(len(label)), np.array(label), 3,
        {name: rows[:, :1].astype(np.int32) for name, rows in columns.items()},
        {name: -np.log(np.maximum(rows[:, 2], 1e-30)) for name, rows in columns.items()},
        {name: rows[:, 1] for name, rows in columns.items()}, np.zeros((len(label), SIDE, SIDE), np.uint8), {},
    )  # fmt: skip


def test_a_suspect_is_contradicted_by_the_teacher_and_the_student() -> None:
    looked = seen(
        [0, 0, 0, 0],
        teacher=[(1, 0.9, 0.1), (1, 0.9, 0.1), (0, 0.8, 0.8), (2, 0.6, 0.3)],
        dist=[(1, 0.8, 0.1), (0, 0.7, 0.7), (1, 0.9, 0.0), (2, 0.5, 0.4)],
        cls=[(0, 0.6, 0.6), (0, 0.7, 0.7), (1, 0.9, 0.0), (2, 0.5, 0.4)],
    )
    found = doubtful(looked, None, *HEADS)
    assert [(one.row, one.proposed, one.views) for one in found] == [(0, 1, 1), (3, 2, 1)]
    assert found[0].doubt == pytest.approx((0.8 + 0.7 + 0.0 + 1.0) / 4)


def test_votes_of_a_cache_go_before_one_view() -> None:
    rows = [(1, 0.9, 0.1)] * 3
    looked = seen([0, 0, 0], teacher=rows, dist=rows, cls=rows)
    votes = Votes(np.array([8, 8, 0]), np.array([6, 3, 0]), np.array([2, 2, -1]), "a cache")
    (found,) = doubtful(looked, votes, *HEADS)  # the second is contradicted in less than half, the third was never seen
    assert (found.row, found.proposed, found.contradicted, found.views) == (0, 2, 0.75, 8)


def test_without_a_teacher_the_student_is_asked() -> None:
    looked = seen([0, 1], dist=[(1, 0.9, 0.1), (1, 0.9, 0.9)])
    (found,) = doubtful(looked, None, "model/dist")
    assert (found.row, found.proposed, found.views) == (0, 1, 0)


@pytest.mark.parametrize(
    "changes",
    [{}, {"distill": "soft", "alpha": 0.5, "tau": 1.0, "kl_normalizer": "batch", "teacher_top_k": 2}, {"mixup": 0.8},
     {"order": "official"}, {"repeats": 2}],
    ids=["hard", "top-k", "mixed", "official", "repeats"],
)  # fmt: skip
def test_the_votes_are_the_teachers_answers_to_the_batches_of_the_training(
    tiny: Config, tmp_path: Path, changes: dict
) -> None:
    config = tiny.replace(teacher_cache=str(tmp_path / "labels"), **changes)
    run = train(config).run
    train_set, _ = open_dataset(config.data.data)
    votes = cached_votes(Facts.read(run), train_set.labels, config.data.training_policy(IMAGENET_NORMALISATION))
    assert votes is not None

    alone = Ranks(0, 1, CPU)
    loaders = TrainingData.open(config.data, config.optim, alone).loaders(IMAGENET_NORMALISATION, alone)
    teacher = load_teacher(
        config.distill.teacher,
        config.distill.teacher_model,
        config.data.image_size,
        train_set.classes,
        IMAGENET_NORMALISATION,
    )
    views, against = np.zeros((2, len(train_set)), int)
    for batch in loaders.training(range(6)):
        answers = teacher(batch.images).argmax(1)
        own = batch.target.lam if config.data.mixup else torch.ones(len(answers))
        for sample, answer, share in zip(batch.samples.tolist(), answers.tolist(), own.tolist(), strict=True):
            if share >= suspects.LEAST_OWN:
                views[sample] += 1
                against[sample] += answer != train_set.labels[sample]
    assert views.sum() > 5
    assert votes.views.tolist() == views.tolist() and votes.against.tolist() == against.tolist()
    assert ((votes.proposed >= 0) == (against > 0)).all()


def test_a_cache_that_is_gone_or_of_other_settings_counts_as_none(tiny: Config, tmp_path: Path) -> None:
    cache = tmp_path / "labels"
    config = tiny.replace(teacher_cache=str(cache))
    facts = Facts.read(train(config).run)
    labels = open_dataset(config.data.data)[0].labels
    policy = config.data.training_policy(IMAGENET_NORMALISATION)
    assert cached_votes(facts, labels, policy) is not None
    settings = json.loads((cache / "settings.json").read_text())
    (cache / "settings.json").write_text(json.dumps(settings | {"data_seed": 9}))
    assert cached_votes(facts, labels, policy) is None
    (cache / "settings.json").unlink()
    assert cached_votes(facts, labels, policy) is None


def test_of_a_long_run_some_epochs_are_read(monkeypatch) -> None:
    monkeypatch.setattr(suspects, "MOST_VIEWS", 100)
    assert suspects._epochs(300, 25) == [0, 99, 199, 299]
    assert suspects._epochs(3, 25) == [0, 1, 2]
    assert suspects._epochs(0, 25) == [] and suspects._epochs(5, 1000) == [0]


@pytest.mark.slow
def test_of_planted_wrong_labels_nine_in_ten_are_found_and_half_of_the_found_are_planted(
    tmp_path: Path, monkeypatch
) -> None:
    """3 % of the labels of digits are swapped; the teacher, trained on them too, and the student never see the right
    ones."""
    generator = np.random.default_rng(0)
    root, planted = tmp_path / "digits", set()
    for split in ("train", "val"):
        for file in sorted((write_builtin("digits") / split).rglob("*.png")):
            label = int(file.parent.name)
            name = f"{label}-{file.name}"
            if split == "train" and generator.random() < 0.03:
                label = int((label + generator.integers(1, 10)) % 10)
                planted.add(name)
            target = root / split / str(label) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    config = Config(
        recipe="digits", data=str(root), image_size=16, crop_scale=(0.85, 1.0), flip=0.0, crop_ratio=1.0, batch_size=64,
        lr=0.03, model="test_efficientnet", epochs=10, warmup_epochs=1, ema_decay=0.0, precision="fp32", report=False,
        out=str(tmp_path / "teacher"),
    )  # fmt: skip
    teacher = train(config).run
    student = config.replace(
        model="deit_tiny_distilled_patch16_224", patch_size=4, width=64, depth=3, heads=2, distill="hard",
        teacher=str(teacher), teacher_cache=str(tmp_path / "labels"), epochs=15, ema_decay=0.98,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    found = page.write(Facts.read(train(student).run), tmp_path / "page.html", CPU, threads=1)["labels"]
    names = [Path(item["path"]).name for item in found if item["split"] == "train"]
    right = len(planted & set(names))
    assert len(planted) > 30
    assert right / len(planted) >= 0.9, (right, len(planted), len(names))
    assert right / len(names) >= 0.5, (right, len(names))
    first = names[: len(planted)]
    assert len(planted & set(first)) / len(planted) >= 0.8  # ranked: the planted ones come first
