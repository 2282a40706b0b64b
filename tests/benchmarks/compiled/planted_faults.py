"""Kernels with one fault each, traced: `python planted_faults.py` prints what the access trace says of them as JSON.

A program and not a test, since the trace needs TRITON_INTERPRET=1 before triton is imported.
"""

import json
import sys

import torch
import triton
import triton.language as tl

from benchmarks.compiled.cases.case import TraceCase, TracedCall
from benchmarks.compiled.trace import trace

SIZE, BLOCK = 64, 16


@triton.jit
def double(source, target, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = rows >= 0
    if FAULT == "missing":
        kept = rows % 16 != 3
    if FAULT == "outside":
        rows += 1
    if FAULT == "stored twice":
        tl.store(target + rows, tl.load(source + rows))
    if FAULT == "foreign load":
        tl.store(target + rows, tl.load(target + (rows + BLOCK) % (4 * BLOCK)), mask=kept)
    else:
        tl.store(target + rows, 2 * tl.load(source + rows), mask=kept)
    if FAULT == "read twice":
        tl.load(source + rows)


@triton.jit
def multiply(source, target, TIMES: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    block = tl.load(source + place)
    for _ in tl.static_range(TIMES):
        result = tl.dot(block, tl.exp(block))
    tl.store(target + place, result)


def arithmetic(times: int) -> TraceCase:
    """A product and its exponentials, of which one each is needed."""

    def run() -> TracedCall:
        source, target = torch.zeros(2, BLOCK, BLOCK)
        multiply[(1,)](source, target, times, BLOCK)
        needed = {"products": 2 * BLOCK**3, "exponentials": BLOCK**2}
        return TracedCall({"source": source}, {"target": target}, **needed)

    return TraceCase(f"computed {times}", run)


def case(fault: str) -> TraceCase:
    def run() -> TracedCall:
        # The room behind each window keeps an access outside of it inside the process's own memory.
        source, target = torch.zeros(2 * SIZE)[:SIZE], torch.zeros(2 * SIZE)[:SIZE]
        double[(SIZE // BLOCK,)](source, target, fault, BLOCK)
        return TracedCall({"source": source}, {"target": target})

    return TraceCase(fault, run)


if __name__ == "__main__":
    faults = ("none", "missing", "outside", "stored twice", "foreign load", "read twice")
    cases = [*(case(fault) for fault in faults), arithmetic(1), arithmetic(3)]
    json.dump({case.name: trace(case) for case in cases}, sys.stdout)
