"""The Triton kernels in bfloat16 and float16: the compile report's machine code for sm_80, run on the CPU.

Its faults too: planted into the machine code, each is reported by a check that is named here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from benchmarks.compiled.cases import compile_cases
from benchmarks.compiled.cases.loss import example
from benchmarks.compiled.report import BUDGET
from benchmarks.compiled.sass.launch import machine_code
from benchmarks.compiled.sass.listing import Instruction, Listing
from benchmarks.compiled.sass.memory import Fault
from deit_kernels.distill_loss import launch as loss_launch
from deit_kernels.distill_loss import reference
from deit_kernels.distill_loss.reference import LossCall
from deit_kernels.short_attention import launch
from deit_kernels.short_attention.configuration import choose
from tests.kernels.attention.accuracy import Case, assert_accurate, largest_error, random_case

other_triton = triton.__version__ != json.loads(BUDGET.read_text())["triton"]
pytestmark = [pytest.mark.proof, pytest.mark.skipif(other_triton, reason="another Triton makes other machine code")]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FEATURES, SCALE = 64, 64**-0.5
same: Callable[[Listing], Listing] = lambda listing: listing  # noqa: E731
cases = functools.cache(compile_cases)


def forward(case: Case, change: Callable[[Listing], Listing] = same) -> tuple[Tensor, Tensor, list[str]]:
    """The output, the log-sum-exp, and the compile cases that ran."""
    length = case.qkv.shape[1]
    with machine_code(cases(), 80, change) as ran:
        config = choose("forward", 80, length, FEATURES, 1 << 20, 1)
        out, lse = launch.forward(*case.qkv.unbind(2), SCALE, config)
    return out, lse, [name for name, _ in ran]


def backward(
    case: Case, out: Tensor, lse: Tensor, change: Callable[[Listing], Listing] = same
) -> tuple[Tensor, list[str]]:
    """The gradients (B, N, 3, H, D), and the compile cases that ran."""
    length = case.qkv.shape[1]
    with machine_code(cases(), 80, change) as ran:
        config = choose("backward", 80, length, FEATURES, 1 << 20, 1)
        grads, _ = launch.backward(case.grad, *case.qkv.unbind(2), out, lse, SCALE, config)
    return grads, [name for name, _ in ran]


def assert_unbiased(got: Tensor, exact: Tensor) -> None:
    """Roundings to the nearest cancel: the slope of results over exact values, but for the few largest, is 1. One that
    cuts off is seen here alone: it errs at most twice as much, which plain PyTorch's rule allows."""
    usual = exact.abs() <= 3 * exact.abs().median()
    slope = (got.double() * exact)[usual].sum() / exact[usual].square().sum()
    assert abs(slope - 1) < torch.finfo(got.dtype).eps / 16, f"results are {slope - 1:.2g} too large"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("length", "kernels"),
    [
        (50, ["forward_resident", "backward_resident"]),
        pytest.param(198, ["forward_resident", "backward_two_phase"], marks=pytest.mark.slow),
        pytest.param(578, ["forward_tiled", "delta", "backward_tiled"], marks=pytest.mark.slow),
    ],
)
def test_attention_errs_at_most_twice_as_much_as_plain_pytorch(length: int, kernels: list[str], dtype: str) -> None:
    case = random_case(1, length, 2, FEATURES, TYPES[dtype])
    given = case.qkv.clone()
    out, lse, ran = forward(case)
    grads, also_ran = backward(case, out, lse)
    assert [name.split()[0].removeprefix("attention_") for name in ran + also_ran] == kernels
    assert_accurate(case, out, grads.unbind(2))
    for got, exact in ((out, case.out), *zip(grads.unbind(2), case.grad_qkv.unbind(2), strict=True)):
        assert_unbiased(got, exact)
    logits = case.qkv[:, :, 0].double().transpose(1, 2) @ case.qkv[:, :, 1].double().permute(0, 2, 3, 1) * SCALE
    assert largest_error(lse, logits.exp().sum(-1).log2()) < 1e-5
    assert torch.equal(case.qkv, given)


def eager_loss(call: LossCall) -> list[Tensor]:
    """The loss as PyTorch computes it in the logits' type, and the gradients of the heads."""
    kind = call.cls.dtype
    heads = [head.detach().requires_grad_() for head in (call.cls, call.dist) if head is not None]
    target = reference.target_probabilities(call).to(kind)
    if call.binary:
        loss = F.binary_cross_entropy_with_logits(heads[0], target)
    else:
        loss = -(target * heads[0].log_softmax(1)).sum(1).mean()
    if call.soft:
        teacher, tau = reference.soft_teacher(call)
        log_probs = (teacher.to(kind) / tau).log_softmax(1), (heads[-1] / call.tau).log_softmax(1)
        distill = F.kl_div(log_probs[1], log_probs[0], reduction="batchmean", log_target=True) * call.tau**2
    elif call.teacher is not None:
        distill = F.cross_entropy(heads[-1], reference.teacher_labels(call))
    if call.teacher is not None:
        loss = (1 - call.alpha) * loss + call.alpha * distill
    return [loss.detach(), *torch.autograd.grad(loss, heads)]


# Every form, both types and both targets by default; their other combinations where slow tests run.
@pytest.mark.parametrize(
    ("form", "dtype", "capability"),
    [
        pytest.param(form, dtype, capability, marks=() if place % 4 == turn else pytest.mark.slow)
        for place, form in enumerate(
            ("hard mixed", "soft dense", "topk", "binary", "labels one head", "cross entropy", "binary dense")
        )
        for turn, (dtype, capability) in enumerate(itertools.product(TYPES, (80, 90)))
    ],
)
def test_the_loss_errs_at_most_twice_as_much_as_plain_pytorch(form: str, dtype: str, capability: int) -> None:
    call = example(form, 1000, TYPES[dtype])
    double = LossCall(*(v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in call))
    with machine_code(cases(), capability) as ran:
        loss, *_, statistics, count = loss_launch.forward(call)
        gradients = loss_launch.backward(torch.ones(()), statistics, count, call, True, call.dist is not None)
    assert [name.split()[0] for name, _ in ran] == ["loss_forward", "loss_mean", "loss_backward"]
    results = [loss, *(gradient for gradient in gradients if gradient is not None)]
    for got, eager, exact in zip(results, eager_loss(call), eager_loss(double), strict=True):
        ours, theirs = ((each.double() - exact).norm().item() for each in (got, eager))
        assert ours <= max(2 * theirs, 1e-6 * exact.norm().item()), (ours, theirs)  # 1e-6: a few roundings of float32
    for got, exact in zip(results[1:], eager_loss(double)[1:], strict=True):
        assert_unbiased(got, exact)


def planted(
    base: str, change: Callable[[Instruction], Instruction], places: slice = slice(None)
) -> Callable[[Listing], Listing]:
    """A change of those instructions called `base`, of all or at some places."""

    def apply(listing: Listing) -> Listing:
        found = [one for one in listing.instructions if one.base == base][places]
        assert found, base
        chosen = {one.address for one in found}
        changed = [change(one) if one.address in chosen else one for one in listing.instructions]
        return dataclasses.replace(listing, instructions=changed)

    return apply


def dropped(instruction: Instruction) -> Instruction:
    return dataclasses.replace(instruction, opcode="NOP", operands=(), guard=None)


def operand(place: int, pattern: str, new: str) -> Callable[[Instruction], Instruction]:
    def change(instruction: Instruction) -> Instruction:
        operands = list(instruction.operands)
        operands[place] = re.sub(pattern, new, operands[place])
        assert tuple(operands) != instruction.operands
        return dataclasses.replace(instruction, operands=tuple(operands))

    return change


@pytest.mark.parametrize(
    ("base", "change", "places", "report"),
    [
        ("BAR", dropped, slice(None), "no barrier between"),
        ("DEPBAR", dropped, slice(None), "a copy not waited for"),
        ("STS", dropped, slice(None), "loads what nobody stored"),
        ("STG", operand(0, r"\]", "+0x4000]"), slice(-1, None), "global memory at .* outside"),
        ("SHFL", operand(3, "0x[12]", "0x4"), slice(0, 1), "lanes store different values at one address"),
        ("LDG", operand(1, r"\]", "+-0x8000]"), slice(0, 1), "global memory at .* outside"),
    ],
    ids=["barrier", "wait", "store", "address stored", "lane", "address loaded"],
)
def test_a_planted_fault_is_reported(base: str, change: Callable, places: slice, report: str) -> None:
    with pytest.raises((Fault, IndexError), match=report):
        forward(random_case(1, 50, 2, FEATURES, torch.bfloat16), planted(base, change, places))


def test_every_barrier_of_the_backward_is_needed_but_one() -> None:
    """The ninth of twelve stands before copies that a second block of queries, the last at N = 50, does not make."""
    case = random_case(1, 50, 2, FEATURES, torch.bfloat16)
    out, lse, _ = forward(case)
    silent = []
    for place in range(12):
        with contextlib.suppress(Fault):
            backward(case, out, lse, planted("BAR", dropped, slice(place, place + 1)))
            silent.append(place)
    assert silent == [8]


def test_a_matrix_in_wrong_lanes_is_an_error_larger_than_allowed() -> None:
    case = random_case(1, 50, 2, FEATURES, torch.bfloat16)
    turned = lambda one: dataclasses.replace(one, opcode=one.opcode.replace(".M88", ".MT88"))  # noqa: E731
    out, lse, _ = forward(case, planted("LDSM", turned, slice(0, 1)))
    grads, _ = backward(case, out, lse)
    with pytest.raises(AssertionError, match=r"output: error .* against float64"):
        assert_accurate(case, out, grads.unbind(2))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_rounding_towards_0_is_a_bias(dtype: str) -> None:
    """The fault is planted into the output alone, and into the probabilities alone."""
    case = random_case(1, 50, 2, FEATURES, TYPES[dtype])
    packed = len([one for one in _listing(case).instructions if one.base == "F2FP"])
    cut = lambda one: dataclasses.replace(one, opcode=one.opcode.replace("F2FP", "F2FP.RZ"))  # noqa: E731
    assert_unbiased(forward(case)[0], case.out)
    for places in (slice(0, packed // 2), slice(packed // 2, None)):
        out, _, _ = forward(case, planted("F2FP", cut, places))
        with pytest.raises(AssertionError, match="too large"):
            assert_unbiased(out, case.out)


def _listing(case: Case) -> Listing:
    seen = []
    forward(case, lambda listing: seen.append(listing) or listing)
    return seen[0]


def test_a_launch_that_the_report_does_not_have_is_refused() -> None:
    case = random_case(1, 50, 2, FEATURES, torch.bfloat16)
    config = dataclasses.replace(choose("forward", 80, 50, FEATURES, 1 << 20, 1), block_m=32)
    with machine_code(cases(), 80), pytest.raises(LookupError, match="attention_forward_resident for sm_80"):
        launch.forward(*case.qkv.unbind(2), SCALE, config)
