"""Evaluation as a function: every number against a count by hand or another library's."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_fast.data import IGNORE, Batch
from deit_fast.model import IMAGENET_NORMALISATION, create_model, fuse
from deit_fast.ranks.group import Ranks
from deit_fast.scores import TRUTH, Predictions, Renormalised, evaluate, evaluate_models, predict
from deit_fast.tools.evaluate.results import scored

CLASSES = 7


class Table(nn.Module):
    """Returns the logits that its images hold: image (3, 1, C) -> its first channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0] + self.weight


def batch(images: Tensor, labels: Tensor, samples: Tensor | None = None, step: int = 0) -> Batch:
    samples = torch.arange(len(labels)) if samples is None else samples
    return Batch(step=step, images=images, labels=labels, target=labels, samples=samples, positions=samples)


def batches(logits: Tensor, labels: list[int], size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """What an EvalLoader gives to one rank."""
    samples = range(rank, len(labels), world_size)
    for number, start in enumerate(range(0, len(samples), size)):
        sample = torch.tensor(samples[start : start + size])
        images = logits[sample, None, None].expand(-1, 3, 1, -1)
        yield batch(images, torch.tensor(labels)[sample], sample, number)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(23, CLASSES, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> list[int]:
    return torch.randint(CLASSES, (23,), generator=torch.Generator().manual_seed(1)).tolist()


def ranking(logits: Tensor) -> list[list[int]]:
    """The classes of each image by likelihood, by Python's sort."""
    return [sorted(range(CLASSES), key=lambda label: -row[label]) for row in logits.tolist()]


def test_top1_top5_and_loss_are_those_counted_one_by_one(logits: Tensor, labels: list[int]) -> None:
    scores = evaluate(Table(), batches(logits, labels, 5))["cls"]
    orders = ranking(logits)
    assert scores["n"] == 23
    assert scores["top1"] == 100 * sum(order[0] == label for order, label in zip(orders, labels, strict=True)) / 23
    assert scores["top5"] == 100 * sum(label in order[:5] for order, label in zip(orders, labels, strict=True)) / 23
    assert scores["loss"] == pytest.approx(F.cross_entropy(logits.double(), torch.tensor(labels)).item(), rel=1e-6)


def test_nothing_depends_on_the_batch_size(logits: Tensor, labels: list[int]) -> None:
    results = [predict({"a": Table()}, batches(logits, labels, size)) for size in (1, 4, 23)]
    for result in results[1:]:
        assert scored(result, "abcdefg", None) == scored(results[0], "abcdefg", None)


def test_several_models_see_every_image_in_one_pass(logits: Tensor, labels: list[int]) -> None:
    class Shifted(Table):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).roll(1, 1)

    seen = []

    def once() -> Iterator[Batch]:
        for part in batches(logits, labels, 10):
            seen.append(part.step)
            yield part

    scores = evaluate_models({"student": Table(), "ema": Shifted()}, once())
    assert seen == [0, 1, 2]
    assert scores["student"] == evaluate(Table(), batches(logits, labels, 10))
    assert scores["ema"] == evaluate(Shifted(), batches(logits, labels, 10)) != scores["student"]


class Small(Table):
    """A device on which `fits` images fit at once."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.fits, self.rows = fits, []

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


def test_a_batch_that_does_not_fit_is_halved_and_the_next_ones_are_too(logits: Tensor, labels: list[int]) -> None:
    small = Small(fits=3)
    assert evaluate(small, batches(logits, labels, 10)) == evaluate(Table(), batches(logits, labels, 10))
    assert small.rows == [10, 5, *[2] * 10, 2, 1]
    with pytest.raises(ValueError, match="not even one image of 1 x 7 pixels fits into the memory of cpu"):
        evaluate(Small(fits=0), batches(logits, labels, 10))


def test_images_that_could_not_be_read_do_not_count(logits: Tensor, labels: list[int]) -> None:
    holes = [IGNORE if index in (0, 7, 22) else label for index, label in enumerate(labels)]
    kept = [index for index in range(23) if index not in (0, 7, 22)]
    said = predict({"a": Table()}, batches(logits, holes, 4))
    alone = predict({"a": Table()}, batches(logits[kept], [labels[index] for index in kept], 4))
    assert said.sample.tolist() == kept
    assert said.scores("a/cls") == alone.scores("a/cls")
    nothing = predict({"a": Table()}, batches(logits, [IGNORE] * 23, 4)).scores("a/cls")
    assert (nothing["n"], nothing["top1"]) == (0, 0.0) and math.isnan(nothing["loss"])


def test_the_ranks_together_say_what_one_says(logits: Tensor, labels: list[int], monkeypatch) -> None:
    """Also where a rank has fewer images than another, or none."""
    alone = predict({"a": Table()}, batches(logits[:4], labels[:4], 3))
    shares: list[dict] = []

    def predict_as(rank: int) -> Predictions:
        return predict({"a": Table()}, batches(logits[:4], labels[:4], 3, rank, 6), Ranks(rank, 6, torch.device("cpu")))

    def collect(_: Ranks, value: dict) -> list[dict]:
        shares.append(value)
        raise StopIteration

    monkeypatch.setattr(Ranks, "gather", collect)
    for rank in range(6):
        with pytest.raises(StopIteration):
            predict_as(rank)
    assert shares[4:] == [{}, {}]
    monkeypatch.setattr(Ranks, "gather", lambda _, value: [{**share} for share in shares])
    for rank in range(6):
        assert scored(predict_as(rank), "abcdefg", None) == scored(alone, "abcdefg", None)


def test_a_class_without_images_has_no_accuracy(logits: Tensor) -> None:
    said = predict({"a": Table()}, batches(logits, [0] * 23, 5))
    per_class = scored(said, "abcdefg", None)["per_class"]
    assert per_class["n"] == [23, 0, 0, 0, 0, 0, 0]
    assert per_class["top1"]["a/cls"] == [said.scores("a/cls")["top1"], None, None, None, None, None, None]


def test_disagreement_is_the_share_of_different_first_choices() -> None:
    """Four images: a is right on all, b on the first two, c on the first only; b and c agree on the last two."""
    right = torch.eye(CLASSES)[[0, 1, 2, 3]]
    b, c = torch.eye(CLASSES)[[0, 1, 5, 6]], torch.eye(CLASSES)[[0, 4, 5, 6]]

    class Channel(Table):
        def __init__(self, channel: int) -> None:
            super().__init__()
            self.channel = channel

        def forward(self, images: Tensor) -> Tensor:
            return images[:, self.channel, 0] + self.weight

    images = torch.stack([right, b, c], 1)[:, :, None]
    said = predict({name: Channel(n) for n, name in enumerate("abc")}, [batch(images, torch.arange(4))])
    matrix = said.disagreement([TRUTH, "a/cls", "b/cls", "c/cls"])
    assert matrix.tolist() == [[0, 0, 0.5, 0.75], [0, 0, 0.5, 0.75], [0.5, 0.5, 0, 0.25], [0.75, 0.75, 0.25, 0]]


def test_reassessed_labels_accept_any_of_an_images_and_leave_out_images_without(logits: Tensor) -> None:
    orders = ranking(logits)
    table = np.full((23, 2), -1)
    table[0] = orders[0][0], orders[0][6]  # right
    table[1] = orders[1][6], orders[1][0]  # right, by its second label
    table[2, 0] = orders[2][4]  # in the first five only
    table[3, 0] = orders[3][5]  # wrong
    said = predict({"a": Table()}, batches(logits, [0] * 23, 5))
    assert said.real_scores("a/cls", table) == {"top1": 50.0, "top5": 75.0, "n": 4}
    assert said.real_scores("a/cls", np.full((23, 0), -1)) == {"top1": 0.0, "top5": 0.0, "n": 0}


def test_every_head_and_fusion_comes_from_one_forward_pass() -> None:
    torch.manual_seed(0)
    small = {"image_size": 16, "patch_size": 8, "width": 32, "depth": 1, "heads": 2, "classes": CLASSES}
    model = create_model("deit_tiny_distilled_patch16_224", **small)
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 4, 5])
    passes = []
    model.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    scores = evaluate(model, [batch(images, labels)])
    assert passes == [1] and model.training
    cls_logits, dist_logits = model.eval().heads(images)
    for name, fusion in (("cls", "cls"), ("dist", "dist"), ("fused", "logits"), ("softmax", "softmax")):
        expected = F.cross_entropy(fuse(cls_logits, dist_logits, fusion), labels).item()
        assert scores[name]["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_model_of_another_normalisation_sees_its_own_images_and_shows_its_heads() -> None:
    torch.manual_seed(0)
    small = {"image_size": 16, "patch_size": 8, "width": 32, "depth": 1, "heads": 2, "classes": CLASSES}
    model = create_model("deit_tiny_distilled_patch16_224", **small)
    raw, labels = torch.rand(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 4, 5])
    half = (raw - 0.5) / 0.5
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in IMAGENET_NORMALISATION)

    def of(module: nn.Module, images: Tensor) -> dict:
        return evaluate(module, [batch(images, labels)])

    own, other = of(model, (raw - mean) / std), of(Renormalised(model, ((0.5,) * 3, (0.5,) * 3)), half)
    assert own.keys() == other.keys() == {"cls", "dist", "fused", "softmax"}
    for head, score in own.items():
        assert other[head]["loss"] == pytest.approx(score["loss"], rel=1e-5)
