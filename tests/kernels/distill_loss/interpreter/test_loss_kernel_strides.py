"""The Triton kernels of the loss read every argument whatever its strides, and re-packed saved tensors."""

import pytest
import torch

from deit_kernels import distillation_loss
from tests.kernels.any_strides import assert_hooks_change_no_gradient, assert_no_layout_matters, calls_of
from tests.kernels.distill_loss.loss_cases import BINARY, Case, make_call

# NumPy computes the lanes that a mask throws away, and warns of them.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CASES = [Case("dense", "soft logits", heads=1), Case(), Case("mixed", "soft topk", reduction="none"), BINARY[2]]
CASES[1:] = [pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:]]  # a case launches 100 kernels


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_layout_of_an_argument_matters(case: Case) -> None:
    calls = calls_of(lambda: distillation_loss(**make_call(case, 2, 5)).sum().backward())
    assert [call[0]._opname for call in calls] == ["distillation_loss_forward", "distillation_loss_backward"]
    for call in calls:
        assert_no_layout_matters(call)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_saved_tensors_that_come_back_otherwise_give_the_same_gradients(case: Case) -> None:
    call = make_call(case, 3, 5)
    heads = [name for name in ("cls_logits", "dist_logits") if call[name] is not None]

    def loss(*logits: torch.Tensor) -> torch.Tensor:
        return distillation_loss(**call | dict(zip(heads, logits, strict=True)))

    assert_hooks_change_no_gradient(loss, *(call[name] for name in heads))
