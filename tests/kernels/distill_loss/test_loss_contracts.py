"""What every implementation promises, through the public functions on CPU tensors: here C++, in `interpreter/` Triton.

`make test` runs each kind of call once at a small size and each size with the two main kinds; the full product is slow.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from deit_kernels import MixedTarget, binary_cross_entropy, cross_entropy, distillation_loss, kl_divergence
from tests.kernels.distill_loss.loss_cases import (
    BASES,
    BINARY,
    TARGETS,
    TEACHERS,
    WEIGHTED_KINDS,
    Case,
    assert_agree,
    in_float64,
    make_call,
    pairs,
    product,
    run,
    run_plain,
    thorough,
)

CLASSES = (2, 10, 41, 401, 1000, 1271, 21841)
DTYPES = (torch.float32, torch.float16)
KINDS = product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), smoothing=(0.0, 0.1)) + BINARY + WEIGHTED_KINDS
EVERYTHING = product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), alpha=(0.0, 0.3, 1.0), smoothing=(0.0, 0.1),
                     normalizer=("batch", "numel"), reduction=("mean", "none"))  # fmt: skip
EVERYTHING = [case for case in EVERYTHING if case.teacher.startswith("soft") or case.normalizer == "batch"]
EVERYTHING += product(target=TARGETS, teacher=("hard logits",), heads=(2, 1), alpha=(0.0, 0.3), smoothing=(0.0, 0.1),
                      reduction=("mean", "none"), base=BASES)  # fmt: skip
SMOOTHED = (
    product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), smoothing=(0.1,)) + BINARY[1::7] + WEIGHTED_KINDS[::3]
)
MAIN = [Case("mixed", "hard logits", smoothing=0.1), Case("dense", "soft logits", normalizer="numel", reduction="none"),
        Case("mixed", base="bce thresholded"), Case("dense", smoothing=0.1, base="bce"),
        Case("mixed", smoothing=0.1, weighted=True), Case("dense", "soft topk", weighted=True)]  # fmt: skip


def check(case: Case, rows: int, classes: int, dtype: torch.dtype) -> None:
    """The public function agrees with the restatement in float64, at an incoming gradient that is not 1."""
    call = make_call(case, rows, classes, dtype)
    assert_agree(run(call, incoming=2.5), run_plain(call, incoming=2.5), dtype)


@pytest.mark.parametrize("case", thorough(KINDS), ids=str)
def test_each_kind_of_call(case: Case) -> None:
    check(case, rows=3, classes=41, dtype=DTYPES[KINDS.index(case) % 2])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_weights_of_zero_and_one(teacher: str, alpha: float) -> None:
    check(Case("mixed", teacher, alpha=alpha, smoothing=0.1), rows=3, classes=10, dtype=torch.float32)


@pytest.mark.parametrize(("case", "classes", "dtype"), pairs(MAIN, (*CLASSES, 50_000), DTYPES), ids=str)
def test_each_number_of_classes(case: Case, classes: int, dtype: torch.dtype) -> None:
    check(case, rows=3, classes=classes, dtype=dtype)


@pytest.mark.parametrize("rows", [1, 65])
def test_each_number_of_rows(rows: int) -> None:
    check(MAIN[0], rows, classes=10, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_the_full_product(case: Case) -> None:
    for rows, classes, dtype in itertools.product((1, 3), CLASSES, DTYPES):
        check(case, rows, classes, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("case", KINDS, ids=str)
def test_a_batch_that_is_no_power_of_two(case: Case, classes: int, dtype: torch.dtype) -> None:
    check(case, 257, classes, dtype)


@pytest.mark.parametrize("target", TARGETS)
def test_cross_entropy_alone(target: str) -> None:
    call = make_call(Case(target, smoothing=0.1), rows=3, classes=401)
    logits = call["cls_logits"]
    loss = cross_entropy(logits, call["target"], label_smoothing=0.1)
    expected = run_plain(call | {"alpha": 0.0})
    got = {"loss": loss, "grad of cls": torch.autograd.grad(loss, logits)[0]}
    assert_agree(got, {name: expected[name] for name in got}, torch.float32)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("target", TARGETS)
def test_binary_cross_entropy_alone(target: str, base: str) -> None:
    call = make_call(Case(target, base=base), rows=3, classes=401)
    logits, options = call["cls_logits"], {name: call.get(name) for name in ("target_threshold", "sum_classes")}
    loss = binary_cross_entropy(logits, call["target"], **options)
    torch.testing.assert_close(distillation_loss(**call | {"alpha": 0.0}), loss)
    expected = run_plain(call | {"alpha": 0.0})
    got = {"loss": loss, "grad of cls": torch.autograd.grad(loss, logits)[0]}
    assert_agree(got, {name: expected[name] for name in got}, torch.float32)


@pytest.mark.parametrize("normalizer", ["batch", "numel"])
def test_kl_divergence_alone(normalizer: str) -> None:
    call = make_call(Case("dense", "soft logits", alpha=1.0, normalizer=normalizer), rows=3, classes=401)
    loss = kl_divergence(call["dist_logits"], call["teacher"], tau=call["tau"], kl_normalizer=normalizer)
    expected = run_plain(call)
    got = {"loss": loss, "grad of dist": torch.autograd.grad(loss, call["dist_logits"])[0]}
    assert_agree(got, {name: expected[name] for name in got}, torch.float32)


EXTREME_CASES = [Case("mixed"), Case("dense"), Case("labels", "soft logits"), Case("dense", "soft topk", 1)]
EXTREME_CASES += [Case("mixed", base="bce thresholded"), Case("dense", base="bce"), Case("labels", base="bce summed")]
EXTREME_CASES += [Case("mixed", weighted=True), Case("labels", "soft logits", smoothing=0.1, weighted=True)]
EXTREMES = {
    "1e4": lambda logits: logits.sign() * 1e4,
    "beside 1e4": lambda logits: logits + 1e4,
    "-inf": lambda logits: logits.masked_fill(logits < 0, -torch.inf),
    "equal": lambda logits: torch.ones_like(logits),
}


@pytest.mark.parametrize(("heads", "case", "extreme"), pairs(("students", "all"), EXTREME_CASES, EXTREMES), ids=str)
def test_extreme_logits(case: Case, extreme: str, heads: str) -> None:
    call = make_call(case, rows=3, classes=41)
    for name in ("cls_logits", "dist_logits", "teacher")[: 2 + (heads == "all")]:
        if isinstance(call[name], torch.Tensor):
            call[name] = EXTREMES[extreme](call[name].detach())
            call[name].requires_grad_(name != "teacher")
    # F.kl_div and F.cross_entropy make NaN of 0 · inf; what −inf means is specified in test_loss_reference.py.
    expected = run(in_float64(call)) if extreme == "-inf" else run_plain(call)
    assert_agree(run(call), expected, torch.float32, relative=1e-4)


@pytest.mark.parametrize("case", EXTREME_CASES[:4], ids=str)
def test_a_row_of_minus_infinity_alone_is_nan_and_no_other(case: Case) -> None:
    call = make_call(replace(case, reduction="none"), rows=3, classes=41)
    call["cls_logits"] = call["cls_logits"].detach().index_fill_(0, torch.tensor([2]), -torch.inf)
    assert distillation_loss(**call).isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_lam_of_zero_or_one_takes_nothing_from_an_infinite_logit(lam: float) -> None:
    labels, partner = torch.tensor([3, 4]), torch.tensor([5, 6])
    used, unused = (labels, partner) if lam else (partner, labels)
    logits = torch.randn(2, 10)
    logits[torch.arange(2), unused] = -torch.inf
    for loss in (cross_entropy, binary_cross_entropy):
        mixed = loss(logits, MixedTarget(labels, partner, torch.full((2,), lam)))
        torch.testing.assert_close(mixed, loss(logits, used))
        assert mixed.isfinite()


def test_a_mixed_target_moves_as_a_tensor_does() -> None:
    target = MixedTarget(torch.tensor([1]), torch.tensor([2]), torch.tensor([0.5]))
    moved = target.to("meta", non_blocking=True)
    assert isinstance(moved, MixedTarget) and {tensor.device.type for tensor in moved} == {"meta"}
    assert all(a is b for a, b in zip(target.to("cpu"), target, strict=True))


def test_the_loss_may_be_scaled_added_and_taken_twice_on_the_same_logits() -> None:
    call = make_call(Case("mixed", "soft logits"), rows=3, classes=41)
    heads = [call["cls_logits"], call["dist_logits"]]
    total = 65536 * distillation_loss(**call) + distillation_loss(**call) + heads[0].square().mean()
    got = torch.autograd.grad(total, heads)
    expected = run_plain(call, incoming=65537.0)
    expected["grad of cls"] = expected["grad of cls"] + 2 * heads[0] / heads[0].numel()
    for gradient, name in zip(got, ("grad of cls", "grad of dist"), strict=True):
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-2)


def test_a_grad_scaler_loses_nothing_in_float16() -> None:
    call = make_call(MAIN[0], rows=64, classes=1000, dtype=torch.float16)
    got, expected = run(call, incoming=65536.0), run_plain(call, incoming=65536.0)
    for name in ("grad of cls", "grad of dist"):
        error = (got[name].double() - expected[name].double()).norm() / expected[name].double().norm()
        assert error < 1e-3, name  # half-precision rounding alone is 3e-4


def padded(logits: torch.Tensor) -> torch.Tensor:
    """The same values as a slice of rows that are 8 longer, with garbage behind them."""
    wide = torch.full((logits.shape[0], logits.shape[1] + 8), torch.nan, dtype=logits.dtype)
    wide[:, : logits.shape[1]] = logits
    return wide[:, : logits.shape[1]]


def shifted(logits: torch.Tensor) -> torch.Tensor:
    """The same values at an address that is not aligned, with garbage around them."""
    wide = torch.full((logits.shape[0], logits.shape[1] + 5), torch.nan, dtype=logits.dtype)
    wide[:, 3:-2] = logits
    return wide[:, 3:-2]


LAYOUTS = {
    "padded": padded,
    "shifted": shifted,
    "transposed": lambda logits: logits.t().contiguous().t(),
    "every other row": lambda logits: logits.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize(
    ("classes", "base", "names", "layout"),
    pairs((41, 1000), ("ce", "bce"), (("cls_logits", "dist_logits", "teacher", "target"), ("teacher",)), LAYOUTS),
    ids=str,
)
def test_rows_may_have_any_stride(layout: str, names: tuple[str, ...], base: str, classes: int) -> None:
    call = make_call(Case("dense", "soft logits", base=base), rows=3, classes=classes)
    moved = call | {
        name: LAYOUTS[layout](call[name].detach()).requires_grad_(call[name].requires_grad) for name in names
    }
    assert_agree(run(moved), run(call), torch.float32)


def test_a_row_may_be_expanded_over_the_batch() -> None:
    call = make_call(Case("dense", "soft logits"), rows=3, classes=41)
    one = call["teacher"][:1]
    assert_agree(run(call | {"teacher": one.expand(3, -1)}), run(call | {"teacher": one.repeat(3, 1)}), torch.float32)


@pytest.mark.parametrize("view", [slice(1, None), slice(0, 6, 2)], ids=["unaligned", "strided"])
def test_labels_may_be_any_view(view: slice) -> None:
    call = make_call(Case("mixed", "hard labels"), rows=3, classes=41)

    def spread(vector: torch.Tensor) -> torch.Tensor:
        buffer = torch.zeros(8, dtype=vector.dtype)[view][:3]
        buffer.copy_(vector)
        return buffer

    moved = call | {"target": MixedTarget(*map(spread, call["target"])), "teacher": spread(call["teacher"])}
    assert_agree(run(moved), run(call), torch.float32)


@pytest.mark.parametrize("grad", [torch.tensor(2.0).expand(3), torch.arange(6.0)[::2]], ids=["expanded", "strided"])
def test_the_incoming_gradient_may_have_any_stride(grad: torch.Tensor) -> None:
    call = make_call(Case("mixed", "soft logits", reduction="none"), rows=3, classes=41)
    assert_agree(run(call, grad), run_plain(call, grad), torch.float32)


@pytest.mark.parametrize("case", SMOOTHED[::5], ids=str)
def test_every_run_gives_the_same_bits_and_inputs_keep_theirs(case: Case) -> None:
    call = make_call(case, rows=3, classes=401)
    tensors = [part for value in call.values() for part in (value if isinstance(value, tuple) else (value,))]
    tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
    copies = [tensor.detach().clone() for tensor in tensors]
    first, second = run(call), run(call)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("case", SMOOTHED[::5], ids=str)
def test_a_second_derivative_comes_from_the_differentiable_reference(case: Case) -> None:
    call = make_call(case, rows=3, classes=10)
    exact = in_float64(call)
    seconds = []
    for one in (call, exact):
        heads = [one[name] for name in ("cls_logits", "dist_logits") if one[name] is not None]
        gradients = torch.autograd.grad(distillation_loss(**one), heads, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in gradients)
        seconds.append(torch.autograd.grad(penalty, heads))
    for got, expected in zip(*seconds, strict=True):
        assert expected.any()
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-7)
