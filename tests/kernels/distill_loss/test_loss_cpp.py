"""The C++ of CPU tensors: that it runs, that it does what the reference does, and in whose words it refuses."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deit_kernels import MixedTarget, TopK, _extension, binary_cross_entropy, cross_entropy, distillation_loss
from deit_kernels.distill_loss import checks, reference
from deit_kernels.distill_loss.checks import distillation_call
from deit_kernels.distill_loss.reference import LossCall
from tests.kernels.distill_loss.loss_cases import (
    BASES,
    BINARY,
    TARGETS,
    TEACHERS,
    WEIGHTED_KINDS,
    Case,
    assert_agree,
    full_options,
    make_call,
    product,
    run,
    run_plain,
    thorough,
)

pytestmark = pytest.mark.skipif(_extension.cpu_missing is not None, reason=f"{_extension.cpu_missing}")

KINDS = product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), smoothing=(0.1,)) + BINARY + WEIGHTED_KINDS
HALVES = (torch.float16, torch.bfloat16)
OPS = torch.ops.deit_kernels


def loss_call(call: dict) -> LossCall:
    """The arguments of the ops beneath a call of the public function, without gradients."""
    arguments = distillation_call(**full_options(call))
    return LossCall(*(value.detach() if isinstance(value, Tensor) else value for value in arguments))


def both_passes(call: LossCall, grad: Tensor) -> list[Tensor]:
    """Everything that the two ops return."""
    results = OPS.distillation_loss_forward(*call)
    needs = call.cls is not None, call.dist is not None
    return [*results, *OPS.distillation_loss_backward(grad, *results[3:], *call, *needs)]


def both_passes_of_the_reference(call: LossCall, grad: Tensor) -> list[Tensor]:
    results = reference.forward(call)
    gradients = reference.backward(grad, *results[3:], call, call.cls is not None, call.dist is not None)
    return [*results, *(results[3].new_empty(0) if gradient is None else gradient for gradient in gradients)]


def test_float32_runs_cpp_and_float64_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def asked(*_: object) -> None:
        raise Asked

    monkeypatch.setattr(reference, "forward", asked)
    monkeypatch.setattr(reference, "backward", asked)
    for dtype in (torch.float32, *HALVES):
        run(make_call(Case("mixed", "soft logits"), 3, 10, dtype))
        cross_entropy(torch.zeros(3, 10, dtype=dtype), torch.arange(3))
    with pytest.raises(RuntimeError):
        distillation_loss(**make_call(Case(), 3, 10, torch.float64))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", thorough(KINDS), ids=str)
def test_everything_is_what_the_reference_returns(case: Case, reduction: str) -> None:
    for classes in (2, 15, 16, 41):
        call = loss_call(make_call(case, rows=4, classes=classes) | {"reduction": reduction})
        grad = torch.tensor(2.5) if call.mean else torch.tensor([1.0, 2.0, 3.0, 0.0])
        got, expected = both_passes(call, grad), both_passes_of_the_reference(call, grad)
        expected[3][expected[3][:, reference.ROW_WEIGHT] == 0] = 0  # of a row that is ignored nothing is saved
        if not case.teacher.startswith("soft"):
            expected[3][:, reference.TEACHER_REST] = 0
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


SPECIAL = (torch.nan, torch.inf, -torch.inf, 1e4, -1e4, 0.0)


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("names", [("cls",), ("dist",), ("teacher",), ("cls", "dist", "teacher")], ids=str)
@pytest.mark.parametrize("case", thorough(
    product(target=TARGETS, teacher=("hard logits", "soft logits"), smoothing=(0.0, 0.1))
    + product(target=TARGETS, smoothing=(0.1,), base=BASES)
    + product(target=TARGETS, smoothing=(0.0, 0.1), base=("ce", "bce"), weighted=(True,))
), ids=str)  # fmt: skip
def test_special_logits_do_what_they_do_in_the_reference(case: Case, names: tuple[str, ...], special: float) -> None:
    for classes in (5, 41):
        call = loss_call(make_call(case, rows=6, classes=classes) | {"reduction": "none"})
        generator = torch.Generator().manual_seed(1)
        for name in names:
            logits = getattr(call, name)
            for row in range(6):  # nowhere, in one place, in some places, everywhere
                few = torch.rand(classes, generator=generator) < (0.0, 0.0, 0.2, 0.5, 0.9, 1.0)[row]
                few[row % classes] |= row > 0
                logits[row, few] = special
        got, expected = (run_one(call, torch.ones(6)) for run_one in (both_passes, both_passes_of_the_reference))
        for ours, theirs in zip((*got[:3], *got[5:]), (*expected[:3], *expected[5:]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("classes", [5, 41])
@pytest.mark.parametrize("below", [10.0, 87.0, 88.0, 95.0, 100.0, 102.5, 110.0])
def test_a_teachers_smallest_probabilities_count_as_in_the_reference(below: float, classes: int) -> None:
    call = loss_call(make_call(Case("dense", "soft logits", reduction="none"), rows=4, classes=classes))
    call = call._replace(tau=1.0, teacher=torch.full((4, classes), -torch.inf))
    call.teacher[:, 0] = 0.0
    call.teacher[:, 2] = -below
    call.dist[1, 2] = -torch.inf  # costs infinity as long as the teacher's probability is above 0
    call.dist[2, 2] = -1e38  # costs 1e38 times that probability
    call.dist[3, 1] = -torch.inf
    got, expected = (run_one(call, torch.ones(4)) for run_one in (both_passes, both_passes_of_the_reference))
    assert expected[2].isinf().tolist() == [False, below < 110, False, False]
    for ours, theirs in zip((*got[:3], *got[5:]), (*expected[:3], *expected[5:]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5 if below < 87 else 0.5, atol=1e-6, equal_nan=True)


def test_exponentials_below_the_smallest_normal_number_are_those_of_the_reference() -> None:
    logits = torch.tensor([[0.0, -80.0, -88.0, -92.0, -96.0, -100.0, -103.0, -104.5, -200.0]], requires_grad=True)
    for loss in (
        cross_entropy(logits, torch.tensor([0])),
        binary_cross_entropy(logits, torch.tensor([0]), sum_classes=True),
    ):
        (gradient,) = torch.autograd.grad(loss, logits)
        expected = logits.detach()[0, 1:].double().exp()
        torch.testing.assert_close(gradient[0, 1:].double(), expected, rtol=1e-6, atol=1.5 * 2.0**-149)
        assert gradient[0, 1:7].all() and not gradient[0, 7:].any()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("classes", [1, 10, 100])
def test_halves_are_read_and_written_as_torch_converts_them(dtype: torch.dtype, classes: int) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)  # with denormals, infinities and NaN
    logits, target = every[: 65536 // classes * classes].view(-1, classes), torch.zeros(65536 // classes).long()
    scales = torch.logspace(-9, 9, len(target))  # gradients that underflow and that overflow
    losses, gradients = [], []
    for head in (logits.clone(), logits.float()):
        loss = cross_entropy(head.requires_grad_(), target, reduction="none")
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, head, scales)[0].to(dtype))
    for ours, theirs in (losses, gradients):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_tensors_of_one_call_may_have_different_types() -> None:
    call = make_call(Case("mixed", "soft topk"), rows=4, classes=41)
    teacher, target = call["teacher"], call["target"]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        moved = call | {"teacher": TopK(teacher.indices, teacher.probs.to(dtype), teacher.tau)}
        moved["target"] = MixedTarget(target.labels, target.partner_labels, target.lam.to(dtype))
        assert_agree(run(moved), run_plain(moved), torch.float32)
    call = make_call(Case("dense", "soft logits"), rows=4, classes=41)
    types = {"cls_logits": torch.float16, "dist_logits": torch.bfloat16, "teacher": torch.float64,
             "target": torch.float16}  # fmt: skip
    moved = {
        name: call[name].detach().to(dtype).requires_grad_(name.endswith("logits")) for name, dtype in types.items()
    }
    got, expected = run(call | moved), run_plain(call | moved)
    assert [got[f"grad of {name}"].dtype for name in ("cls", "dist")] == [torch.float16, torch.bfloat16]
    assert_agree(got, expected, torch.bfloat16)


@pytest.mark.parametrize("case", KINDS[::3], ids=str)
def test_any_number_of_threads_gives_the_same_bits(case: Case) -> None:
    call = make_call(case, rows=301, classes=401)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            results.append(run(call))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


NUMBERS = (
    1.5,
    -0.1,
    1.0000001,
    1 + 1e-12,
    -1e-7,
    -1e-60,
    1e-5,
    -0.0001,
    123456.789,
    1e15,
    1e16,
    3e38,
    math.inf,
    -math.inf,
    math.nan,
)


def refusals() -> dict[str, LossCall]:
    """Calls whose values are refused, one for each sentence and for each way to write a number."""
    calls = {}
    labels, topk = torch.arange(4), torch.tensor([[0, 5], [1, 2], [3, 4], [2, 0]])

    def add(name: str, **changes: object) -> None:
        kind = "soft topk" if "teacher_probs" in changes else "hard labels"
        call = loss_call(make_call(Case("mixed", kind), rows=4, classes=10))
        calls[name] = call._replace(**{"target": labels, "partner": labels, "lam": torch.full((4,), 0.5)} | changes)

    for label in (10, -1, 2**40, -(2**63)):
        bad = torch.tensor([0, 1, label, label])
        add(f"target {label}", target=bad)
        add(f"plain target {label}", target=bad, partner=None, lam=None)
        add(f"partner {label}", partner=bad)
        add(f"teacher {label}", teacher=bad)
        add(f"index {label}", teacher=topk.clone().index_fill_(1, torch.tensor([1]), label), teacher_probs=topk / 10)
    add("several", target=torch.tensor([0, 1, 2, 99]), partner=torch.tensor([77, 0, 0, 0]), lam=torch.full((4,), 2.0))
    add("an ignored row", target=torch.tensor([-100, 1, 2, 3]), lam=torch.tensor([5.0, 0.5, 7.0, 0.5]))
    add("twice", teacher=topk.clone().index_fill_(0, torch.tensor([2]), 7), teacher_probs=topk / 10)
    add("weights of 0", weight=torch.zeros(10))
    add("weights first", target=torch.tensor([0, 1, 99, 3]), weight=torch.tensor([1.0] * 9 + [-3.0]))
    for number in NUMBERS:
        for dtype in (torch.float64, torch.float32, *HALVES):
            add(f"lam {number} {dtype}", lam=torch.tensor([0.5, 1.0, number, 0.5], dtype=torch.float64).to(dtype))
            probs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, number], [0.1, 0.2]], dtype=torch.float64).to(dtype)
            add(f"probs {number} {dtype}", teacher=topk, teacher_probs=probs)
            weight = torch.ones(10, dtype=torch.float64).index_fill_(0, torch.tensor(7), number).to(dtype)
            add(f"weight {number} {dtype}", weight=weight)
    return calls


REFUSALS = refusals()


@pytest.mark.parametrize("name", REFUSALS)
def test_values_are_refused_in_pythons_words(name: str) -> None:
    call = REFUSALS[name]
    try:
        checks.check_values(call)
    except ValueError as error:
        for wide in (call, call._replace(cls=call.cls.double())):
            with pytest.raises(ValueError) as caught:
                OPS.distillation_loss_forward(*wide)
            assert str(caught.value) == str(error)
    else:
        # In a type where it is in [0, 1], or a weight of a class.
        assert name.startswith("weight") or name.split()[1] in ("1.0000001", "1.000000000001", "-1e-60", "1e-05")
        OPS.distillation_loss_forward(*call)


NONSENSE = {
    "no logits": {"cls": None, "dist": None},
    "logits of three dimensions": {"cls": torch.zeros(4, 10, 1)},
    "integers": {"cls": torch.zeros(4, 10, dtype=torch.int32)},
    "no classes": {"cls": torch.zeros(4, 0), "dist": None},
    "another number of classes": {"dist": torch.zeros(4, 11)},
    "another number of rows": {"target": torch.zeros(3, dtype=torch.int64)},
    "labels of int32": {"partner": torch.zeros(4, dtype=torch.int32)},
    "lam without a partner": {"partner": None},
    "a partner without lam": {"lam": None},
    "a target that is not there": {"target": None},
    "soft labels": {"soft": True},
    "weights of other classes": {"weight": torch.ones(11)},
    "weights that are integers": {"weight": torch.ones(10, dtype=torch.int64)},
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_what_does_not_fit_together_is_a_value_error_beneath_the_public_functions_too(name: str) -> None:
    call = loss_call(make_call(Case("mixed", "hard labels"), rows=4, classes=10))
    with pytest.raises(ValueError):
        OPS.distillation_loss_forward(*call._replace(**NONSENSE[name]))


def test_backward_refuses_statistics_gradients_and_needs_that_are_not_its_own() -> None:
    call = loss_call(make_call(Case("labels"), rows=4, classes=10))
    grad, (_, _, _, statistics, count) = torch.tensor(1.0), OPS.distillation_loss_forward(*call)
    for bad in (
        (grad, statistics[:3], count, *call, True, True),
        (grad, statistics.double(), count, *call, True, True),
        (torch.ones(4), statistics, count, *call, True, True),
        (grad, statistics, count, *call._replace(alpha=1.0), True, True),
        (grad, statistics, count, *call._replace(dist=None), True, True),
    ):
        with pytest.raises(ValueError):
            OPS.distillation_loss_backward(*bad)


def test_backward_writes_nowhere_else_when_labels_have_changed_since() -> None:
    call = loss_call(make_call(Case("mixed", "hard labels"), rows=4, classes=10))
    grad, (_, _, _, statistics, count) = torch.tensor(1.0), OPS.distillation_loss_forward(*call)
    statistics[0, reference.TEACHER_LABEL] = 1e30
    moved = call._replace(target=torch.full((4,), 2**40), partner=torch.full((4,), -5))
    assert not any(
        gradient.any() for gradient in OPS.distillation_loss_backward(grad, statistics, count, *moved, True, True)
    )
    OPS.distillation_loss_backward(grad, statistics, count, *call, True, True)


def test_an_empty_batch_has_empty_gradients() -> None:
    call = loss_call(make_call(Case("labels"), rows=0, classes=10))
    *_, grad_cls, grad_dist = both_passes(call, torch.tensor(1.0))
    assert grad_cls.shape == grad_dist.shape == (0, 10)


PROGRAM = """
import logging, torch
logging.basicConfig(level=logging.INFO, format="%(message)s")
from deit_kernels import cross_entropy
logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
loss = cross_entropy(logits, torch.tensor([1]))
loss.backward()
print(round(loss.item(), 4), *(round(g, 4) for g in logits.grad[0].tolist()))
"""
EXPECTED = "1.4076 0.09 -0.7553 0.6652\n"


@pytest.mark.parametrize("state", ["missing", "older"])
def test_without_the_extension_the_reference_runs_and_says_why(state: str, tmp_path: Path) -> None:
    package = Path(_extension.__file__).parent
    left_out = ("__pycache__", *(("*.so",) if state == "missing" else ()))
    shutil.copytree(package, tmp_path / "deit_kernels", ignore=shutil.ignore_patterns(*left_out))
    if state == "older":
        loader = tmp_path / "deit_kernels" / "_extension.py"
        now, later = (f"INTERFACE = {_extension.INTERFACE + more}\n" for more in (0, 1))
        loader.write_text(loader.read_text().replace(now, later))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == EXPECTED
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("distillation_loss runs plain PyTorch")]
    assert {"missing": "the extension is not built", "older": "older than its Python code"}[state] in said
    assert "pip install -e ./kernels" in said
