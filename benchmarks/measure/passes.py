"""The rows of an op that has a backward: every form of it from inputs of its own; forward, backward alone, or both.

LOSS = Op(form, inputs)            # what to time under a name, and what it takes
LOSS.row(benchmark, shape, "both", ["ours", "eager"], rounds=20)
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.measure.device_timing import (
    CLOCK_NAME,
    ON_CARD,
    Call,
    copies,
    environment,
    host_microseconds,
    kernels_launched,
    time_calls,
)
from benchmarks.measure.interleaved import Limit, record

DIRECTIONS = ("forward", "backward", "both") if ON_CARD else ("forward", "both")
MOST_BYTES = 4 << 30  # of all sets of inputs; more than any L2 holds


class Shape(Protocol):
    """The size of a call; its attributes become fields of the row."""

    def floor_bytes(self, direction: str) -> int:
        """Bytes of inputs, outputs and gradients, each moved once."""

    def flops(self, direction: str) -> int:
        """Operations of matrix products; 0 where they are not worth a column."""

    def limit(self, direction: str) -> Limit: ...


class Given(NamedTuple):
    """Inputs of a call.

    Attributes:
        arguments: what a form takes.
        leaves: those that get a gradient.
        grad: of the output; None where that is a loss.
    """

    arguments: Sequence[object]
    leaves: Sequence[Tensor]
    grad: Tensor | None = None


class Op(NamedTuple):
    """What is compared.

    Attributes:
        form: the function of a name; an ImportError or NotImplementedError leaves it out of the row, with the reason.
        inputs: of a form by its name, random.
        waits: forms that wait for the device, which no graph can hold.
    """

    form: Callable[[str], Callable[..., Tensor]]
    inputs: Callable[[str, Any], Given]
    waits: tuple[str, ...] = ()

    def calls(self, name: str, shape: Shape, direction: str) -> list[Call]:
        """The calls that `time_calls` needs, over sets of inputs that exceed the L2."""
        form, size = self.form(name), shape.floor_bytes("both")
        count = copies(size)
        given = [self.inputs(name, shape) for _ in range(min(count, -(-MOST_BYTES // size)))]

        def both(each: Given) -> tuple[Tensor, ...]:
            return torch.autograd.grad(form(*each.arguments), each.leaves, each.grad)

        def backward(each: Given) -> Call:
            out = form(*each.arguments)
            return functools.partial(torch.autograd.grad, out, each.leaves, each.grad, retain_graph=True)

        made: Callable[[Given], Call] = {
            "forward": lambda each: functools.partial(form, *each.arguments),
            "backward": backward,
            "both": lambda each: functools.partial(both, each),
        }[direction]
        calls = [made(each) for each in given]
        return [calls[i % len(calls)] for i in range(count)]

    def row(self, benchmark: BenchmarkFixture, shape: Shape, direction: str, names: Iterable[str], rounds: int) -> None:
        """Time the named forms, "ours" first."""
        makers = {name: functools.partial(self.calls, name, shape, direction) for name in names}
        seconds, left_out = time_calls(makers, rounds, self.waits)
        call, flops = makers["ours"]()[0], shape.flops(direction)
        rates: dict[str, Any] = {name: flops / statistics.median(times) / 1e12 for name, times in seconds.items()}
        sizes: dict[str, Any] = {
            name: str(value) if isinstance(value, torch.dtype) else value for name, value in vars(shape).items()
        }
        record(
            benchmark, seconds, clock=CLOCK_NAME, limit=shape.limit(direction), left_out=left_out, direction=direction,
            floor_bytes=shape.floor_bytes(direction), kernels=kernels_launched(call), host_us=host_microseconds(call),
            **sizes, **(rates and {"tflops": rates}), **environment(),
        )  # fmt: skip
