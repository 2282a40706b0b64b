"""The attention kernels: those of every row of the table at the reported lengths, and one traced call of each."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, get_args

import torch
import triton

from benchmarks.compiled.cases.case import CompileCase, TraceCase, TracedCall
from deit_kernels.short_attention import backward_kernels, forward_kernels
from deit_kernels.short_attention.backward_kernels import SUMMED
from deit_kernels.short_attention.configuration import Config, Direction, choose
from deit_kernels.short_attention.launch import (
    backward,
    backward_constexprs,
    delta_constexprs,
    forward,
    forward_constexprs,
)
from deit_kernels.short_attention.reference import forward_reference

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
            settings = delta_constexprs(features)
            cases.append(_case(backward_kernels.attention_delta, f"d{features}", settings, capability))
        cases += [config_case(*reported, capability) for reported in _reported(card)]
    return cases


def config_case(direction: Direction, length: int, features: int, config: Config, capability: int) -> CompileCase:
    """The kernel that `config` names, as it is specialised for a large batch."""
    forward_pass = direction == "forward"
    module, constexprs = (
        (forward_kernels, forward_constexprs) if forward_pass else (backward_kernels, backward_constexprs)
    )
    kernel = getattr(module, f"attention_{direction}_{config.form}")
    settings, trace = constexprs(config, length, features), _trace_name(direction, length, features, config)
    return _case(kernel, f"n{length} d{features}", settings, capability, trace)


def _reported(card: int) -> Iterator[tuple[Direction, int, int, Config]]:
    for features, lengths in _REPORTED.items():
        for length in lengths:
            for direction in get_args(Direction):
                yield direction, length, features, choose(direction, card, length, features, _MANY, 1)


def _trace_name(direction: Direction, length: int, features: int, config: Config) -> str:
    blocks = f"m{config.block_m}" + f" n{config.block_n}" * (config.form != "resident")
    return f"attention_{direction}_{config.form} n{length} d{features} in {blocks}"


def _case(
    kernel: triton.JITFunction, shape: str, settings: dict[str, Any], capability: int, trace: str = ""
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
        max_registers=settings["maxnreg"],
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


def _trace_inputs(length: int, features: int) -> dict[str, Any]:
    qkv = torch.randn(1, length, 3, 2, features, dtype=torch.float16)
    return dict(zip(("query", "key", "value"), qkv.unbind(2), strict=True))


def _trace_forward(length: int, features: int, config: Config) -> TracedCall:
    inputs = _trace_inputs(length, features)
    out, lse = forward(**inputs, scale=features**-0.5, config=config)
    logits = 2 * length**2
    return TracedCall(inputs, {"out": out, "lse": lse}, products=2 * 2 * logits * features, exponentials=logits)


def _trace_backward(length: int, features: int, config: Config) -> TracedCall:
    inputs = _trace_inputs(length, features)
    out, lse = forward_reference(**inputs, scale=features**-0.5)  # a forward kernel would be traced too
    inputs |= {"grad": torch.randn_like(out), "lse": lse}
    grads, delta = backward(**inputs, out=out, scale=features**-0.5, config=config)
    if delta is not None or length > SUMMED.value:
        inputs["out"] = out
    logits = 2 * length**2
    needed = {"products": 5 * 2 * logits * features, "exponentials": logits}
    return TracedCall(inputs, {"grads": grads}, {} if delta is None else {"delta": delta}, **needed)
