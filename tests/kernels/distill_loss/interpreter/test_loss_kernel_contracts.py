"""What the kernels promise beyond their numbers: strides, bad values, determinism, untouched inputs, launches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from deit_kernels import MixedTarget, TopK, distillation_loss
from deit_kernels.distill_loss import kernels, launch, reference
from deit_kernels.distill_loss.checks import distillation_call
from deit_kernels.distill_loss.launch import Tiling, backward_operands, choose_tiling, operands
from deit_kernels.distill_loss.reference import LossCall
from tests.kernels.distill_loss.loss_cases import (
    BINARY,
    TARGETS,
    TEACHERS,
    WEIGHTED_KINDS,
    Case,
    full_options,
    in_float64,
    make_call,
    product,
    run,
    thorough,
)

# NumPy computes the lanes that a mask throws away, and warns of them.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

KINDS = product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), smoothing=(0.1,)) + BINARY[::5] + WEIGHTED_KINDS[::2]


def loss_call(call: dict) -> LossCall:
    """The arguments of the ops beneath a call of the public function."""
    return distillation_call(**full_options(call))


def both_passes(call: dict, tiling: Tiling | None = None) -> list[torch.Tensor]:
    """Everything the two kernels write, launched without the value checks that a CPU tensor gets."""
    arguments = loss_call(call)
    *results, statistics, count = launch.forward(arguments, tiling)
    grad = torch.ones(results[0].shape)
    need_dist = arguments.dist is not None
    gradients = launch.backward(grad, statistics, count, arguments, True, need_dist, tiling)
    return [*results, *(gradient for gradient in gradients if gradient is not None)]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every buffer that the launcher allocates is full of NaN, so an element that is not written shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(torch.nan))


@pytest.mark.parametrize("case", thorough(KINDS), ids=str)
def test_every_output_is_written_and_what_is_saved_is_the_references(case: Case, poisoned: None) -> None:
    call = make_call(case, rows=3, classes=41)
    assert not any(result.isnan().any() for result in both_passes(call))
    arguments = loss_call(call)
    used = [reference.CLS_MAX, reference.CLS_REST, reference.DIST_MAX, reference.DIST_REST, reference.TEACHER_MAX,
            reference.TARGET_SUM, reference.ROW_WEIGHT] + [reference.TEACHER_REST] * arguments.soft  # fmt: skip
    used += [reference.TARGET_WEIGHT] * (arguments.weight is not None)
    got, expected = launch.forward(arguments), reference.forward(arguments)
    assert not got[3].isnan().any()
    counts = expected[3][:, reference.ROW_WEIGHT] != 0
    torch.testing.assert_close(got[3][counts][:, used], expected[3][counts][:, used])
    torch.testing.assert_close(got[3][:, reference.ROW_WEIGHT], expected[3][:, reference.ROW_WEIGHT])
    torch.testing.assert_close(got[4], expected[4])


@pytest.mark.parametrize(
    ("case", "classes"),
    [(case, (41, 48)[number % 2]) for number, case in enumerate(KINDS[::6])]
    + [pytest.param(case, classes, marks=pytest.mark.slow) for case in KINDS[::5] for classes in (41, 48, 1000, 1271)],
    ids=str,
)
def test_a_loop_over_tiles_and_an_edge_give_what_one_tile_gives(case: Case, classes: int) -> None:
    call = make_call(case, rows=9, classes=classes)  # 9 rows: an odd C then starts at every place modulo 8
    expected = both_passes(call)
    block = 16 if classes < 100 else 256
    tilings = [Tiling(block, 1, False), Tiling(block, 1, True)] + [Tiling(block, 8, False)] * (classes % 8 == 0)
    for tiling in tilings:
        for got, whole in zip(both_passes(call, tiling), expected, strict=True):
            torch.testing.assert_close(got, whole, rtol=2e-5, atol=1e-6, msg=lambda m, t=tiling: f"{t}: {m}")


def test_the_first_tile_of_a_loop_may_be_all_minus_infinity() -> None:
    call = make_call(Case("dense", "soft logits", smoothing=0.0), rows=3, classes=200)
    for name in ("cls_logits", "dist_logits", "teacher"):
        call[name] = call[name].detach().clone()
        call[name][:, :128] = -torch.inf
        call[name].requires_grad_(name != "teacher")
    call["target"][:, :128] = 0
    for got, whole in zip(both_passes(call, Tiling(64, 8, False)), both_passes(call), strict=True):
        torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-6)
        assert got.isfinite().all()


def test_a_teachers_vanishing_probability_takes_nothing_from_a_tile_of_minus_infinity() -> None:
    call = make_call(Case("dense", "soft logits", alpha=1.0), rows=3, classes=200)
    call["dist_logits"] = call["dist_logits"].detach()
    call["dist_logits"][:, :64] = -torch.inf
    call["dist_logits"].requires_grad_()
    call["teacher"][:, :64] = -1e4
    expected = run(in_float64(call))
    assert expected["loss"].isfinite()
    torch.testing.assert_close(both_passes(call, Tiling(64, 8, False))[0].double(), expected["loss"], rtol=1e-5, atol=0)


def mixed(partner: list[int], lam: list[float]) -> dict:
    """Four rows of a MixedTarget."""
    return {"target": MixedTarget(torch.arange(4), torch.tensor(partner), torch.tensor(lam))}


BAD_VALUES = {
    "label of C": {"target": torch.tensor([0, 1, 41, 3])},
    "label of 2**40": {"target": torch.tensor([0, 1, 2**40, 3])},
    "label of -1": {"target": torch.tensor([0, 1, -1, 3])},
    "partner": mixed([0, 1, 99, 3], [0.5, 0.5, 0.5, 0.5]),
    "lam": mixed([0, 1, 2, 3], [0.5, 0.5, 1.5, 0.5]),
    "lam of NaN": mixed([0, 1, 2, 3], [0.5, 0.5, torch.nan, 0.5]),
    "teacher label": {"teacher": torch.tensor([0, 1, -7, 3])},
    "TopK class": {"mode": "soft", "tau": 1.0, "kl_normalizer": "batch", "teacher_smoothing": 0.0,
                   "teacher": TopK(torch.tensor([[0, 1], [0, 1], [0, 41], [0, 1]]), torch.full((4, 2), 0.25), 1.0)},
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_VALUES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_on_a_gpu_a_value_that_cannot_be_right_makes_its_row_nan_and_no_other(bad: str, reduction: str) -> None:
    # The public function refuses such a CPU tensor; what the kernels do with one is what a GPU tensor gets.
    call = make_call(Case(reduction=reduction), rows=4, classes=41) | {"target": torch.arange(4)} | BAD_VALUES[bad]
    loss, _, _, *gradients = both_passes(call)
    only_row_2 = [False, False, True, False]
    assert loss.isnan().tolist() == (only_row_2 if reduction == "none" else True)
    for gradient in gradients:
        assert gradient.isnan().any(1).tolist() == only_row_2
        assert gradient.isnan().all(1).tolist() == only_row_2


def test_a_row_that_is_ignored_gets_zeros_whatever_it_holds() -> None:
    call = make_call(Case(teacher="hard labels", reduction="none"), rows=4, classes=41)
    with torch.no_grad():
        call["cls_logits"][1] = torch.nan
        call["dist_logits"][1] = torch.inf
    call["teacher"][1] = 10**9
    loss, base, distill, *gradients = both_passes(call)
    assert loss[1] == base[1] == distill[1] == 0
    assert not gradients[0][1].any() and not gradients[1][1].any()
    assert all(result.isfinite().all() for result in (loss, *gradients))


def test_a_batch_of_ignored_rows_and_an_empty_batch_give_a_nan_mean_and_no_gradient() -> None:
    call = make_call(Case(), rows=3, classes=10) | {"target": torch.full((3,), -100)}
    loss, *_, grad_cls, grad_dist = both_passes(call)
    assert loss.isnan() and not grad_cls.any() and not grad_dist.any()
    assert distillation_loss(torch.zeros(0, 10), None, torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64)).isnan()


def test_ties_nans_and_empty_rows_of_a_hard_teacher() -> None:
    teacher = torch.zeros(4, 41)
    teacher[0, [7, 30]] = 2.0
    teacher[1] = -torch.inf
    teacher[2, 11] = torch.nan
    teacher[3, 40] = torch.inf
    call = make_call(Case(reduction="none"), rows=4, classes=41) | {"teacher": teacher, "target": torch.arange(4)}
    for tiling in (None, Tiling(16, 1, True)):
        loss = both_passes(call, tiling)[0]
        statistics = launch.forward(loss_call(call), tiling)[3]
        assert statistics[[0, 1, 3], reference.TEACHER_LABEL].tolist() == [7, 0, 40]
        assert loss.isnan().tolist() == [False, False, True, False]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each kernel was launched."""
    counts: Counter = Counter()

    class Counted:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(kernels, name)

        def __getitem__(self, grid: tuple[int, ...]):
            counts[self.name] += 1
            return self.kernel[grid]

    for name in ("forward_kernel", "mean_kernel", "backward_kernel"):
        monkeypatch.setattr(kernels, name, Counted(name))
    return counts


@pytest.mark.parametrize(
    ("case", "reduction"), [(case, ("mean", "none")[number % 2]) for number, case in enumerate(KINDS[::4])], ids=str
)
def test_at_most_two_launches_forward_and_one_backward(case: Case, reduction: str, launches: Counter) -> None:
    loss = distillation_loss(**make_call(case, rows=3, classes=41) | {"reduction": reduction}, return_parts=True)[0]
    assert launches == Counter(forward_kernel=1, mean_kernel=1) if reduction == "mean" else Counter(forward_kernel=1)
    launches.clear()
    loss.sum().backward()
    assert launches == Counter(backward_kernel=1)


@pytest.mark.parametrize("rows", [1, 257, 4096, 4097, 70_001])
def test_the_mean_of_many_rows_takes_two_launches_and_the_same_bits_every_time(rows: int, launches: Counter) -> None:
    generator = torch.Generator().manual_seed(rows)
    base, distill = torch.rand(2, rows, generator=generator)
    statistics = torch.ones(rows, reference.STATISTICS)
    ignored = torch.rand(rows, generator=generator) < 0.3
    ignored[0] = False
    statistics[ignored, reference.ROW_WEIGHT] = base[ignored] = distill[ignored] = 0
    count = torch.full((), torch.nan)
    loss, *terms = launch.mean(LossCall(alpha=0.3), base, distill, statistics, count)
    assert launches == Counter(mean_kernel=1 if rows <= 4096 else 2)
    assert count == (~ignored).sum()
    exact = [float(each.double().sum() / count) for each in (base, distill)]
    torch.testing.assert_close([loss, *terms], [torch.tensor(x) for x in (0.7 * exact[0] + 0.3 * exact[1], *exact)],
                               rtol=5e-7, atol=0)  # fmt: skip
    again = launch.mean(LossCall(alpha=0.3), base, distill, statistics, count)
    assert all(torch.equal(one, other) for one, other in zip((loss, *terms), again, strict=True))


def test_what_is_not_used_is_not_given_to_the_kernels() -> None:
    call = make_call(Case("dense", alpha=0.0), rows=3, classes=10) | {"return_parts": False}
    given = operands(loss_call(call))
    assert given.distill == "none" and given.student is None and given.teacher is None
    call = make_call(Case("dense", alpha=1.0), rows=3, classes=10) | {"return_parts": False}
    given = operands(loss_call(call))
    assert given.cls is None and given.dense is None and given.target == "none"
    hard = backward_operands(loss_call(make_call(Case(), rows=3, classes=10)), base=True, distill=True)
    assert hard.teacher is None and hard.distill == "labels"
    frozen = backward_operands(loss_call(make_call(Case("dense"), rows=3, classes=10)), base=False, distill=True)
    assert frozen.cls is None and frozen.dense is None


def test_a_head_without_gradient_costs_no_backward(launches: Counter) -> None:
    call = make_call(Case(), rows=3, classes=10)
    call["cls_logits"] = call["cls_logits"].detach()
    distillation_loss(**call).backward()
    assert call["dist_logits"].grad is not None and launches["backward_kernel"] == 1


@pytest.mark.parametrize(
    "classes, step, edge", [(1000, 8, False), (21840, 8, False), (21841, 1, True), (401, 1, False)]
)
def test_the_widest_loads_that_the_strides_allow_are_chosen(classes: int, step: int, edge: bool) -> None:
    call = loss_call(make_call(Case(), rows=3, classes=classes))
    tiling = choose_tiling(call, operands(call), gradients=False)
    assert (tiling.step, tiling.edge) == (step, edge)
    assert choose_tiling(call, backward_operands(call, True, True), gradients=True) == tiling
