"""Every op of deit_kernels gives the same bits for the same values, however they lie in memory, or refuses the layout.

The Triton kernels are asked the same in `attention/interpreter` and `distill_loss/interpreter`.
"""

import numpy as np
import pytest
import torch

import deit_kernels as kernels
from deit_kernels import augment
from tests.kernels.any_strides import (
    Call,
    assert_hooks_change_no_gradient,
    assert_no_layout_matters,
    calls_of,
    op_names,
)
from tests.kernels.distill_loss.loss_cases import BINARY, WEIGHTED_KINDS, Case, make_call

LOSSES = [
    Case(),
    Case(target="mixed", teacher="soft topk", reduction="none", smoothing=0.1),
    Case(target="dense", teacher="soft logits", heads=1),
    Case(target="mixed", teacher="hard labels"),
    *BINARY[:3],
    *WEIGHTED_KINDS[:2],
]


def attend() -> None:
    """The ops themselves: on CPU tensors the public functions run SDPA."""
    query, key, value, grad = torch.randn(4, 2, 9, 2, 8)
    out, lse = torch.ops.deit_kernels.attention_forward(query, key, value, 0.3)
    torch.ops.deit_kernels.attention_backward(grad, query, key, value, out, lse, 0.3)


def lose() -> None:
    for case in LOSSES:
        for dtype in (torch.float32, torch.float64):
            kernels.distillation_loss(**make_call(case, 5, 12, dtype)).sum().backward()
    for dtype in (torch.float32, torch.float64):
        logits, labels = torch.randn(5, 12, dtype=dtype), torch.arange(5)
        kernels.cross_entropy(logits.requires_grad_(), labels).backward()
        kernels.cross_entropy(logits.detach(), labels)


def change_images() -> None:
    images = [np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(4)]
    batch, policy = augment.ImageBatch.from_images(images), augment.Policy.deit(16)
    plan = augment.sample_plan(policy, seed=0, epoch=0, sample=range(4), copy=0, height=20, width=30)
    mix = augment.sample_mix(policy, seed=0, step=0, start=0, count=4, group=2)
    augment.apply(batch, plan, mix, dtype=torch.float32)
    augment.apply_out(batch, plan, mix, out=torch.empty(4, 3, 16, 16))
    augment.resized_crop(batch, torch.tensor([[0, 0, 20, 30]] * 4), 12)
    augment.apply_op(torch.from_numpy(np.stack(images)), "rotate", torch.full((4,), 13.0, dtype=torch.float64))


def one_of_each() -> dict[str, list[Call]]:
    calls: dict[str, list[Call]] = {}
    for run in (attend, lose, change_images):
        for call in calls_of(run):
            calls.setdefault(call[0]._opname, []).append(call)
    return calls


CALLS = one_of_each()


def test_every_op_has_calls() -> None:
    assert CALLS.keys() == op_names()


@pytest.mark.parametrize("name", sorted(CALLS))
def test_no_layout_of_an_argument_matters(name: str) -> None:
    for call in CALLS[name]:
        assert_no_layout_matters(call)


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_saved_tensors_of_a_loss_may_come_back_otherwise(case: Case) -> None:
    call = make_call(case, 5, 12)
    heads = [name for name in ("cls_logits", "dist_logits") if call[name] is not None]

    def loss(*logits: torch.Tensor) -> torch.Tensor:
        return kernels.distillation_loss(**call | dict(zip(heads, logits, strict=True)))

    assert_hooks_change_no_gradient(loss, *(call[name] for name in heads))
