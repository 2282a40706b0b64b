"""Attention from the qkv projection's output to the output projection's input, against every peer that is installed.

    pytest benchmarks/bench_attention.py                            # a card: DeiT's shapes at batch 256, and small ones
    pytest benchmarks/bench_attention.py -m "slow or not slow"      # B × heads × N × dtype in full
    pytest benchmarks/bench_attention.py --benchmark-json=out.json

What stands between the two projections counts for everybody: permutes, copies, stacked gradients. Each number is one
call: forward, backward alone, or both. `extra_info` holds microseconds, TFLOP/s, GB/s and the percentage of the byte
floor, below which no algorithm can go: q, k, v in and the output out; backward q, k, v and a gradient in, three out.
Without a card the same code runs at N = 17, where the times mean nothing.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.device_timing import (
    CLOCK,
    DEVICE,
    ON_CARD,
    bytes_per_second,
    copies,
    environment,
    host_microseconds,
    kernels_launched,
    on_stream,
    prepare,
)
from deit_kernels import attention_qkvpacked

pytestmark = pytest.mark.benchmark(timer=CLOCK, group="attention")

FEATURES = 64
DIRECTIONS = ("forward", "backward", "both")


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


def ours(qkv: Tensor) -> Tensor:
    return attention_qkvpacked(qkv).flatten(2)


def sdpa(backend: SDPBackend, qkv: Tensor) -> Tensor:
    """As timm's Attention writes it."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
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


def xformers(qkv: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(*qkv.unbind(2)).flatten(2)


Attend = Callable[[Tensor], Tensor]


@functools.cache
def provider(name: str) -> Attend:
    """Skips the test where the provider is not installed or has no implementation for this machine."""
    if name in ("flash_attn", "xformers") and not (ON_CARD and importlib.util.find_spec(name)):
        pytest.skip(f"{name} is not installed, or there is no card for it")
    if name in ("compiled", "flex"):
        # One graph a shape and direction: past the limit Dynamo would time eager code under the name of compiled.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
        function = {"compiled": plain, "flex": flex}[name]
        return torch.compile(function, dynamic=False) if ON_CARD else function
    return PROVIDERS[name]


PROVIDERS: dict[str, Attend] = {
    "ours": ours,
    "sdpa_cudnn": functools.partial(sdpa, SDPBackend.CUDNN_ATTENTION),
    "sdpa_flash": functools.partial(sdpa, SDPBackend.FLASH_ATTENTION),
    "sdpa_efficient": functools.partial(sdpa, SDPBackend.EFFICIENT_ATTENTION),
    "sdpa_math": functools.partial(sdpa, SDPBackend.MATH),
    "flex": flex,
    "compiled": plain,
    "flash_attn": flash_attn,
    "xformers": xformers,
}


def shapes() -> list:
    """DeiT's heads at batch 256, long sequences and small batches quickly; the product is slow. No card: one size."""
    if not ON_CARD:
        return [Shape(2, 17, 2, torch.float32)]
    quick = {(256, 198, 3), (256, 198, 6), (256, 198, 12), (256, 578, 6), (64, 198, 6), (32, 197, 3), (1, 198, 6)}
    wanted = []
    for dtype in (torch.bfloat16, torch.float16):
        for batch in (1, 32, 64, 256):
            for tokens in (197, 198, 577, 578):
                for heads in (3, 6, 12):
                    is_quick = dtype == torch.bfloat16 and (batch, tokens, heads) in quick
                    shape = Shape(batch, tokens, heads, dtype)
                    wanted.append(pytest.param(shape, marks=() if is_quick else (pytest.mark.slow,)))
    return wanted


def calls_of(attend: Attend, shape: Shape, direction: str) -> list[Callable[[], object]]:
    """At least 20 calls, over sets of inputs that exceed the L2; of large shapes 4 GB are enough."""
    count = copies(shape.floor_bytes("both"))
    sets = min(count, -(-(4 << 30) // shape.floor_bytes("both")))
    size = (shape.batch, shape.tokens, 3, shape.heads, FEATURES)
    inputs = [torch.randn(size, device=DEVICE, dtype=shape.dtype, requires_grad=True) for _ in range(sets)]
    grads = [torch.randn(*size[:2], shape.heads * FEATURES, device=DEVICE, dtype=shape.dtype) for _ in range(sets)]

    def both(qkv: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(qkv), qkv, grad)

    if direction == "forward":
        calls = [functools.partial(attend, qkv) for qkv in inputs]
    elif direction == "both":
        calls = [functools.partial(both, qkv, grad) for qkv, grad in zip(inputs, grads, strict=True)]
    else:
        calls = [
            functools.partial(torch.autograd.grad, attend(qkv), qkv, grad, retain_graph=True)
            for qkv, grad in zip(inputs, grads, strict=True)
        ]
    return [calls[i % sets] for i in range(count)]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("shape", shapes(), ids=lambda s: f"B{s.batch}-N{s.tokens}-H{s.heads}-{s.dtype}")
def test_attention(benchmark, shape: Shape, name: str, direction: str) -> None:
    attend = provider(name)
    try:
        with on_stream():
            calls = calls_of(attend, shape, direction)
            calls[0]()
    except (RuntimeError, NotImplementedError) as error:
        if name == "ours":
            raise
        pytest.skip(f"{name} does not run here: {str(error).splitlines()[0]}")
    run, captured = prepare(calls)
    benchmark.pedantic(run, rounds=10 if ON_CARD else 3, warmup_rounds=2 if ON_CARD else 1)
    seconds, rate, floor = benchmark.stats.stats.median, bytes_per_second(), shape.floor_bytes(direction)
    benchmark.extra_info.update(
        environment(), provider=name, direction=direction, **{**vars(shape), "dtype": str(shape.dtype)},
        in_a_graph=captured, kernels=kernels_launched(calls[0]), host_us=host_microseconds(calls[0]),
        us=seconds * 1e6, tflops=shape.flops(direction) / seconds / 1e12, gb_per_s=floor / seconds / 1e9,
        floor_bytes=floor, percent_of_floor=100 * floor / rate / seconds if rate else None,
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "ours"])
def test_providers_agree(name: str) -> None:
    """What is compared computes the same."""
    dtype = torch.bfloat16 if ON_CARD else torch.float32
    attend, qkv = provider(name), torch.randn(2, 198, 3, 2, FEATURES, device=DEVICE, dtype=dtype)
    try:
        out = attend(qkv)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"{name} does not run here: {str(error).splitlines()[0]}")
    torch.testing.assert_close(out, ours(qkv), rtol=2e-2, atol=2e-2)
