"""Attention from the qkv projection's output to the output projection's input, against every peer that is installed.

    pytest benchmarks/bench_attention.py                            # a card: DeiT's shapes at batch 256, and small ones
    pytest benchmarks/bench_attention.py -m "slow or not slow"      # B × heads × N × dtype in full
    pytest benchmarks/bench_attention.py --benchmark-json=out.json

What stands between the two projections counts for everybody: permutes, copies, stacked gradients. A row is one call:
forward, backward alone, or both. On a card its limit is the byte floor, below which no algorithm can go: q, k, v in and
the output out; backward q, k, v and a gradient in, three out. Without a card our kernels do not run: `ours` is then
the fallback of the same function, PyTorch's SDPA, and the rows show what our call costs above it.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure.device_timing import (
    CLOCK_NAME,
    DEVICE,
    ON_CARD,
    arithmetic_limit,
    copies,
    environment,
    host_microseconds,
    kernels_launched,
    memory_limit,
    time_calls,
)
from benchmarks.measure.interleaved import record
from deit_kernels import attention_qkvpacked

pytestmark = pytest.mark.benchmark(group="attention")

FEATURES = 64
DIRECTIONS = ("forward", "backward", "both") if ON_CARD else ("forward", "both")


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
    """The function to time.

    Raises:
        ImportError: it is not installed, or has no implementation for this machine.
    """
    if name in ("flash_attn", "xformers") and not (ON_CARD and importlib.util.find_spec(name)):
        raise ImportError(f"{name} is not installed, or does not run without a card")
    if name in ("compiled", "flex"):
        if not ON_CARD:
            raise ImportError(f"{name} is timed on a card")
        # One graph a shape and direction: past the limit Dynamo would time eager code under the name of compiled.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
        return torch.compile({"compiled": plain, "flex": flex}[name], dynamic=False)
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
    """DeiT's sizes at batch 256 first, long sequences and small batches; the product is slow. No card: small ones."""
    if not ON_CARD:
        return [
            Shape(batch, tokens, heads, torch.float32)
            for batch, tokens, heads in ((1, 198, 3), (8, 198, 6), (2, 578, 6))
        ]
    quick = {(256, 198, 3), (256, 198, 6), (256, 198, 12), (256, 578, 6), (64, 198, 6), (32, 197, 3), (1, 198, 6)}
    wanted = []
    for dtype in (torch.bfloat16, torch.float16):
        for batch in (256, 64, 32, 1):
            for tokens in (198, 578, 197, 577):
                for heads in (6, 12, 3):
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
@pytest.mark.parametrize("shape", shapes(), ids=lambda s: f"B{s.batch}-N{s.tokens}-H{s.heads}-{str(s.dtype)[6:]}")
def test_attention(benchmark: BenchmarkFixture, one_thread: None, shape: Shape, direction: str) -> None:
    makers = {name: (lambda name=name: calls_of(provider(name), shape, direction)) for name in PROVIDERS}
    seconds, left_out = time_calls(makers, rounds=10)
    floor = shape.floor_bytes(direction)
    call = calls_of(ours, shape, direction)[0]
    record(
        benchmark, seconds, clock=CLOCK_NAME,
        limit=memory_limit(floor) if ON_CARD else arithmetic_limit(shape.flops(direction)),
        left_out=left_out, direction=direction, **{**vars(shape), "dtype": str(shape.dtype)},
        versions={name: torch.__version__ for name in seconds if name.startswith(("sdpa", "flex", "compiled"))},
        kernels=kernels_launched(call), host_us=host_microseconds(call), floor_bytes=floor,
        tflops={name: shape.flops(direction) / statistics.median(times) / 1e12 for name, times in seconds.items()},
        **environment(),
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "ours"])
def test_providers_agree(name: str) -> None:
    """What is compared computes the same."""
    dtype = torch.bfloat16 if ON_CARD else torch.float32
    qkv = torch.randn(2, 198, 3, 2, FEATURES, device=DEVICE, dtype=dtype)
    try:
        out = provider(name)(qkv)
    except (RuntimeError, NotImplementedError, ImportError) as error:
        pytest.skip(f"{name} does not run here: {str(error).splitlines()[0]}")
    torch.testing.assert_close(out, ours(qkv), rtol=2e-2, atol=2e-2)
