"""What bad input gets: an error that names the argument, before anything runs."""

from __future__ import annotations

import pytest
import torch

from deit_kernels import MixedTarget, TopK, binary_cross_entropy, cross_entropy, distillation_loss, kl_divergence
from deit_kernels.distill_loss import op
from tests.kernels.distill_loss.loss_cases import TAU, Case, make_call

LABELS = torch.zeros(4, dtype=torch.int64)
LOGITS = torch.zeros(4, 10)
SOFT = {"mode": "soft", "alpha": 0.1, "tau": TAU, "kl_normalizer": "batch", "teacher": LOGITS}


BINARY = {"base": "bce"}


def topk(**changes: object) -> dict:
    """A soft call with a TopK teacher, one of whose parts is changed."""
    parts = {"indices": torch.tensor([[0, 1, 2]] * 4), "probs": torch.full((4, 3), 0.25), "tau": TAU}
    return SOFT | {"teacher": TopK(**parts | changes)}


def mixed(**changes: object) -> dict:
    """A call with a MixedTarget, one of whose parts is changed."""
    return {
        "target": MixedTarget(**{"labels": LABELS, "partner_labels": LABELS, "lam": torch.full((4,), 0.5)} | changes)
    }


BAD = [
    ({"mode": "firm"}, ValueError, "mode must be 'hard' or 'soft', got 'firm'"),
    ({"reduction": "sum"}, ValueError, "reduction must be"),
    ({"base": "bCE"}, ValueError, "base must be 'ce' or 'bce', got 'bCE'"),
    ({"target_threshold": 0.0}, ValueError, 'belong to a binary cross-entropy: add base="bce"'),
    ({"sum_classes": True}, ValueError, 'belong to a binary cross-entropy: add base="bce"'),
    (BINARY | {"sum_classes": 1}, ValueError, "sum_classes must be True or False, got 1"),
    (BINARY | {"target_threshold": 1.0}, ValueError, r"target_threshold is .* in \[0, 1\) or None, got 1.0"),
    (BINARY | {"target_threshold": -0.1}, ValueError, "target_threshold is a probability"),
    (BINARY | {"target_threshold": torch.tensor(0.5)}, ValueError, "target_threshold is a probability"),
    (BINARY | {"target_threshold": 0.0, "label_smoothing": 0.1}, ValueError,
     "label_smoothing=0.1 gives every class 0.01, which is above target_threshold=0.0: .* Type label_smoothing=0"),
    (SOFT | {"kl_normalizer": "batchmean"}, ValueError, "kl_normalizer must be 'batch' or 'numel', got 'batchmean'"),
    ({"alpha": 1.5}, ValueError, r"alpha is a weight: a Python number in \[0, 1\], got 1.5"),
    ({"alpha": float("nan")}, ValueError, "alpha is a weight"),
    ({"alpha": torch.tensor(0.5)}, ValueError, "alpha is a weight: a Python number"),
    (SOFT | {"tau": 0.0}, ValueError, "tau is a temperature: a finite Python number above 0, got 0.0"),
    (SOFT | {"tau": float("inf")}, ValueError, "tau is a temperature"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing is a share"),
    ({"teacher_smoothing": 1.1}, ValueError, "teacher_smoothing is a share"),
    (SOFT | {"teacher_smoothing": 0.1}, ValueError, "teacher_smoothing smooths a hard teacher's label"),
    ({"cls_logits": [1.0]}, TypeError, "cls_logits must be a tensor, got list"),
    ({"cls_logits": torch.zeros(4, 10, dtype=torch.int64)}, ValueError, "cls_logits must be floating-point"),
    ({"cls_logits": torch.zeros(4, 10, 1)}, ValueError, r"cls_logits .*\(B, C\), got float32 \(4, 10, 1\) on cpu"),
    ({"dist_logits": torch.zeros(4, 11)}, ValueError, r"dist_logits must have the shape.*got float32 \(4, 11\)"),
    ({"teacher": None}, TypeError, "teacher must be logits"),
    ({"teacher": torch.zeros(4, 12)}, ValueError, "teacher knows 12 classes and the student 10"),
    ({"teacher": torch.zeros(3, 10)}, ValueError, "teacher has 3 rows and the student 4"),
    ({"teacher": torch.zeros(3, dtype=torch.int64)}, ValueError, r"teacher must be int64 of shape \(4,\)"),
    ({"teacher": torch.zeros(4, 10, dtype=torch.int32)}, ValueError, "teacher must be logits"),
    ({"teacher": LOGITS.clone().requires_grad_()}, ValueError, r"teacher requires grad.*teacher\.detach\(\)"),
    ({"teacher": LOGITS.to("meta")}, ValueError, "teacher is on meta"),
    (SOFT | {"teacher": LABELS}, ValueError, 'teacher holds labels.*mode="hard"'),
    (topk() | {"mode": "hard"}, ValueError, 'teacher is a TopK, which serves mode="soft"'),
    (topk(tau=1.0), ValueError, "teacher is a TopK taken at tau=1.0, which cannot serve tau=3.0"),
    (topk(indices=torch.zeros(4, 2, dtype=torch.int64)), ValueError, "teacher.indices and teacher.probs must have one"),
    (topk(indices=torch.zeros(4, 3)), ValueError, "teacher.indices must be int64"),
    (topk(indices=torch.tensor([[0, 1, 10]] * 4)), ValueError, r"teacher.indices holds \[0, 1, 10\] in row 0"),
    (topk(indices=torch.tensor([[0, 1, 1]] * 4)), ValueError, "teacher.indices holds .* a class may occur once"),
    (topk(probs=torch.full((4, 3), -0.1)), ValueError, r"teacher.probs .* probabilities are in \[0, 1\]"),
    (topk(probs=torch.full((4, 3), 0.1, requires_grad=True)), ValueError, "teacher.probs requires grad"),
    ({"target": [0, 1, 2, 3]}, TypeError, "target must be labels int64"),
    ({"target": torch.zeros(4)}, ValueError, r"target must be labels int64 \(B,\), a MixedTarget, or probabilities"),
    ({"target": torch.zeros(4, 9)}, ValueError, r"target holds probabilities \(4, 9\) for logits \(4, 10\)"),
    ({"target": torch.zeros(4, 1, dtype=torch.int64)}, ValueError, "target must be int64"),
    ({"target": torch.zeros(4, 10, requires_grad=True)}, ValueError, "target requires grad"),
    ({"target": torch.tensor([0, 1, 10, 3])}, ValueError, r"holds 10 in row 2; .* or ignore_index=-100"),
    ({"target": torch.tensor([0, -1, 2, 3])}, ValueError, "target holds -1 in row 1"),
    ({"teacher": torch.tensor([0, 1, 2, 2**40])}, ValueError, "teacher holds 1099511627776 in row 3"),
    (mixed(lam=torch.tensor([0.5, 1.01, 0.5, 0.5])), ValueError, "target.lam holds 1.0.* in row 1; it is a weight in"),
    (mixed(lam=torch.full((4,), torch.nan)), ValueError, "target.lam holds nan"),
    (mixed(lam=0.5), TypeError, "target.lam must be a tensor, got float"),
    (mixed(lam=torch.full((4,), 0.5, requires_grad=True)), ValueError, "target.lam requires grad"),
    (mixed(partner_labels=torch.tensor([0, 1, 2, 10])), ValueError, "target.partner_labels holds 10 in row 3"),
    ({"weight": [1.0] * 10}, TypeError, "weight must be a tensor, got list"),
    ({"weight": torch.ones(4)}, ValueError, r"weight must be floating-point of shape \(10,\), one a class, got"),
    ({"weight": torch.ones(10, dtype=torch.int64)}, ValueError, "weight must be floating-point"),
    ({"weight": torch.ones(10, requires_grad=True)}, ValueError, r"weight requires grad.*weight\.detach\(\)"),
    ({"weight": torch.ones(10, device="meta")}, ValueError, "weight is on meta"),
    ({"weight": torch.tensor([1.0] * 9 + [-0.5])}, ValueError,
     "weight holds -0.5 for class 9; weights are finite and at least 0"),
    ({"weight": torch.full((10,), torch.nan)}, ValueError, "weight holds nan for class 0"),
    ({"weight": torch.zeros(10)}, ValueError, "weight holds 0 for every class; at least one is above 0"),
    (mixed(labels=LABELS[:3]), ValueError, r"target.labels must be int64 of shape \(4,\)"),
]  # fmt: skip


@pytest.mark.parametrize("changes, error, message", BAD, ids=[message[:48] for _, _, message in BAD])
def test_bad_input_is_named(changes: dict, error: type[Exception], message: str) -> None:
    call = {"cls_logits": LOGITS, "dist_logits": LOGITS, "teacher": LABELS, "target": LABELS}
    with pytest.raises(error, match=message):
        distillation_loss(**call | changes)


@pytest.mark.parametrize("missing", ["alpha", "tau", "kl_normalizer"])
def test_soft_mode_has_no_defaults_and_prints_both_lines(missing: str) -> None:
    call = {name: value for name, value in SOFT.items() if name != missing}
    with pytest.raises(ValueError, match=r"alpha=0\.1, tau=3\.0") as caught:
        distillation_loss(LOGITS, None, target=LABELS, **call)
    assert 'alpha=0.5, tau=1.0, kl_normalizer="numel"' in str(caught.value)


def test_the_hard_defaults_are_the_papers() -> None:
    call = make_call(Case(alpha=0.5), rows=4, classes=10)
    default = {name: value for name, value in call.items() if name not in ("mode", "alpha")}
    assert torch.equal(distillation_loss(**default), distillation_loss(**call))


def test_the_three_small_functions_check_what_they_take() -> None:
    with pytest.raises(ValueError, match="target holds 10 in row 0"):
        binary_cross_entropy(LOGITS, torch.full((4,), 10))
    with pytest.raises(ValueError, match="label_smoothing is a share"):
        binary_cross_entropy(LOGITS, LABELS, label_smoothing=2.0)
    with pytest.raises(ValueError, match="every target would be 1"):
        binary_cross_entropy(LOGITS, LABELS, label_smoothing=0.5, target_threshold=0.01)
    with pytest.raises(ValueError, match=r"target holds probabilities \(4, 9\)"):
        binary_cross_entropy(LOGITS, torch.zeros(4, 9))
    with pytest.raises(ValueError, match="sum_classes must be True or False"):
        binary_cross_entropy(LOGITS, LABELS, sum_classes="yes")
    with pytest.raises(ValueError, match="reduction"):
        binary_cross_entropy(LOGITS, LABELS, reduction="sum")
    with pytest.raises(ValueError, match="target holds 10 in row 0"):
        cross_entropy(LOGITS, torch.full((4,), 10))
    with pytest.raises(ValueError, match="label_smoothing"):
        cross_entropy(LOGITS, LABELS, label_smoothing=2.0)
    with pytest.raises(ValueError, match="reduction"):
        cross_entropy(LOGITS, LABELS, reduction="sum")
    with pytest.raises(ValueError, match="teacher knows 11 classes"):
        kl_divergence(LOGITS, torch.zeros(4, 11))
    with pytest.raises(ValueError, match="teacher requires grad"):
        kl_divergence(LOGITS, LOGITS.clone().requires_grad_())
    with pytest.raises(ValueError, match="tau"):
        kl_divergence(LOGITS, LOGITS, tau=-1.0)
    with pytest.raises(ValueError, match="kl_normalizer"):
        kl_divergence(LOGITS, LOGITS, kl_normalizer="mean")


def test_labels_are_checked_inside_a_compiled_graph_too() -> None:
    compiled = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="target holds 10 in row 2"):
        compiled(LOGITS, torch.tensor([0, 1, 10, 3]))


def test_an_ignore_index_that_is_no_integer() -> None:
    for wrong in (None, 1.5, True):
        with pytest.raises(ValueError, match="ignore_index is an integer"):
            cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), ignore_index=wrong)


WRONG = {
    "three dimensions": (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64), {}),
    "whole numbers": (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), {}),
    "no class": (torch.zeros(2, 0), torch.tensor([0, 1]), {}),
    "too few labels": (torch.zeros(2, 3), torch.tensor([0]), {}),
    "labels in a column": (torch.zeros(2, 3), torch.tensor([[0], [1]]), {}),
    "labels of 32 bits": (torch.zeros(2, 3), torch.tensor([0, 1], dtype=torch.int32), {}),
    "a label too large": (torch.zeros(2, 3), torch.tensor([0, 3]), {}),
    "a label in double precision": (torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 3]), {}),
    "smoothing": (torch.zeros(2, 3), torch.tensor([0, 1]), {"label_smoothing": 1.5}),
    "reduction": (torch.zeros(2, 3), torch.tensor([0, 1]), {"reduction": "sum"}),
    "ignored": (torch.zeros(2, 3), torch.tensor([0, 1]), {"ignore_index": 0.5}),
    "logits in a list": ([[0.0, 1.0]], torch.tensor([0]), {}),
    "labels in a list": (torch.zeros(2, 3), [0, 1], {}),
    "elsewhere": (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64, device="meta"), {}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_call_that_skips_the_checks_of_python_is_refused_in_their_words(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, target, options = WRONG[wrong]
    with pytest.raises((TypeError, ValueError)) as quick:
        cross_entropy(logits, target, **options)
    monkeypatch.setattr(op, "_needs_graph", lambda logits: True)
    with pytest.raises((TypeError, ValueError)) as checked:
        cross_entropy(logits, target, **options)
    assert type(quick.value) is type(checked.value)
    assert str(quick.value) == str(checked.value) != ""
