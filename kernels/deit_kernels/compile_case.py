"""What an op tells the benchmarks about its kernels, so that they can be judged without a GPU.

Every op's `launch.py` exposes two functions that `benchmarks/compile_report.py` calls:

    compile_cases() -> list[CompileCase]    each kernel as the JIT would specialise it; compiled ahead of time
    trace_cases() -> list[TraceCase]        one call of the op on CPU tensors; its loads and stores are recorded
                                            (called with TRITON_INTERPRET=1)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class CompileCase:
    """One kernel with everything that decides its machine code, but the target.

    Attributes:
        name: unique in the package, e.g. "attention_forward_resident n198 d64"; the key of the budget file.
        kernel: the `@triton.jit` function.
        signature: argument name -> Triton type ("*bf16", "i32", "fp32", "constexpr"), in the kernel's order.
        constexprs: constexpr argument -> value.
        divisible_by_16: arguments that the JIT would mark as divisible by 16 (aligned pointers, such integers). Leaving
            one out gives 2-byte loads and a wrong picture of the registers.
        num_warps, num_stages: launch options.
        capability: the only target this case is for, as 90; None: every target.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, object]
    divisible_by_16: frozenset[str]
    num_warps: int
    num_stages: int
    capability: int | None = None


@dataclass(frozen=True)
class TracedCall:
    """The tensors of one traced call, alive until the trace is judged.

    Attributes:
        inputs: what the op reads; the minimum traffic counts each of their elements once.
        outputs: what the op returns, uninitialised before the call; each element must be stored exactly once.
        scratch: what one kernel of the call stores and a later one loads; not counted in the minimum.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    scratch: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TraceCase:
    """One call of an op, whose loads and stores are recorded under the interpreter.

    Attributes:
        name: unique in the package; the key of the budget file.
        run: makes the inputs, launches the kernels on CPU tensors, and returns every tensor they touch.
    """

    name: str
    run: Callable[[], TracedCall]
