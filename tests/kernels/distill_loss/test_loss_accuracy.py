"""Beside plain PyTorch: how far the public functions and the reference are from float64. `interpreter/` runs it too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deit_kernels import binary_cross_entropy, cross_entropy, kl_divergence
from deit_kernels.dispatch import INTERPRETING
from deit_kernels.distill_loss import reference
from deit_kernels.distill_loss.reference import LossCall


def by_reference(call: LossCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of the student's logits, computed by the reference in the logits' type."""
    loss, _, _, statistics, count = reference.forward(call)
    need_dist = call.dist is not None
    gradients = reference.backward(torch.ones_like(loss), statistics, count, call, not need_dist, need_dist)
    return loss, gradients[need_dist]


def by_the_public_function(call: LossCall) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, computed by what runs beneath `cross_entropy` and `kl_divergence`."""
    logits = call.logits.detach().requires_grad_()
    if call.soft:
        loss = kl_divergence(logits, call.teacher, tau=call.tau)
    elif call.binary:
        loss = binary_cross_entropy(logits, call.target, label_smoothing=call.label_smoothing)
    else:
        loss = cross_entropy(logits, call.target, label_smoothing=call.label_smoothing)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def by_torch(call: LossCall) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by F.cross_entropy, F.binary_cross_entropy_with_logits and F.kl_div."""
    logits = call.logits.detach().requires_grad_()
    if call.soft:
        student, teacher = (F.log_softmax(each / call.tau, dim=1) for each in (logits, call.teacher))
        loss = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * call.tau**2
    elif call.binary:
        loss = F.binary_cross_entropy_with_logits(logits, reference.target_probabilities(call))
    else:
        loss = F.cross_entropy(logits, call.target, label_smoothing=call.label_smoothing)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def one_head(
    logits: torch.Tensor, target: torch.Tensor, tau: float = 0.0, smoothing: float = 0.0, binary: bool = False
) -> LossCall:
    """A cross-entropy, or at a temperature a divergence."""
    head = {"cls": None, "dist": logits, "teacher": target, "target": None} if tau else {
        "cls": logits, "dist": None, "teacher": None, "target": target
    }  # fmt: skip
    return LossCall(
        **head, teacher_probs=None, partner=None, lam=None, soft=tau > 0, alpha=float(tau > 0), tau=tau or 1.0,
        numel=False, label_smoothing=smoothing, teacher_smoothing=0.0, ignore_index=-100, mean=True, binary=binary,
    )  # fmt: skip


def in_double(call: LossCall) -> LossCall:
    return LossCall(*(v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in call))


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


DRAWN = {
    "labels": lambda x, other, labels: one_head(x, labels),
    "labels, smoothed": lambda x, other, labels: one_head(x, labels, smoothing=0.1),
    "the likeliest class": lambda x, other, labels: one_head(x, x.argmax(1)),
    "probabilities": lambda x, other, labels: one_head(x, other.softmax(1)),
    "binary labels": lambda x, other, labels: one_head(x, labels, binary=True),
    "binary labels, smoothed": lambda x, other, labels: one_head(x, labels, smoothing=0.1, binary=True),
    "the right signs": lambda x, other, labels: one_head(x, (x > 0).float(), binary=True),
    "binary probabilities": lambda x, other, labels: one_head(x, other.sigmoid(), binary=True),
    "divergence": lambda x, other, labels: one_head(x, other, tau=1.0),
    "divergence, tau 3": lambda x, other, labels: one_head(x, other, tau=3.0),
    "divergence of neighbours": lambda x, other, labels: one_head(x, x + 0.01 * other, tau=1.0),
}
IMPLEMENTATIONS = {"public": by_the_public_function} | ({} if INTERPRETING else {"reference": by_reference})


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows, classes, scale", [(1, 2, 4.0), (1, 10, 1.0), (1, 10, 8.0), (8, 100, 1.0)])
@pytest.mark.parametrize("drawn", DRAWN)
def test_the_error_is_at_most_twice_that_of_plain_pytorch(
    drawn: str, rows: int, classes: int, scale: float, implementation: str
) -> None:
    squares = torch.zeros(2, 2, dtype=torch.float64)  # ours and theirs; of the loss and of the gradient
    draws = 10 if INTERPRETING else 60
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        x, other = scale * torch.randn(2, rows, classes, generator=generator)
        call = DRAWN[drawn](x, other, torch.randint(classes, (rows,), generator=generator))
        exact = by_torch(in_double(call))
        for side, run_one in enumerate((IMPLEMENTATIONS[implementation], by_torch)):
            for part, (got, true) in enumerate(zip(run_one(call), exact, strict=True)):
                squares[side, part] += relative_error(got, true) ** 2
    ours, theirs = squares.sqrt()
    # One draw's error is luck: the root mean square over the draws is compared. Below a rounding nothing is demanded.
    assert (ours <= (2 * theirs).clamp_min(1e-7 * draws**0.5)).all(), (ours, theirs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("ahead", [0.0, 1.0, 4.0, 8.0, 15.0, 30.0])
def test_a_gradient_that_nearly_cancels_keeps_its_digits(ahead: float, implementation: str) -> None:
    labels, sure = torch.tensor([0]), torch.tensor([[ahead, 0.0]])
    teacher = torch.tensor([[ahead + 1.0, 0.0]])
    signs = one_head(torch.tensor([[ahead, -ahead]]), labels, binary=True)
    for call in (one_head(sure, labels), one_head(sure, teacher, tau=1.0), signs):
        exact, got = by_reference(in_double(call))[1], IMPLEMENTATIONS[implementation](call)[1]
        # A kernel takes e^−x as 2 to the power of a rounded x · log₂ e, which is off by up to x roundings.
        torch.testing.assert_close(got.double(), exact, rtol=1e-6 + ahead * 2**-24, atol=0)
