"""Every score of every model on a data set, from one pass over its images.

    predictions = predict({"model": model, "teacher": teacher}, EvalLoader(val, policy, batch_size=64))
    predictions.scores("model/fused")["top1"], predictions.disagreement(["teacher/cls", "model/fused"])

An image is decoded once for all models. For each model and head its five likeliest classes, the probability of the
first and the loss are kept: 28 bytes, so 50 000 images and eight heads take 11 MB. The predictions of all ranks are
joined in the order of the data set, so for equal logits the results have equal bits for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .command import OfOneRank
from .data.batch import Batch
from .model import FUSIONS, VisionTransformer, fuse
from .names import SCORE_NAMES
from .ranks.group import Ranks
from .weights.build import Frozen

Score = dict[str, float]
Scores = dict[str, Score]
TRUTH = "truth"  # the labels, as a line of the disagreement matrix
TOP = 5


class Renormalised(Frozen):
    """A model that wants another normalisation than the images have; `head_logits` still reaches its heads."""


def head_logits(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Logits (B, C) by name: "cls", and for a distilled model "dist", "fused" (mean logits) and "softmax"."""
    if isinstance(model, Renormalised):
        return head_logits(model.model, model.normalised(images))
    if isinstance(model, VisionTransformer):
        cls_logits, dist_logits = model.heads(images)
        if dist_logits is not None:
            return {SCORE_NAMES[fusion]: fuse(cls_logits, dist_logits, fusion) for fusion in FUSIONS}
        return {"cls": cls_logits}
    return {"cls": model(images)}


@dataclass(frozen=True)
class Predictions:
    """N readable images in the order of the data set; names are "model/head"."""

    sample: NDArray[np.int64]  # (N,) indices into the data set
    label: NDArray[np.int64]  # (N,)
    classes: int  # C
    top: dict[str, NDArray[np.int32]]  # (N, min(5, C)) by name: the likeliest classes, the likeliest first
    loss: dict[str, NDArray[np.float32]]  # (N,) by name: cross-entropy, nats
    probability: dict[str, NDArray[np.float32]]  # (N,) by name: of the likeliest class

    def __len__(self) -> int:
        return len(self.sample)

    def answer(self, name: str) -> NDArray[np.int32]:
        """(N,) the likeliest class."""
        return self.top[name][:, 0]

    def scores(self, name: str) -> Score:
        """{"top1", "top5" in per cent, "loss" in nats, "n"}; without an image 0, 0, NaN, 0."""
        if not len(self):
            return {"top1": 0.0, "top5": 0.0, "loss": float("nan"), "n": 0}
        hits = self.top[name] == self.label[:, None]
        return {**_percent(hits), "loss": float(self.loss[name].mean(dtype=np.float64)), "n": len(self)}

    def real_scores(self, name: str, labels: NDArray[np.int64]) -> Score:
        """{"top1", "top5" in per cent, "n"}; each of an image's labels is right, and images without one do not count.

        Args:
            labels: (images of the data set, K), padded with −1, as `real_labels` gives them.
        """
        rows = labels[self.sample]
        counted = (rows >= 0).any(1)
        hits = (self.top[name][counted, :, None] == rows[counted, None, :]).any(2)
        return {**_percent(hits), "n": int(counted.sum())}

    def disagreement(self, names: Sequence[str]) -> NDArray[np.float64]:
        """(M, M) share of images that two of `names` classify differently (paper Table 4); NaN without an image."""
        first = [self.label if name == TRUTH else self.answer(name) for name in names]
        with np.errstate(invalid="ignore"):
            return np.array([[np.sum(one != other) / np.float64(len(self)) for other in first] for one in first])

    def confused(self, name: str) -> dict[tuple[int, int], NDArray[np.int64]]:
        """(class, answer) -> rows of its images, the surest first; the most frequent pair, right or wrong, is first."""
        keys = self.label * self.classes + self.answer(name)
        order = np.lexsort((-self.probability[name], keys))
        pairs, first = np.unique(keys[order], return_index=True)
        found = zip(pairs.tolist(), np.split(order, first)[1:], strict=True)
        return {divmod(pair, self.classes): rows for pair, rows in sorted(found, key=lambda item: -len(item[1]))}

    def per_class(self, name: str) -> list[dict[str, Any]]:
        """Precision, recall and F1 in per cent (None where nothing is counted), support and answers of each class."""
        answer = self.answer(name)
        counted = (self.label[self.label == answer], self.label, answer)
        numbers = zip(*(np.bincount(each, minlength=self.classes).tolist() for each in counted), strict=True)
        return [
            {
                "class": number,
                "precision": 100 * right / answers if answers else None,
                "recall": 100 * right / support if support else None,
                "f1": 200 * right / (answers + support) if answers + support else None,
                "support": support,
                "answers": answers,
            }
            for number, (right, support, answers) in enumerate(numbers)
        ]


def _percent(hits: NDArray[np.bool_]) -> Score:
    """Top-1 and top-5 in per cent from (n, 5) hits of the five likeliest classes."""
    n = len(hits)
    if not n:
        return {"top1": 0.0, "top5": 0.0}
    return {"top1": 100 * int(hits[:, 0].sum()) / n, "top5": 100 * int(hits.any(1).sum()) / n}


@torch.no_grad()
def predict(
    models: Mapping[str, nn.Module],
    data: Iterable[Batch],
    ranks: Ranks | None = None,
    autocast: AbstractContextManager | None = None,
) -> Predictions:
    """Predictions of every model for every readable image of all ranks, on every rank.

    Each model's training mode is restored. A batch that does not fit into the device's memory is halved, and so are
    those after it. `data` is this rank's share of the images, `autocast` the context of the forward passes.

    Raises:
        OfOneRank: not even one image fits.
    """
    training = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    columns: dict[str, list[Tensor]] = {}
    sample: list[Tensor] = []
    classes = most = 0
    for batch in data:
        sample.append(batch.samples)
        columns.setdefault("label", []).append(batch.labels)
        for name, model in models.items():
            with autocast or nullcontext():
                outputs, most = _in_parts(model, batch.images, most or len(batch.images))
            for head, logits in outputs.items():
                logits, classes = logits.float(), logits.shape[1]
                top = logits.topk(min(TOP, classes)).indices.int()
                columns.setdefault(f"top {name}/{head}", []).append(top)
                loss = F.cross_entropy(logits, batch.labels.clamp_min(0), reduction="none")
                columns.setdefault(f"loss {name}/{head}", []).append(loss)
                probability = (logits.amax(1) - logits.logsumexp(1)).exp()
                columns.setdefault(f"probability {name}/{head}", []).append(probability)
    for name, model in models.items():
        model.train(training[name])
    # All stays on the device until here, so the host waits once, not for every batch.
    own: dict[str, Any] = {key: torch.cat(parts).cpu().numpy() for key, parts in columns.items()}
    if sample:  # a rank without an image does not even know the names
        own |= {"sample": torch.cat(sample).numpy(), "classes": classes}
    return _together([part for part in (ranks.gather(own) if ranks else [own]) if part])


def _in_parts(model: nn.Module, images: Tensor, most: int) -> tuple[dict[str, Tensor], int]:
    """`head_logits` of at most `most` images at once, and how many fitted in the end."""
    while (outputs := _logits(model, images, most)) is None:  # the memory of the failed pass is free again here
        if most == 1:
            raise OfOneRank(
                f"not even one image of {images.shape[-2]} x {images.shape[-1]} pixels fits into the memory of "
                f"{images.device}: type a smaller --image-size, or use a device of more memory"
            )
        if images.is_cuda:
            torch.cuda.empty_cache()
        most //= 2
    return outputs, most


def _logits(model: nn.Module, images: Tensor, most: int) -> dict[str, Tensor] | None:
    try:
        parts = [head_logits(model, part) for part in images.split(most)]
    except torch.OutOfMemoryError:
        return None
    return {head: torch.cat([part[head] for part in parts]) for head in parts[0]} if len(parts) > 1 else parts[0]


def _together(parts: list[dict[str, Any]]) -> Predictions:
    """The readable images of all ranks in the order of the data set."""
    assert parts, "a data set without an image cannot be opened"
    classes = parts[0]["classes"]
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key != "classes"}
    order = np.argsort(whole["sample"], kind="stable")
    order = order[whole["label"][order] >= 0]
    whole = {key: column[order] for key, column in whole.items()}
    by_name = (
        {key.partition(" ")[2]: column for key, column in whole.items() if key.startswith(kind)}
        for kind in ("top ", "loss ", "probability ")
    )
    return Predictions(whole["sample"], whole["label"], classes, *by_name)


def evaluate(
    model: nn.Module,
    data: Iterable[Batch],
    ranks: Ranks | None = None,
    autocast: AbstractContextManager | None = None,
) -> Scores:
    """{"cls" | "dist" | "fused" | "softmax": {"top1", "top5" in per cent, "loss" in nats, "n"}}; see `predict`.

    Raises:
        ValueError: among several ranks, none has a readable image.
    """
    return evaluate_models({"": model}, data, ranks, autocast)[""]


def evaluate_models(
    models: Mapping[str, nn.Module],
    data: Iterable[Batch],
    ranks: Ranks | None = None,
    autocast: AbstractContextManager | None = None,
) -> dict[str, Scores]:
    """`evaluate` of several models by name, in one pass over the images."""
    predictions = predict(models, data, ranks, autocast)
    scores = {name: predictions.scores(name) for name in predictions.top}
    if ranks and ranks.world_size > 1 and not all(score["n"] for score in scores.values()):
        raise ValueError("none of the validation images is readable: deit-fast data check says why")
    return {name: {} for name in models} | nested(scores)


def nested(scores: dict[str, Score]) -> dict[str, dict[str, Score]]:
    """{"model": {"cls": …}} of {"model/cls": …}."""
    nested: dict[str, dict[str, Score]] = {}
    for name, score in scores.items():
        model, _, head = name.rpartition("/")
        nested.setdefault(model, {})[head] = score
    return nested
