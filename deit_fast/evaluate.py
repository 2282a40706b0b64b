"""Evaluation: every image of the validation set exactly once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from .data.loader import Batch
from .distributed import Ranks
from .model import FUSIONS, Fusion, VisionTransformer, fuse

Scores = dict[str, dict[str, float]]
# The summary's name for each fusion of two heads (design: cls, dist, fused, softmax).
_NAMES = {"logits": "fused", "softmax": "softmax", "cls": "cls", "dist": "dist"}


def predictions(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Logits (B, C) by name: "cls", and for a distilled model "dist", "fused" (mean logits) and "softmax"."""
    if isinstance(model, VisionTransformer):
        cls_logits, dist_logits = model.heads(images)
        if dist_logits is not None:
            return {_NAMES[fusion]: fuse(cls_logits, dist_logits, fusion) for fusion in FUSIONS}
        return {"cls": cls_logits}
    return {"cls": model(images)}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Iterable[Batch],
    ranks: Ranks | None = None,
    autocast: AbstractContextManager | None = None,
) -> Scores:
    """Top-1 and top-5 accuracy in per cent, mean cross-entropy, and the number of images, for each prediction.

    Each rank sums over its own images; the sums are added up in float64, so the result counts every image once and
    does not depend on the batch size. Images that could not be read (label < 0) are not counted.

    Args:
        model: a classifier; its training mode is restored.
        data: this rank's share of the images, as `EvalLoader` gives it.
        ranks: who else evaluates; None is alone.
        autocast: context of the forward pass.

    Returns:
        {"cls" | "dist" | "fused" | "softmax": {"top1", "top5", "loss", "n"}}.
    """
    training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    for batch in data:
        with autocast or nullcontext():
            outputs = predictions(model, batch.images)
        for name, logits in outputs.items():
            sums[name] = sums.get(name, 0) + _sums(logits.float(), batch.labels)
    model.train(training)
    if not sums:  # more ranks than images: this one still takes part in the sum
        device = next(model.parameters()).device
        sums = {name: torch.zeros(4, dtype=torch.float64, device=device) for name in _names_of(model)}
    return {name: _scores(ranks.total(total) if ranks else total) for name, total in sums.items()}


def headline(scores: Scores, fusion: Fusion) -> str:
    """The name of the prediction that --fusion makes the model's own."""
    return _NAMES[fusion] if _NAMES[fusion] in scores else "cls"


def _names_of(model: nn.Module) -> list[str]:
    distilled = isinstance(model, VisionTransformer) and model.config.distilled
    return [_NAMES[fusion] for fusion in FUSIONS] if distilled else ["cls"]


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 (4,): right at rank 1, right at rank 5, loss, images."""
    counted = labels >= 0
    ranking = logits.topk(min(5, logits.shape[1])).indices
    hits = (ranking == labels[:, None]) & counted[:, None]
    loss = torch.nn.functional.cross_entropy(logits, labels.clamp_min(0), reduction="none")
    columns = [hits[:, 0], hits.any(1), torch.where(counted, loss, 0.0), counted]
    return torch.stack([column.to(torch.float64).sum() for column in columns])


def _scores(total: Tensor) -> dict[str, float]:
    top1, top5, loss, n = total.tolist()
    if n == 0:
        return {"top1": 0.0, "top5": 0.0, "loss": float("nan"), "n": 0}
    return {"top1": 100 * top1 / n, "top5": 100 * top5 / n, "loss": loss / n, "n": int(n)}
