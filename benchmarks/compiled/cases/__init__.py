"""What the ops of Triton kernels give to be compiled and traced; case.py says what a case is."""

from __future__ import annotations

from benchmarks.compiled.cases import attention, loss
from benchmarks.compiled.cases.case import CompileCase, TraceCase

OPS = (attention, loss)


def compile_cases() -> list[CompileCase]:
    return [case for op in OPS for case in op.compile_cases()]


def trace_cases() -> list[TraceCase]:
    return [case for op in OPS for case in op.trace_cases()]
