"""FLOPs, sharding and checkpointing of the ops, and that none of it costs an import."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import deit_kernels
from deit_kernels.short_attention.op import _Attention
from tests.kernels import two_ranks
from tests.kernels.any_strides import calls_of

OPS = torch.ops.deit_kernels

SHARDED = """
qkv, grad = torch.randn(2, 17, 3, 2, 16).half(), torch.randn(2, 17, 2, 16).half()
whole = qkv.clone().requires_grad_()
deit_kernels.attention_qkvpacked(whole).backward(grad)
for place, of_grad in ((Shard(0), Shard(0)), (Shard(3), Shard(2)), (Replicate(), Replicate())):
    split, split_grad = (distribute_tensor(t, mesh, [p]) for t, p in ((qkv, place), (grad, of_grad)))
    with CommDebugMode() as sent:
        out = deit_kernels.attention_qkvpacked(split.requires_grad_())
        out.backward(split_grad)
    assert out.placements == (of_grad,) and split.grad.placements == (place,)
    assert sent.get_total_counts() == 0
    assert torch.equal(split.grad.full_tensor(), whole.grad)
"""


def test_dtensors_are_split_by_batch_and_heads_without_communication(tmp_path: Path) -> None:
    two_ranks.run(SHARDED, tmp_path, TRITON_INTERPRET="1")


def test_flops_are_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    query = torch.randn(2, 9, 3, 8)
    with FlopCounterMode(display=False) as counter:
        out, lse = OPS.attention_forward(query, query, query, 0.3)
        OPS.attention_backward(out, query, query, query, out, lse, 0.3)
    product = 2 * 2 * 3 * 9 * 9 * 8  # of matrices (9, 8) and (8, 9), of 2 images of 3 heads
    assert counter.get_total_flops() == (2 + 5) * product


def test_an_import_brings_neither_counter_nor_dtensor() -> None:
    program = (
        "import json, sys, torch; before = set(sys.modules); import deit_kernels;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    new = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert "deit_kernels" in new
    assert not {"torch.utils.flop_counter", "torch.distributed.tensor", "triton"} & set(new)


def test_selective_checkpointing_keeps_what_a_policy_names() -> None:
    ran = []

    def policy(_, op, *args, **kwargs) -> CheckpointPolicy:
        keep = op in (OPS.attention_forward.default,)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    def block(query: torch.Tensor) -> torch.Tensor:
        ran.append(1)
        return _Attention.apply(query.sin(), query.cos(), query, 0.3)[0]

    query = torch.randn(1, 5, 2, 8, dtype=torch.float64, requires_grad=True)

    def step() -> None:
        contexts = partial(create_selective_checkpoint_contexts, policy)
        checkpoint(block, query, use_reentrant=False, context_fn=contexts).sum().backward()

    names = [op._opname for op, _ in calls_of(step)]
    assert len(ran) == 2 and names.count("attention_forward") == 1 and names.count("attention_backward") == 1
    expected = query.detach().clone().requires_grad_()
    block(expected).sum().backward()
    torch.testing.assert_close(query.grad, expected.grad)


def test_the_version_is_a_releases() -> None:
    assert deit_kernels.__version__.split(".")[0].isdigit()


@pytest.mark.parametrize("name", ["attention_forward", "attention_backward"])
def test_ops_have_public_names(name: str) -> None:
    assert hasattr(OPS, name)
