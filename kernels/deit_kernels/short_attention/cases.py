"""The calls by which the benchmarks judge the attention kernels without a GPU; `compile_case.py` says how."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import get_args

import torch
import triton
from torch import Tensor

from ..compile_case import CompileCase, Launch, TraceCase, TracedCall
from . import backward_kernels, forward_kernels
from .backward_kernels import SUMMED
from .configuration import Config, Direction, choose
from .launch import backward, backward_constexprs, delta_constexprs, forward, forward_constexprs
from .reference import forward_reference

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
_PAIRS = 256 * 6  # images and heads of the launch whose time is predicted
_DELTA_LENGTH = 198


def compile_cases() -> list[CompileCase]:
    """Every kernel as it is specialised for a large batch of the reported shapes, for each card's own table rows."""
    cases = []
    for capability, card in _CARDS.items():
        for features in _REPORTED:
            settings, launch = delta_constexprs(features), _delta_launch(features)
            cases.append(_case(backward_kernels.attention_delta, f"d{features}", settings, capability, launch=launch))
        cases += [config_case(*reported, capability) for reported in _reported(card)]
    return cases


def config_case(direction: Direction, length: int, features: int, config: Config, capability: int) -> CompileCase:
    """The kernel that `config` names, as it is specialised for a large batch, with its launch at the reported size."""
    module, constexprs, launch = (
        (forward_kernels, forward_constexprs, _forward_launch)
        if direction == "forward"
        else (backward_kernels, backward_constexprs, _backward_launch)
    )
    kernel = getattr(module, f"attention_{direction}_{config.form}")
    settings, trace = constexprs(config, length, features), _trace_name(direction, length, features, config)
    return _case(kernel, f"n{length} d{features}", settings, capability, trace, launch(length, features, config))


def _reported(card: int) -> Iterator[tuple[Direction, int, int, Config]]:
    for features, lengths in _REPORTED.items():
        for length in lengths:
            for direction in get_args(Direction):
                yield direction, length, features, choose(direction, card, length, features, _MANY, 1)


def _trace_name(direction: Direction, length: int, features: int, config: Config) -> str:
    blocks = f"m{config.block_m}" + f" n{config.block_n}" * (config.form != "resident")
    return f"attention_{direction}_{config.form} n{length} d{features} in {blocks}"


def _case(
    kernel: triton.JITFunction, shape: str, settings: dict[str, int], capability: int, trace: str = "",
    launch: Launch | None = None,
) -> CompileCase:  # fmt: skip
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
        launch=launch,
    )


def _forward_launch(length: int, features: int, config: Config) -> Launch:
    matrix, vector = 2 * length * features, 4 * length  # bytes of one (N, D) matrix, and of the log-sum-exp
    if config.form == "resident":
        return Launch(_PAIRS, (-(-length // config.block_m),), 3 * matrix, matrix + vector, 3 * matrix)
    tiles = -(-length // config.block_m)
    own, streamed = matrix / tiles, 2 * matrix
    stored, trips = (matrix + vector) / tiles, (length // config.block_n,)
    return Launch(_PAIRS * tiles, trips, own + streamed, stored, fetched=3 * matrix / tiles)


def _backward_launch(length: int, features: int, config: Config) -> Launch:
    matrix, vector = 2 * length * features, 4 * length
    if config.form == "resident":
        loaded = (5 if length > SUMMED.value else 4) * matrix + vector
        return Launch(_PAIRS, (-(-length // config.block_m),), loaded, 3 * matrix, loaded)
    tiles, trips = -(-length // config.block_m), -(-length // config.block_n)
    if config.form == "two_phase":
        loaded = 5 * matrix + vector + tiles * (4 * matrix + 2 * vector)
        return Launch(_PAIRS, (trips, tiles, trips, tiles), loaded, 3 * matrix + vector, 5 * matrix + vector)
    of_keys = 2 * matrix / tiles + 2 * (matrix + vector)
    of_queries = 2 * (matrix + vector) / tiles + 2 * matrix
    return Launch(
        2 * _PAIRS * tiles, (trips, trips), (of_keys + of_queries) / 2, 3 * matrix / (2 * tiles),
        fetched=(2 * matrix + vector) / tiles, forks=(False, True),
    )  # fmt: skip


def _delta_launch(features: int) -> Launch:
    matrix, tiles = 2 * _DELTA_LENGTH * features, -(-_DELTA_LENGTH // delta_constexprs(features)["BM"])
    return Launch(_PAIRS * tiles, (), 2 * matrix / tiles, 4 * _DELTA_LENGTH / tiles, 2 * matrix / tiles)


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
    inputs = _trace_inputs(length, features)
    out, lse = forward_reference(**inputs, scale=features**-0.5)  # a forward kernel would be traced too
    inputs |= {"grad": torch.randn_like(out), "lse": lse}
    grads, delta = backward(**inputs, out=out, scale=features**-0.5, config=config)
    if delta is not None or length > SUMMED.value:
        inputs["out"] = out
    logits = 2 * length**2
    needed = {"products": 5 * 2 * logits * features, "exponentials": logits}
    return TracedCall(inputs, {"grads": grads}, {} if delta is None else {"delta": delta}, **needed)
