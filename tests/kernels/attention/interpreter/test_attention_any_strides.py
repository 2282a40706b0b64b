"""The Triton attention kernels read every argument whatever its strides, and saved tensors that come back re-packed."""

import pytest
import torch
from torch import Tensor

from deit_kernels import attention, attention_qkvpacked
from deit_kernels.short_attention import launch
from deit_kernels.short_attention.configuration import Config
from tests.kernels.any_strides import assert_hooks_change_no_gradient, assert_no_layout_matters, calls_of

BACKWARDS = [Config("resident", 32, 0, 4, 2), Config("two_phase", 64, 32, 4, 2), Config("tiled", 64, 32, 4, 2)]


@pytest.fixture(params=BACKWARDS, ids=lambda config: config.form)
def backward_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = launch.choose
    monkeypatch.setattr(launch, "choose", lambda way, *args: request.param if way == "backward" else choose(way, *args))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).half()


def test_no_layout_of_an_argument_matters(backward_form) -> None:
    qkv = random(1, 70, 3, 2, 16).requires_grad_()
    calls = calls_of(lambda: attention_qkvpacked(qkv).float().square().sum().backward())
    assert [call[0]._opname for call in calls] == ["attention_forward", "attention_backward"]
    for call in calls:
        assert_no_layout_matters(call)


def test_saved_tensors_that_come_back_otherwise_give_the_same_gradients(backward_form) -> None:
    assert_hooks_change_no_gradient(attention, *(random(1, 2, 70, 16) for _ in range(3)))
    assert_hooks_change_no_gradient(attention_qkvpacked, random(1, 70, 3, 2, 16))


def test_and_so_at_deits_own_length() -> None:
    assert_hooks_change_no_gradient(attention, *(random(1, 2, 198, 16) for _ in range(3)))
