"""What the ops give to be compiled and traced; `deit_kernels.compile_case` says what a case is."""

from __future__ import annotations

from deit_kernels.compile_case import CompileCase, TraceCase
from deit_kernels.distill_loss import cases as distill_loss
from deit_kernels.short_attention import cases as attention

OPS = (attention, distill_loss)


def compile_cases() -> list[CompileCase]:
    return [case for op in OPS for case in op.compile_cases()]


def trace_cases() -> list[TraceCase]:
    return [case for op in OPS for case in op.trace_cases()]
