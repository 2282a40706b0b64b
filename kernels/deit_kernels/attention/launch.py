"""Launch the attention kernels: grid, arguments, and the cases by which the benchmarks judge them without a GPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import get_args

import torch
import triton
from torch import Tensor

from ..compile_case import CompileCase, TraceCase, TracedCall
from . import kernels
from .configuration import Config, Direction, choose, family, key_pieces, splits

_LOG2_E = 1 / math.log(2)
_DELTA_ROWS = 64


def forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float, config: Config | None = None, split: int | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of (B, N, H, D) tensors: the output, contiguous (B, N, H, D), and the base-2 log-sum-exp (B, H, N)."""
    batch, length, heads, features = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=query.device)
    card, multiprocessors = card_of(query.device)
    pairs = batch * heads
    config = config or choose("forward", card, length, features, pairs, multiprocessors)
    constexprs = forward_constexprs(config, length, features)
    query, key, value = _readable(query), _readable(key), _readable(value)
    strides = _strides(query) + _strides(key) + _strides(value)
    with torch.cuda.device_of(query):
        if config.form == "resident":
            split = split or splits(config, length, pairs, multiprocessors)
            kernels.attention_forward_resident[(pairs * split,)](
                query, key, value, out, lse, heads, length, split, scale * _LOG2_E, *strides, **constexprs
            )
        else:
            kernels.attention_forward_tiled[(pairs * triton.cdiv(length, config.block_m),)](
                query, key, value, out, lse, heads, length, scale * _LOG2_E, *strides, **constexprs
            )
    return out, lse


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The gradients, packed (B, N, 3, H, D), and the tiled form's scratch: delta (B, H, N)."""
    batch, length, heads, features = query.shape
    grads = torch.empty(batch, length, 3, heads, features, dtype=query.dtype, device=query.device)
    card, multiprocessors = card_of(query.device)
    pairs = batch * heads
    config = config or choose("backward", card, length, features, pairs, multiprocessors)
    constexprs = backward_constexprs(config, length, features)
    grad, query, key, value = _readable(grad), _readable(query), _readable(key), _readable(value)
    strides = _strides(grad) + _strides(query) + _strides(key) + _strides(value)
    with torch.cuda.device_of(query):
        if config.form == "resident":
            kernels.attention_backward_resident[(pairs,)](
                grad, query, key, value, lse, grads, heads, length, scale, scale * _LOG2_E, *strides, **constexprs
            )
            return grads, None
        delta = torch.empty_like(lse)
        kernels.attention_delta[(pairs * triton.cdiv(length, _DELTA_ROWS),)](
            grad, out, delta, heads, length, *_strides(grad), **delta_constexprs(features)
        )
        kernels.attention_backward_tiled[(2 * pairs * triton.cdiv(length, config.block_m),)](
            grad, query, key, value, lse, delta, grads, heads, length, scale, scale * _LOG2_E, *strides, **constexprs
        )
    return grads, delta


def forward_constexprs(config: Config, length: int, features: int) -> dict[str, int]:
    """Constexprs and launch options of the forward kernel that `config` names."""
    shared = _constexprs(config, features)
    if config.form == "resident":
        return shared | dict(zip(("P0", "P1", "P2"), key_pieces(length), strict=True))
    tail = length % config.block_n
    return shared | {"BN": config.block_n, "TAIL": max(16, triton.next_power_of_2(tail)) if tail else 0}


def backward_constexprs(config: Config, length: int, features: int) -> dict[str, int]:
    """Constexprs and launch options of the backward kernel that `config` names."""
    keys = max(16, triton.next_power_of_2(length)) if config.form == "resident" else config.block_n
    return _constexprs(config, features) | {"BN": keys}


def delta_constexprs(features: int) -> dict[str, int]:
    """Constexprs and launch options of the delta kernel."""
    return {"D": features, "BD": _padded(features), "BM": _DELTA_ROWS, "num_warps": 4, "num_stages": 1}


def _constexprs(config: Config, features: int) -> dict[str, int]:
    return {
        "D": features,
        "BD": _padded(features),
        "BM": config.block_m,
        "STAGES": config.num_stages,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def _padded(features: int) -> int:
    return max(16, triton.next_power_of_2(features))  # a matrix instruction takes 16 features at a time


def _readable(tensor: Tensor) -> Tensor:
    """`tensor` where the kernels can read it in place, 16 bytes at a time and by 32-bit row offsets, else a copy."""
    batch, row, head, feature = tensor.stride()
    aligned = feature == 1 and batch % 8 == row % 8 == head % 8 == 0 and tensor.data_ptr() % 16 == 0
    # 256: the last block's rows past the end are masked, but their offsets are computed.
    if aligned and row * (tensor.shape[1] + 256) < 2**31:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of batch, row and head in units of 8 elements (kernels.py says why)."""
    return tensor.stride(0) // 8, tensor.stride(1) // 8, tensor.stride(2) // 8


@functools.cache
def card_of(device: torch.device) -> tuple[int, int]:
    """(family, multiprocessors). The interpreter is an H100 of one multiprocessor: a test takes the path of a batch."""
    if device.type != "cuda":
        return 90, 1
    card = torch.cuda.get_device_properties(device)
    return family((card.major, card.minor), card.shared_memory_per_block_optin), card.multi_processor_count


# What compile_cases covers: head dim -> lengths, each a row of the table or a way to end its last block.
_REPORTED = {
    64: (16, 32, 64, 80, 128, 144, 192, 198, 256, 257, 576, 578, 605, 638),
    8: (17, 198),
    32: (198, 578),
    80: (198, 578),
    128: (128, 198, 578),
}
_CARDS = {80: 80, 89: 89, 90: 90, 100: 100, 120: 89}  # compute capability -> family
_MANY = 1 << 20  # pairs of (batch, head): enough to fill any card


def compile_cases() -> list[CompileCase]:
    """Every kernel as it is specialised for a large batch of the reported shapes, for each card's own table rows."""
    cases = []
    for capability, card in _CARDS.items():
        for features in _REPORTED:
            cases.append(_case(kernels.attention_delta, f"d{features}", delta_constexprs(features), capability))
        for direction, length, features, config in _reported(card):
            kernel = getattr(kernels, f"attention_{direction}_{config.form}")
            constexprs = forward_constexprs if direction == "forward" else backward_constexprs
            settings, trace = constexprs(config, length, features), _trace_name(direction, length, features, config)
            cases.append(_case(kernel, f"n{length} d{features}", settings, capability, trace))
    return cases


def _reported(card: int) -> Iterator[tuple[Direction, int, int, Config]]:
    for features, lengths in _REPORTED.items():
        for length in lengths:
            for direction in get_args(Direction):
                yield direction, length, features, choose(direction, card, length, features, _MANY, 1)


def _trace_name(direction: Direction, length: int, features: int, config: Config) -> str:
    blocks = f"m{config.block_m}" + f" n{config.block_n}" * (config.form == "tiled")
    return f"attention_{direction}_{config.form} n{length} d{features} in {blocks}"


def _case(
    kernel: triton.JITFunction, shape: str, settings: dict[str, int], capability: int, trace: str = ""
) -> CompileCase:
    types = {"scale": "fp32", "scale_log2": "fp32", "lse": "*fp32", "delta": "*fp32"}
    types |= dict.fromkeys(("grad", "query", "key", "value", "out", "grads"), "*bf16")
    constexprs = {name: value for name, value in settings.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constexprs else types.get(name, "i32") for name in kernel.arg_names}
    return CompileCase(
        name=f"{kernel.__name__} {shape}",
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        divisible_by_16=frozenset(name for name, kind in signature.items() if kind.startswith("*")),
        num_warps=settings["num_warps"],
        num_stages=settings["num_stages"],
        capability=capability,
        trace=trace,
    )


def trace_cases() -> list[TraceCase]:
    """Both passes on a packed fp16 qkv of one image and two heads, in the blocks of every compile case."""
    cases = {}
    for card in sorted(set(_CARDS.values())):
        for direction, length, features, config in _reported(card):
            run = _trace_forward if direction == "forward" else _trace_backward
            name = _trace_name(direction, length, features, config)
            cases[name] = TraceCase(name, functools.partial(run, length, features, config))
    return list(cases.values())


def _trace_inputs(length: int, features: int) -> dict[str, Tensor]:
    qkv = torch.randn(1, length, 3, 2, features, dtype=torch.float16)
    return dict(zip(("query", "key", "value"), qkv.unbind(2), strict=True))


def _trace_forward(length: int, features: int, config: Config) -> TracedCall:
    inputs = _trace_inputs(length, features)
    out, lse = forward(**inputs, scale=features**-0.5, config=config)
    logits = 2 * length**2
    return TracedCall(inputs, {"out": out, "lse": lse}, products=2 * 2 * logits * features, exponentials=logits)


def _trace_backward(length: int, features: int, config: Config) -> TracedCall:
    from .reference import forward_reference  # a forward kernel here would be traced too

    inputs = _trace_inputs(length, features)
    out, lse = forward_reference(**inputs, scale=features**-0.5)
    inputs |= {"grad": torch.randn_like(out), "lse": lse}
    grads, delta = backward(**inputs, out=out, scale=features**-0.5, config=config)
    logits = 2 * length**2
    needed = {"products": 5 * 2 * logits * features, "exponentials": logits}
    if delta is None:
        return TracedCall(inputs, {"grads": grads}, **needed)
    return TracedCall(inputs | {"out": out}, {"grads": grads}, {"delta": delta}, **needed)
