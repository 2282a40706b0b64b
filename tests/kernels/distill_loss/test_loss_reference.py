"""On the CPU: every combination against the official formulas, exact derivatives, and what PyTorch itself promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy

from deit_kernels import MixedTarget, TopK, binary_cross_entropy, cross_entropy, distillation_loss, kl_divergence
from tests.kernels.distill_loss.loss_cases import (
    BASES,
    BINARY,
    TARGETS,
    TEACHERS,
    WEIGHTED,
    WEIGHTED_KINDS,
    Case,
    assert_agree,
    make_call,
    plain_loss,
    product,
    run,
    run_plain,
    thorough,
)

ALL = product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), alpha=(0.0, 0.3, 1.0), smoothing=(0.0, 0.1),
              normalizer=("batch", "numel"), reduction=("mean", "none"))  # fmt: skip
ALL = [case for case in ALL if case.teacher.startswith("soft") or case.normalizer == "batch"]
ALL += product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), alpha=(0.0, 0.3), smoothing=(0.0, 0.1),
               reduction=("mean", "none"), base=BASES)  # fmt: skip
ALL += WEIGHTED
KINDS = product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), smoothing=(0.1,)) + BINARY[::5]
KINDS += WEIGHTED_KINDS[::2]


@pytest.mark.parametrize("case", thorough(ALL), ids=str)
def test_every_combination_agrees_with_the_official_formulas(case: Case) -> None:
    call = make_call(case, rows=5, classes=41)
    assert_agree(run(call, incoming=2.5), run_plain(call, incoming=2.5), torch.float32)


@pytest.mark.parametrize("case", thorough(KINDS), ids=str)
@pytest.mark.parametrize("classes", [2, 10, 401])
def test_float64_is_computed_in_float64(case: Case, classes: int) -> None:
    call = make_call(case, rows=4, classes=classes, dtype=torch.float64)
    got = run(call)
    assert got["loss"].dtype == torch.float64
    for name, value in run_plain(call).items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", thorough(KINDS), ids=str)
def test_half_precision_gives_a_float32_loss_and_gradients_of_its_own_type(case: Case, dtype: torch.dtype) -> None:
    call = make_call(case, rows=4, classes=41, dtype=dtype)
    got = run(call)
    assert got["loss"].dtype == torch.float32
    assert got["grad of cls"].dtype == dtype
    assert_agree(got, run_plain(call), dtype)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", thorough(KINDS), ids=str)
def test_first_and_second_derivatives(case: Case, reduction: str) -> None:
    call = make_call(case, rows=3, classes=6, dtype=torch.float64) | {"reduction": reduction}
    heads = [name for name in ("cls_logits", "dist_logits") if call[name] is not None]

    def loss(*logits: torch.Tensor) -> torch.Tensor:
        return distillation_loss(**call | dict(zip(heads, logits, strict=True)))

    inputs = [call[name] for name in heads]
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target", ["labels", "dense"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torch_nn_functionals(target: str, reduction: str, smoothing: float, weighted: bool) -> None:
    call = make_call(Case(target, weighted=weighted), rows=5, classes=41)
    logits = call["cls_logits"]
    options = {"label_smoothing": smoothing, "reduction": reduction, "weight": call.get("weight")}
    torch.testing.assert_close(
        cross_entropy(logits, call["target"], **options), F.cross_entropy(logits, call["target"], **options)
    )


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("target", TARGETS)
def test_binary_cross_entropy_is_timms(target: str, threshold: float | None, sum_classes: bool) -> None:
    # timm smooths labels and nothing else; its Mixup smooths what it mixes, to the targets that we build from `mixed`.
    smoothing = 0.0 if threshold == 0 or target == "dense" else 0.1
    criterion = BinaryCrossEntropy(smoothing, target_threshold=threshold, sum_classes=sum_classes)
    logits = (3 * torch.randn(6, 41)).requires_grad_()
    labels = torch.randint(41, (6,))
    ours = {
        "labels": labels,
        "mixed": MixedTarget(labels, labels.flip(0), torch.full((6,), 0.7)),
        "dense": torch.rand(6, 41),
    }[target]
    theirs = mixup_target(labels, 41, lam=0.7, smoothing=smoothing) if target == "mixed" else ours
    got = binary_cross_entropy(
        logits, ours, target_threshold=threshold, label_smoothing=smoothing, sum_classes=sum_classes
    )
    expected = criterion(logits, theirs)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(one, logits)[0] for one in (got, expected)]
    torch.testing.assert_close(*gradients)


def test_a_mixed_target_with_class_weights_is_the_mean_of_both_labels_in_their_shares() -> None:
    call = make_call(Case("mixed", weighted=True), rows=5, classes=41, dtype=torch.float64)
    logits, (labels, partner, lam), weight = call["cls_logits"], call["target"], call["weight"].double()
    both = [F.cross_entropy(logits, each, weight, reduction="none") for each in (labels, partner)]
    counts = labels != -100
    rows, shares = (
        torch.where(counts, lam * one + (1 - lam) * other, 0.0)
        for one, other in (both, [weight[each.where(counts, 0)] for each in (labels, partner)])
    )
    torch.testing.assert_close(
        cross_entropy(logits, call["target"], weight=weight), rows.sum() / shares.sum(), rtol=1e-12, atol=0
    )


def test_a_distilled_row_counts_as_much_as_its_true_class_and_a_scale_of_the_weights_cancels() -> None:
    call = make_call(Case(alpha=1.0, weighted=True), rows=5, classes=41, dtype=torch.float64)
    keep, weight = call["target"] != -100, call["weight"].double()
    rows = F.cross_entropy(call["dist_logits"], call["teacher"].argmax(1), reduction="none")[keep]
    expected = (rows * weight[call["target"][keep]]).sum() / weight[call["target"][keep]].sum()
    for scale in (1.0, 7.0):
        torch.testing.assert_close(distillation_loss(**call | {"weight": scale * weight}), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("target", ["labels", "mixed"])
def test_rows_whose_classes_all_have_the_weight_0_have_no_mean_as_in_torch(target: str) -> None:
    call = make_call(Case(target), rows=3, classes=10)
    labels = torch.tensor([0, 1, 2])
    call["target"] = labels if target == "labels" else MixedTarget(labels, labels, torch.rand(3))
    weight = torch.ones(10).index_fill_(0, labels, 0.0)
    assert F.cross_entropy(call["cls_logits"], labels, weight).isnan()
    assert cross_entropy(call["cls_logits"], call["target"], weight=weight).isnan()
    assert distillation_loss(**call, weight=weight).isnan()


def test_deit_3s_loss_is_the_binary_cross_entropy_of_both_classes() -> None:
    logits, labels = torch.randn(4, 10), torch.tensor([1, 2, 3, 4])
    mixed = mixup_target(labels, 10, lam=0.3)
    expected = F.binary_cross_entropy_with_logits(logits, mixed.gt(0.0).to(mixed.dtype))
    target = MixedTarget(labels, labels.flip(0), torch.full((4,), 0.3))
    torch.testing.assert_close(binary_cross_entropy(logits, target, target_threshold=0.0), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_infinite_logit_on_the_targets_side_costs_nothing_in_a_binary_cross_entropy(reduction: str) -> None:
    labels, options = torch.tensor([2]), {"sum_classes": True, "reduction": reduction}
    logits = torch.tensor([[0.5, -torch.inf, torch.inf, -1.0]], requires_grad=True)
    loss = binary_cross_entropy(logits, labels, **options)
    torch.testing.assert_close(loss.sum(), F.softplus(torch.tensor([0.5, -1.0])).sum())
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, logits.detach().sigmoid() - torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    wrong = (-logits.detach()).requires_grad_()
    loss = binary_cross_entropy(wrong, labels, **options)
    assert loss.sum() == torch.inf
    assert torch.autograd.grad(loss.sum(), wrong)[0][0, 1:3].tolist() == [1.0, -1.0]


def test_the_gradient_at_a_logit_of_0_is_a_half_minus_the_target() -> None:
    for dtype in (torch.float32, torch.float64):
        logits = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
        for graph in (False, True):
            loss = binary_cross_entropy(logits, torch.tensor([1]), sum_classes=True)
            (gradient,) = torch.autograd.grad(loss, logits, create_graph=graph)
            assert gradient.tolist() == [[0.5, -0.5, 0.5]]


@pytest.mark.parametrize("normalizer", ["batch", "numel"])
def test_kl_divergence_is_the_distillation_term_alone(normalizer: str) -> None:
    call = make_call(Case(teacher="soft logits", alpha=1.0, normalizer=normalizer, target="dense"), rows=5, classes=41)
    alone = kl_divergence(call["dist_logits"], call["teacher"], tau=call["tau"], kl_normalizer=normalizer)
    torch.testing.assert_close(alone, distillation_loss(**call))
    (gradient,) = torch.autograd.grad(alone, call["dist_logits"])
    torch.testing.assert_close(gradient, run(call)["grad of dist"])


def test_a_row_that_is_ignored_counts_in_neither_term_and_its_contents_do_not_matter() -> None:
    call = make_call(Case(teacher="hard labels"), rows=5, classes=10)
    keep = torch.tensor([0, 2, 3, 4])
    kept = call | {name: call[name].detach()[keep].requires_grad_() for name in ("cls_logits", "dist_logits")}
    kept |= {name: call[name][keep] for name in ("teacher", "target")}
    with torch.no_grad():
        call["cls_logits"][1] = torch.nan
        call["teacher"][1] = 77
    got, expected = run(call), run(kept)
    torch.testing.assert_close(got["loss"], expected["loss"])
    assert not got["grad of cls"][1].any()
    torch.testing.assert_close(got["grad of cls"][keep], expected["grad of cls"])


@pytest.mark.parametrize("which", ["target", "partner", "teacher"])
def test_ignore_index_in_any_label_ignores_the_row(which: str) -> None:
    call = make_call(Case("mixed", "hard labels", reduction="none"), rows=5, classes=10)
    labels = {"target": call["target"].labels, "partner": call["target"].partner_labels, "teacher": call["teacher"]}[
        which
    ]
    labels[3] = -100
    got = run(call)
    assert got["loss"][3] == got["base"][3] == got["distill"][3] == 0
    assert not got["grad of cls"][3].any() and not got["grad of dist"][3].any()


def test_a_batch_of_ignored_rows_and_an_empty_batch_are_nan_as_in_torch() -> None:
    call = make_call(Case(), rows=3, classes=10) | {"target": torch.full((3,), -100)}
    got = run(call)
    assert got["loss"].isnan() and F.cross_entropy(call["cls_logits"], call["target"]).isnan()
    assert not got["grad of cls"].any()
    assert distillation_loss(torch.zeros(0, 10), None, torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64)).isnan()


def test_a_term_of_weight_zero_is_no_part_of_the_graph() -> None:
    call = make_call(Case(alpha=0.0), rows=3, classes=10)
    distillation_loss(**call).backward()
    assert call["cls_logits"].grad is not None and call["dist_logits"].grad is None
    call = make_call(Case(alpha=1.0), rows=3, classes=10)
    distillation_loss(**call).backward()
    assert call["cls_logits"].grad is None and call["dist_logits"].grad is not None
    infinite = call | {"cls_logits": torch.full((3, 10), -torch.inf), "return_parts": True}
    assert distillation_loss(**infinite)[0].isfinite()


def test_the_lowest_class_wins_a_tie_of_the_teacher() -> None:
    teacher = torch.tensor([[0.0, 2.0, 2.0, 1.0], [-torch.inf] * 4])
    logits = torch.randn(2, 4)
    got = distillation_loss(logits, None, teacher, torch.zeros(2, dtype=torch.int64), alpha=1.0, reduction="none")
    torch.testing.assert_close(got, F.cross_entropy(logits, torch.tensor([1, 0]), reduction="none"))


def test_a_hard_teacher_with_a_nan_has_no_label() -> None:
    call = make_call(Case(reduction="none"), rows=4, classes=10)
    call["teacher"][2, 5] = torch.nan
    got = run(call)
    assert got["loss"].isnan().tolist() == [False, False, True, False]
    assert got["grad of dist"].isnan().any(1).tolist() == [False, False, True, False]


def test_topk_over_all_classes_is_the_teacher_itself() -> None:
    call = make_call(Case(teacher="soft logits"), rows=4, classes=10)
    probs, indices = (call["teacher"] / call["tau"]).softmax(1).topk(10)
    torch.testing.assert_close(
        distillation_loss(**call | {"teacher": TopK(indices, probs, call["tau"])}), distillation_loss(**call)
    )


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_lam_of_zero_or_one_is_a_plain_label_even_beside_an_infinite_logit(lam: float) -> None:
    call = make_call(Case(target="mixed", reduction="none"), rows=2, classes=10)
    labels, partner = torch.tensor([3, 4]), torch.tensor([5, 6])
    used, unused = (labels, partner) if lam else (partner, labels)
    logits = call["cls_logits"].detach().clone()
    logits[torch.arange(2), unused] = -torch.inf
    mixed = MixedTarget(labels, partner, torch.full((2,), lam))
    expected = distillation_loss(**call | {"cls_logits": logits, "target": used})
    assert expected.isfinite().all()
    torch.testing.assert_close(distillation_loss(**call | {"cls_logits": logits, "target": mixed}), expected)


@pytest.mark.parametrize("case", [Case("mixed"), Case("dense", "soft logits")], ids=str)
def test_classes_of_logit_minus_infinity_are_as_if_they_were_not_there(case: Case) -> None:
    small = make_call(case, rows=3, classes=6)
    call = dict(small)
    for name in ("cls_logits", "dist_logits", "teacher"):
        wide = torch.cat([small[name].detach(), torch.full((3, 4), -torch.inf)], dim=1)
        call[name] = wide.requires_grad_(name != "teacher")
    if case.target == "dense":
        call["target"] = torch.cat([small["target"], torch.zeros(3, 4)], dim=1)
    got, expected = run(call), run(small)
    for name, value in expected.items():
        torch.testing.assert_close(got[name][..., :6] if name.startswith("grad") else got[name], value)
    assert not got["grad of cls"][:, 6:].any() and not got["grad of dist"][:, 6:].any()


def test_a_row_of_minus_infinity_alone_is_nan_as_in_torch() -> None:
    logits, label = torch.full((1, 4), -torch.inf), torch.tensor([2])
    assert cross_entropy(logits, label).isnan() and F.cross_entropy(logits, label).isnan()


def test_a_label_of_logit_minus_infinity_costs_infinity_and_keeps_a_finite_gradient() -> None:
    logits = torch.zeros(1, 4).index_fill_(1, torch.tensor([2]), -torch.inf).requires_grad_()
    loss = cross_entropy(logits, torch.tensor([2]))
    loss.backward()
    assert loss == torch.inf and logits.grad.isfinite().all()


@pytest.mark.parametrize("case", [Case("mixed"), Case("dense", "soft logits", 1)], ids=str)
def test_inside_autocast_everything_stays_float32(case: Case) -> None:
    call = make_call(case, rows=4, classes=41, dtype=torch.bfloat16)
    expected = run(call)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(call)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_inputs_are_never_written(case: Case) -> None:
    call = make_call(case, rows=4, classes=41)
    tensors = [part for value in call.values() for part in (value if isinstance(value, tuple) else (value,))]
    tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
    copies = [tensor.detach().clone() for tensor in tensors]
    run(call)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


def test_the_loss_may_be_scaled_added_and_taken_twice_on_the_same_logits() -> None:
    call = make_call(Case("mixed", "soft logits"), rows=4, classes=41)
    heads = [call["cls_logits"], call["dist_logits"]]
    other = heads[0].square().mean()
    twice = 65536 * distillation_loss(**call) + distillation_loss(**call)
    got = torch.autograd.grad(twice + other, heads, retain_graph=True)
    expected = torch.autograd.grad(65537 * plain_loss(**call)[0] + other, heads)
    for ours, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, plain.float(), rtol=1e-5, atol=1e-3)
