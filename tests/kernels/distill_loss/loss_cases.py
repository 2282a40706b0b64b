"""Inputs for every kind of call of the loss, and the loss restated with torch.nn.functional."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from _pytest.mark import ParameterSet
from torch import Tensor

from deit_kernels import MixedTarget, TopK, distillation_loss

TARGETS = ("labels", "mixed", "dense")
TEACHERS = ("hard logits", "hard labels", "soft logits", "soft topk")
BASES = ("bce", "bce thresholded", "bce summed")
TAU = 3.0


@dataclass(frozen=True)
class Case:
    """One call of `distillation_loss`; its `str` is the id of the test."""

    target: str = "labels"
    teacher: str = "hard logits"
    heads: int = 2
    alpha: float = 0.3
    smoothing: float = 0.0  # of the target, and of a hard teacher's label
    normalizer: str = "batch"
    reduction: str = "mean"
    base: str = "ce"
    weighted: bool = False  # by class

    def __str__(self) -> str:
        return "-".join(str(value).replace(" ", "_") for value in vars(self).values())


def product(**choices: tuple) -> list[Case]:
    """Every combination of the choices."""
    return [Case(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


def pairwise(cases: list) -> list:
    """A few of the cases, `Case`s or tuples, in which any two values that occur together in one of all still do."""

    def values(case: Case | tuple) -> Iterable:
        return enumerate(case) if isinstance(case, tuple) else vars(case).items()

    left = {case: set(itertools.combinations(values(case), 2)) for case in cases}
    chosen = []
    while left:
        best = max(left, key=lambda case: len(left[case]))  # the first of those that add most
        chosen.append(best)
        left = {case: rest for case, pairs in left.items() if (rest := pairs - left[best])}
    return chosen


def thorough(cases: list[Case]) -> list[ParameterSet]:
    """All cases for a parametrised test; by default `make test` runs those of `pairwise`, the rest is slow."""
    few = set(pairwise(cases))
    return [pytest.param(case, marks=() if case in few else pytest.mark.slow) for case in cases]


def pairs(*choices: Iterable) -> list[ParameterSet]:
    """Every combination for a test of several parameters; by default `make test` runs those of `pairwise`."""
    combinations = list(itertools.product(*choices))
    few = set(pairwise(combinations))
    return [pytest.param(*each, marks=() if each in few else pytest.mark.slow) for each in combinations]


BINARY = product(target=TARGETS, teacher=("hard logits", "soft topk"), heads=(2, 1), smoothing=(0.0, 0.1), base=BASES)
WEIGHTED = product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), alpha=(0.3, 1.0), smoothing=(0.0, 0.1),
                   base=("ce", *BASES), reduction=("mean", "none"), weighted=(True,))  # fmt: skip
WEIGHTED_KINDS = pairwise([case for case in WEIGHTED if case.alpha < 1])


def make_call(case: Case, rows: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict:
    """Keyword arguments of `distillation_loss`; the logits require grad. Row 1, where there is one, is ignored."""
    generator = torch.Generator().manual_seed(seed)

    def logits() -> Tensor:
        return (3 * torch.randn(rows, classes, generator=generator)).to(dtype)

    def labels() -> Tensor:
        return torch.randint(classes, (rows,), generator=generator)

    call = {
        "cls_logits": logits().requires_grad_(),
        "dist_logits": logits().requires_grad_() if case.heads == 2 else None,
        "mode": case.teacher.split()[0],
        "alpha": case.alpha,
        "label_smoothing": case.smoothing,
        "reduction": case.reduction,
    }
    if case.base != "ce":
        call |= {"base": "bce", "sum_classes": case.base == "bce summed"}
    if case.base == "bce thresholded":
        call["target_threshold"] = 0.2 if case.smoothing else 0.0
    call["target"] = labels()
    if rows > 2 and case.target != "dense":
        call["target"][1] = -100
    if case.target == "mixed":
        lam = torch.rand(rows, generator=generator)
        lam[0] = 1.0
        lam[-1] = 0.0
        call["target"] = MixedTarget(call["target"], labels(), lam)
    elif case.target == "dense":
        call["target"] = torch.randn(rows, classes, generator=generator).softmax(1).to(dtype)
    if case.weighted:
        call["weight"] = 3 * torch.rand(classes, generator=generator) + 0.01
        call["weight"][classes // 2] = 0.0 if classes > 9 else 1.0
    if case.teacher == "hard labels":
        call["teacher"] = labels()
    elif case.teacher == "soft topk":
        probs, indices = (logits().float() / TAU).softmax(1).topk(min(5, classes))
        call["teacher"] = TopK(indices, probs.to(dtype), TAU)
    else:
        call["teacher"] = logits()
    if call["mode"] == "soft":
        call |= {"tau": TAU, "kl_normalizer": case.normalizer}
    else:
        call["teacher_smoothing"] = case.smoothing
    return call


def full_options(call: dict) -> dict:
    """Every argument of `distillation_loss`, the defaults included."""
    defaults = {
        "tau": None,
        "kl_normalizer": None,
        "teacher_smoothing": 0.0,
        "ignore_index": -100,
        "return_parts": True,
        "weight": None,
    }
    return defaults | call


def in_float64(call: dict) -> dict:
    """The same call with float64 logits, which the reference computes exactly."""
    heads = [name for name in ("cls_logits", "dist_logits") if call[name] is not None]
    return call | {name: call[name].detach().double().requires_grad_() for name in heads}


def plain_loss(
    cls_logits: Tensor,
    dist_logits: Tensor | None,
    teacher: Tensor | TopK,
    target: Tensor | MixedTarget,
    mode: str,
    alpha: float,
    label_smoothing: float,
    reduction: str,
    teacher_smoothing: float = 0.0,
    tau: float = 1.0,
    kl_normalizer: str = "batch",
    base: str = "ce",
    target_threshold: float | None = None,
    sum_classes: bool = False,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, base, distillation) in float64: dense targets and torch.nn.functional, as in the official code."""
    classes = cls_logits.shape[1]
    cls = cls_logits.double()
    student = cls if dist_logits is None else dist_logits.double()
    keep, probabilities = torch.ones(len(cls), dtype=torch.bool), isinstance(target, Tensor) and target.dim() == 2
    weight = None if weight is None else weight.double()
    if isinstance(target, MixedTarget):
        keep = (target.labels != -100) & (target.partner_labels != -100)
        lam = target.lam.double()[:, None]
        one_hot = [F.one_hot(labels.where(keep, 0), classes) for labels in target[:2]]
        target = lam * one_hot[0] + (1 - lam) * one_hot[1]
    elif target.dtype == torch.int64:
        keep = target != -100
        target = F.one_hot(target.where(keep, 0), classes)
    # A row counts as much as its target; F.cross_entropy's mean divides by that for labels.
    row_weight = torch.ones(len(cls)).double() if weight is None else target.double() @ weight
    divisor = keep.double() if probabilities or base != "ce" else row_weight * keep
    if base == "ce":
        base = F.cross_entropy(cls, target.double(), weight, label_smoothing=label_smoothing, reduction="none")
    else:
        smoothed = (1 - label_smoothing) * target.double() + label_smoothing / classes
        if target_threshold is not None:
            smoothed = smoothed.gt(target_threshold).double()
        base = F.binary_cross_entropy_with_logits(cls, smoothed, weight, reduction="none")
        base = base.sum(1) if sum_classes else base.mean(1)
    if mode == "hard":
        labels = teacher if teacher.dtype == torch.int64 else teacher.argmax(1)
        distill = F.cross_entropy(student, labels, label_smoothing=teacher_smoothing, reduction="none")
    else:
        if isinstance(teacher, TopK):
            probs = teacher.probs.double()
            spread = (1 - probs.sum(1, keepdim=True)) / max(classes - probs.shape[1], 1)
            teacher_probs = spread.clamp_min(0).repeat(1, classes).scatter(1, teacher.indices, probs)
            teacher_log_probs = (teacher_probs / teacher_probs.sum(1, keepdim=True)).log()
        else:
            teacher_log_probs = F.log_softmax(teacher.double() / tau, dim=1)
        divergence = F.kl_div(F.log_softmax(student / tau, dim=1), teacher_log_probs, reduction="none", log_target=True)
        divergence = divergence.nan_to_num(0.0)  # a class whose probability is 0 in the TopK
        distill = divergence.sum(1) * tau**2 / (classes if kl_normalizer == "numel" else 1)
    base, distill = (torch.where(keep, rows, 0.0) for rows in (base, distill * row_weight))
    if reduction == "mean":
        base, distill = base.sum() / divisor.sum(), distill.sum() / divisor.sum()
    return (1 - alpha) * base + alpha * distill, base, distill


def run(call: dict, incoming: Tensor | float = 1.0) -> dict[str, Tensor | None]:
    """Loss, parts and gradients of the public function."""
    loss, base, distill = distillation_loss(**call, return_parts=True)
    return {"loss": loss, "base": base, "distill": distill} | _gradients(loss, call, incoming)


def run_plain(call: dict, incoming: Tensor | float = 1.0) -> dict[str, Tensor | None]:
    """The same of the restatement; the gradients are autograd's."""
    loss, base, distill = plain_loss(**call)
    return {"loss": loss, "base": base, "distill": distill} | _gradients(loss, call, incoming)


def assert_agree(got: dict, expected: dict, dtype: torch.dtype, relative: float = 1e-5, absolute: float = 1e-6) -> None:
    """Losses agree to float32 rounding, gradients to the rounding of the type they are stored in."""
    for name, value in expected.items():
        stored = dtype if name.startswith("grad") else torch.float32
        rounding = {torch.float16: 1e-3, torch.bfloat16: 1.6e-2}.get(stored, relative)
        scale = float(value.detach().abs().nan_to_num(0.0, 0.0, 0.0).max()) if value.numel() else 0.0
        # A sum of exponentials beside 1, and p − 1, are known to 6e-8; gradients here come in at up to 2.5 times that.
        known = 3e-7 / len(value) if name.startswith("grad") else 1e-7
        tolerance = {"rtol": rounding, "atol": max(absolute * scale, known, 1e-7 * (stored == torch.float16))}
        torch.testing.assert_close(
            got[name].double(), value.double(), **tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def _gradients(loss: Tensor, call: dict, incoming: Tensor | float) -> dict[str, Tensor]:
    heads = {name: call[f"{name}_logits"] for name in ("cls", "dist") if call[f"{name}_logits"] is not None}
    # A head of weight 0 gets no gradient from us and zeros from the restatement: the same to whoever trains.
    incoming = torch.as_tensor(incoming).to(loss.device, loss.dtype).expand(loss.shape)
    gradients = torch.autograd.grad(loss, list(heads.values()), incoming, allow_unused=True, materialize_grads=True)
    return {f"grad of {name}": gradient for name, gradient in zip(heads, gradients, strict=True)}
