"""The losses in large systems: DTensors, FLOP counting, selective checkpointing by the stable names of their ops."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from deit_kernels import cross_entropy, distillation_loss
from tests.kernels import two_ranks
from tests.kernels.any_strides import calls_of

OPS = torch.ops.deit_kernels

SHARDED = """
from deit_kernels import MixedTarget, TopK, cross_entropy, distillation_loss

cls, other, teacher = torch.randn(3, 5, 7)  # of five rows one rank has three
labels, lam, weights = torch.tensor([1, -100, 2, 3, 4]), torch.rand(5), torch.rand(5)
of_class = torch.rand(7)
probs, indices = teacher.softmax(1).topk(2)


def losses(cls, other, teacher, labels, lam, probs, indices, weight, reduction):
    soft = {"mode": "soft", "alpha": 0.3, "tau": 1.0, "kl_normalizer": "batch"}
    mixed = MixedTarget(labels, labels, lam)
    yield distillation_loss(cls, other, teacher, labels, reduction=reduction)
    yield distillation_loss(cls, None, TopK(indices, probs, 1.0), mixed, **soft, reduction=reduction)
    yield cross_entropy(cls, labels, reduction=reduction)
    yield distillation_loss(cls, other, teacher, mixed, reduction=reduction, weight=weight)


given = cls, other, teacher, labels, lam, probs, indices
for reduction in ("none", "mean"):
    leaves = cls.clone().requires_grad_(), other.clone().requires_grad_()
    for place in (Shard(0), Replicate()):
        split = [distribute_tensor(tensor, mesh, [place]) for tensor in (*given, weights)]
        heads = split[0].requires_grad_(), split[1].requires_grad_()
        whole = losses(*leaves, *given[2:], of_class, reduction)
        spread = distribute_tensor(of_class, mesh, [Replicate()])
        for expected, loss in zip(whole, losses(*split[:-1], spread, reduction)):
            incoming = (weights, split[-1]) if reduction == "none" else (None, None)
            wanted = torch.autograd.grad(expected, leaves, incoming[0], allow_unused=True)
            with CommDebugMode() as sent:
                seen = torch.autograd.grad(loss, heads, incoming[1], allow_unused=True)
            assert torch.equal(loss.full_tensor(), expected)
            for one, two in zip(seen, wanted):
                assert (one is None) == (two is None) and (one is None or torch.equal(one.full_tensor(), two))
            if reduction == "none":
                assert loss.placements == seen[0].placements == (place,) and sent.get_total_counts() == 0
"""


@pytest.mark.slow
def test_dtensors_are_split_by_rows_and_a_mean_is_that_of_all_rows(tmp_path: Path) -> None:
    two_ranks.run(SHARDED, tmp_path)


def test_a_loss_has_no_matrix_product_so_no_flops_as_torchs_own() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, labels = torch.nn.Linear(8, 5), torch.arange(3)
    totals = []
    for loss in (cross_entropy, torch.nn.functional.cross_entropy):
        with FlopCounterMode(display=False) as counter:
            loss(model(torch.randn(3, 8)), labels).backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] > 0


def test_selective_checkpointing_keeps_what_a_policy_names() -> None:
    def loss(logits: torch.Tensor) -> torch.Tensor:
        return distillation_loss(2 * logits, logits, logits.detach(), torch.arange(3), weight=torch.ones(5))

    names = {}
    for keep in (False, True):

        def policy(_, op, *args, keep=keep, **kwargs) -> CheckpointPolicy:
            kept = keep and op == OPS.distillation_loss_forward.default
            return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

        def step(policy=policy) -> None:
            logits = torch.randn(3, 5, requires_grad=True)
            contexts = partial(create_selective_checkpoint_contexts, policy)
            checkpoint(loss, logits, use_reentrant=False, context_fn=contexts).backward()

        names[keep] = [op._opname for op, _ in calls_of(step)]
    assert names[True] == ["distillation_loss_forward", "distillation_loss_backward"]
    assert names[False] == ["distillation_loss_forward", "distillation_loss_forward", "distillation_loss_backward"]
