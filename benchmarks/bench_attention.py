"""Attention from the qkv projection's output to the output projection's input, against every peer that is installed.

    pytest benchmarks/bench_attention.py                            # a card: DeiT's shapes at batch 256, and small ones
    pytest benchmarks/bench_attention.py -m "slow or not slow"      # B × heads × N × dtype in full
    pytest benchmarks/bench_attention.py -k "B256-N198-H6 and not compiled"      # DeiT-S, a minute on a card
    pytest benchmarks/bench_attention.py --benchmark-json=out.json

What stands between the two projections counts for everybody: permutes, copies, stacked gradients. A peer whose name
ends in "_unstacked" is spared that: it takes q, k and v as tensors of their own and leaves three gradients, which the
product behind qkv could not use as they are; only a card times it. Compiled peers compile for most of a minute a row,
so they have rows of their own, which come last.

A row is one call: forward, backward alone, or both. On a card its limit is the byte floor, below which no algorithm can
go: q, k, v in and the output out; backward q, k, v and a gradient in, three out. Without a card our kernels do not run:
`ours` is then the fallback of the same function, PyTorch's SDPA, and the rows show what our call costs above it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure.device_timing import DEVICE, ON_CARD, arithmetic_limit, memory_limit
from benchmarks.measure.interleaved import Limit
from benchmarks.measure.passes import DIRECTIONS, Given, Op
from deit_kernels import attention_qkvpacked

pytestmark = pytest.mark.benchmark(group="attention")

FEATURES = 64
ROUNDS = 10


@dataclass(frozen=True)
class Shape:
    """One call: images, tokens, heads of 64 features."""

    batch: int
    tokens: int
    heads: int
    dtype: torch.dtype

    def tensor_bytes(self) -> int:
        """Bytes of q, of k, of the output, …"""
        return self.batch * self.tokens * self.heads * FEATURES * self.dtype.itemsize

    def floor_bytes(self, direction: str) -> int:
        return self.tensor_bytes() * {"forward": 4, "backward": 7, "both": 11}[direction]

    def flops(self, direction: str) -> int:
        """Two products forward, five backward, a multiplication and an addition each."""
        products = {"forward": 2, "backward": 5, "both": 7}[direction]
        return products * 2 * self.batch * self.heads * self.tokens**2 * FEATURES

    def limit(self, direction: str) -> Limit:
        return memory_limit(self.floor_bytes(direction)) if ON_CARD else arithmetic_limit(self.flops(direction))


def ours(qkv: Tensor) -> Tensor:
    return attention_qkvpacked(qkv).flatten(2)


def sdpa(backend: SDPBackend, *inputs: Tensor) -> Tensor:
    """SDPA of qkv (B, N, 3, H, D), as timm's Attention writes it, or of q, k and v, each (B, N, H, D)."""
    packed = len(inputs) == 1
    query, key, value = inputs[0].permute(2, 0, 3, 1, 4) if packed else (each.transpose(1, 2) for each in inputs)
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def plain(qkv: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    probs = ((query * FEATURES**-0.5) @ key.transpose(-2, -1)).softmax(-1)
    return (probs @ value).transpose(1, 2).flatten(2)


def flex(qkv: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return flex_attention(query, key, value).transpose(1, 2).flatten(2)


def flash_attn(qkv: Tensor) -> Tensor:
    from flash_attn import flash_attn_qkvpacked_func

    return flash_attn_qkvpacked_func(qkv).flatten(2)


def flash_attn_3(*inputs: Tensor) -> Tensor:
    """Hopper's, by either name that its package has had; of qkv, or of q, k and v."""
    try:
        from flash_attn_interface import flash_attn_func, flash_attn_qkvpacked_func
    except ImportError:
        from flash_attn_3.flash_attn_interface import flash_attn_func, flash_attn_qkvpacked_func
    out = (flash_attn_qkvpacked_func if len(inputs) == 1 else flash_attn_func)(*inputs)
    return (out[0] if isinstance(out, tuple) else out).flatten(2)  # earlier ones return the log-sum-exp too


def xformers(qkv: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(*qkv.unbind(2)).flatten(2)


Attend = Callable[..., Tensor]  # of what `inputs_of` gives


@functools.cache
def provider(name: str) -> Attend:
    """The function to time.

    Raises:
        ImportError: it is not installed, or has no implementation for this machine.
    """
    packages = PACKAGES.get(name.removesuffix(UNSTACKED))
    if packages and not (ON_CARD and any(importlib.util.find_spec(package) for package in packages)):
        raise ImportError(f"{name} is not installed, or does not run without a card")
    if name in COMPILED:
        if not ON_CARD:
            raise ImportError(f"{name} is timed on a card")
        # One graph a shape and direction: past the limit Dynamo would time eager code under the name of compiled.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
        return torch.compile(PROVIDERS[name], dynamic=False)
    return PROVIDERS[name]


UNSTACKED = "_unstacked"
COMPILED = ("compiled", "flex")
PACKAGES = {
    "flash_attn": ("flash_attn",),
    "flash_attn_3": ("flash_attn_interface", "flash_attn_3"),
    "xformers": ("xformers",),
}
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PROVIDERS: dict[str, Attend] = {
    "ours": ours,
    **{f"sdpa_{name}{form}": functools.partial(sdpa, BACKENDS[name]) for form in ("", UNSTACKED) for name in BACKENDS},
    "sdpa_math": functools.partial(sdpa, SDPBackend.MATH),
    "flash_attn": flash_attn,
    "flash_attn_3": flash_attn_3,
    f"flash_attn_3{UNSTACKED}": flash_attn_3,
    "xformers": xformers,
    "flex": flex,
    "compiled": plain,
}


def shapes() -> list:
    """DeiT-S at batch 256, then what a card's first minutes are for; the whole product is slow. No card: small ones."""
    if not ON_CARD:
        return [
            Shape(batch, tokens, heads, torch.float32)
            for batch, tokens, heads in ((1, 198, 3), (8, 198, 6), (2, 578, 6))
        ]
    quick = [(256, 198, 6), (256, 198, 12), (256, 198, 3), (256, 578, 6), (64, 198, 6), (1, 198, 6), (32, 197, 3)]
    wanted = [pytest.param(Shape(*size, torch.bfloat16)) for size in quick]
    for dtype in (torch.bfloat16, torch.float16):
        for batch in (256, 64, 32, 1):
            for tokens in (198, 578, 197, 577):
                for heads in (6, 12, 3):
                    if dtype != torch.bfloat16 or (batch, tokens, heads) not in quick:
                        wanted.append(pytest.param(Shape(batch, tokens, heads, dtype), marks=pytest.mark.slow))
    return wanted


def inputs_of(name: str, qkv: Tensor) -> tuple[Tensor, ...]:
    """What a provider takes: qkv (B, N, 3, H, D), or its three parts in memory of their own."""
    parts = qkv.unbind(2) if name.endswith(UNSTACKED) else [qkv]
    return tuple(part.detach().contiguous().requires_grad_() for part in parts)


def given(name: str, shape: Shape) -> Given:
    size = (shape.batch, shape.tokens, 3, shape.heads, FEATURES)
    inputs = inputs_of(name, torch.randn(size, device=DEVICE, dtype=shape.dtype))
    grad = torch.randn(*size[:2], shape.heads * FEATURES, device=DEVICE, dtype=shape.dtype)
    return Given(inputs, inputs, grad)


ATTENTION = Op(provider, given)
every_shape = pytest.mark.parametrize(
    "shape", shapes(), ids=lambda s: f"B{s.batch}-N{s.tokens}-H{s.heads}-{str(s.dtype)[6:]}"
)


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_shape
def test_attention(benchmark: BenchmarkFixture, one_thread: None, shape: Shape, direction: str) -> None:
    others = [name for name in PROVIDERS if name not in ("ours", *COMPILED) and (ON_CARD or UNSTACKED not in name)]
    ATTENTION.row(benchmark, shape, direction, ["ours", *others], ROUNDS)


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "ours"])
def test_providers_agree(name: str) -> None:
    """What is compared computes the same."""
    dtype = torch.bfloat16 if ON_CARD else torch.float32
    qkv = torch.randn(2, 198, 3, 2, FEATURES, device=DEVICE, dtype=dtype)
    try:
        out = provider(name)(*inputs_of(name, qkv))
    except (RuntimeError, NotImplementedError, ImportError) as error:
        pytest.skip(f"{name} does not run here: {str(error).splitlines()[0]}")
    torch.testing.assert_close(out, ours(qkv), rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not ON_CARD, reason="compiled peers are timed on a card")
@pytest.mark.parametrize("direction", DIRECTIONS)
@every_shape
def test_attention_compiled(benchmark: BenchmarkFixture, one_thread: None, shape: Shape, direction: str) -> None:
    ATTENTION.row(benchmark, shape, direction, ["ours", *COMPILED], ROUNDS)
