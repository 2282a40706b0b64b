"""What an op tells the benchmarks about its kernels, so that they can be judged without a GPU.

Each op has a module here with two functions:

    compile_cases() -> list[CompileCase]    each kernel as the JIT would specialise it; compiled ahead of time
    trace_cases() -> list[TraceCase]        one call of the op on CPU tensors; its loads, stores, products and
                                            exponentials are recorded (called with TRITON_INTERPRET=1)
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
        num_warps, num_stages, max_registers: launch options; None of the last: as the compiler chooses.
        capability: the only target this case is for, as 90; None: every target.
        trace: name of the TraceCase that runs this kernel in these blocks; "": none does.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, object]
    divisible_by_16: frozenset[str]
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    capability: int | None = None
    trace: str = ""


@dataclass(frozen=True)
class TracedCall:
    """The tensors of one traced call, alive until the trace is judged.

    Attributes:
        inputs: what the op reads; the minimum traffic counts each of their elements once.
        outputs: what the op returns, uninitialised before the call; each element must be stored exactly once.
        scratch: what one kernel of the call stores and a later one loads; not counted in the minimum.
        products: operations of the matrix products that any algorithm needs, multiplications and additions; 0: none.
        exponentials: how many any algorithm needs that keeps none of them in memory; 0: none.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    scratch: dict[str, Tensor] = field(default_factory=dict)
    products: int = 0
    exponentials: int = 0


@dataclass(frozen=True)
class TraceCase:
    """One call of an op, whose loads, stores and arithmetic are recorded under the interpreter.

    Attributes:
        name: unique in the package; the key of the budget file.
        run: makes the inputs, launches the kernels on CPU tensors, and returns every tensor they touch.
    """

    name: str
    run: Callable[[], TracedCall]
