"""Record what a kernel loads, stores and computes under Triton's interpreter, and judge it: no GPU needed.

    TRITON_INTERPRET=1 python -m benchmarks.compiled.trace NAME...        # JSON on standard output

For each of the named `trace_cases()` (cases/case.py defines them):

    traffic                 bytes loaded and stored by all programs, over the bytes of all inputs and outputs once
    products                operations of all matrix products, padding and repeats included, over those that are needed
    exponentials            the same of exponentials; neither is there where nothing is needed
    outside                 accesses to an address in no argument (after masking)
    stored_twice, missing   output elements stored more than once, and never
    foreign_loads           loads from an address that another program of the same launch stores: a race on a GPU

The traffic counts what programs ask for. Of what one program asks, and others too, a GPU may serve a part from its L2.
A GPU executes one matrix instruction for a fixed number of operations, and every block is a multiple of its shape: so
products is also the matrix instructions executed over their minimum.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from benchmarks.compiled.cases import trace_cases
from benchmarks.compiled.cases.case import TraceCase, TracedCall


@dataclass
class Access:
    """Addresses of one load or store of one program, unmasked elements only."""

    launch: int
    program: tuple[int, int, int]
    addresses: np.ndarray
    itemsize: int


@dataclass
class Recorder:
    """Everything since `recording` began; `launch` counts the kernels started, `products` operations."""

    launch: int = 0
    products: int = 0
    exponentials: int = 0
    loads: list[Access] = field(default_factory=list)
    stores: list[Access] = field(default_factory=list)


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """Wrap the interpreter's masked load and store, through which every pointer access goes, its dot and exponentials.

    Raises:
        RuntimeError: a kernel used an atomic, a descriptor or a scaled product, which this trace does not record.
    """
    from triton.runtime import interpreter

    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    recorder = Recorder()
    names = ("create_masked_load", "create_masked_store", "create_dot", "create_exp", "create_exp2")
    originals = {name: getattr(builder, name) for name in names}
    launch = executor.__call__

    def record(log: list[Access], pointers, mask) -> None:
        itemsize = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.uint64).ravel()
        log.append(Access(recorder.launch, tuple(builder.grid_idx), addresses, itemsize))

    def load(pointers, mask, *rest):
        record(recorder.loads, pointers, mask)
        return originals["create_masked_load"](pointers, mask, *rest)

    def store(pointers, value, mask, *rest):
        record(recorder.stores, pointers, mask)
        return originals["create_masked_store"](pointers, value, mask, *rest)

    def dot(a, b, *rest):
        recorder.products += 2 * a.data.size * b.data.shape[-1]
        return originals["create_dot"](a, b, *rest)

    def exponential(name):
        def run(value):
            recorder.exponentials += value.data.size
            return originals[name](value)

        return run

    def refuse(*_):
        raise RuntimeError("the access trace does not record atomics, descriptors and scaled products")

    def call(self, *arguments, **options):
        recorder.launch += 1
        return launch(self, *arguments, **options)

    refused = [name for name in dir(builder) if "atomic" in name or name.startswith("create_descriptor")]
    refused.append("create_dot_scaled")
    try:
        builder.create_masked_load, builder.create_masked_store, builder.create_dot = load, store, dot
        builder.create_exp, builder.create_exp2 = exponential("create_exp"), exponential("create_exp2")
        for name in refused:
            setattr(builder, name, refuse)
        executor.__call__ = call
        yield recorder
    finally:
        for name in (*names, *refused):
            delattr(builder, name)  # the class's own methods come back
        executor.__call__ = launch


def judge(recorder: Recorder, call: TracedCall) -> dict[str, float]:
    """The counts that the module's docstring names."""
    tensors = {**call.inputs, **call.outputs, **call.scratch}
    spans = sorted((t.data_ptr(), t.data_ptr() + _span_bytes(t)) for t in tensors.values())
    stored = _addresses(recorder.stores)
    expected = np.sort(np.concatenate([_element_addresses(t) for t in call.outputs.values()]))
    scratch = [_element_addresses(t) for t in call.scratch.values()]
    stored_outputs, counts = np.unique(stored[~np.isin(stored, np.concatenate([*scratch, _NONE]))], return_counts=True)
    moved = sum(len(access.addresses) * access.itemsize for access in recorder.loads + recorder.stores)
    minimum = sum(t.numel() * t.element_size() for t in (*call.inputs.values(), *call.outputs.values()))
    arithmetic = {
        "products": (recorder.products, call.products),
        "exponentials": (recorder.exponentials, call.exponentials),
    }
    assert all(needed or not done for done, needed in arithmetic.values()), "the call does not say what it needs"
    return {
        "traffic": round(moved / minimum, 4),
        **{name: round(done / needed, 4) for name, (done, needed) in arithmetic.items() if needed},
        "outside": _outside(recorder.loads + recorder.stores, spans),
        "stored_twice": int((counts > 1).sum()),
        "missing": int((~np.isin(expected, stored_outputs)).sum()),
        "foreign_loads": _foreign_loads(recorder),
    }


_NONE = np.empty(0, np.uint64)


def _addresses(accesses: list[Access]) -> np.ndarray:
    return np.concatenate([_NONE, *(access.addresses for access in accesses)])


def _element_addresses(tensor: Tensor) -> np.ndarray:
    offsets = np.zeros(1, np.uint64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        steps = np.arange(size, dtype=np.uint64) * np.uint64(stride * tensor.element_size())
        offsets = (offsets[:, None] + steps).ravel()
    return offsets + np.uint64(tensor.data_ptr())


def _span_bytes(tensor: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _outside(accesses: list[Access], spans: list[tuple[int, int]]) -> int:
    outside = 0
    for access in accesses:
        inside = np.zeros(len(access.addresses), bool)
        for first, end in spans:
            inside |= (access.addresses >= first) & (access.addresses + np.uint64(access.itemsize) <= end)
        outside += int((~inside).sum())
    return outside


def _foreign_loads(recorder: Recorder) -> int:
    """Loads from an address that another program of the launch stores, before or after: programs have no order."""
    found = 0
    for launch in {access.launch for access in recorder.stores}:
        stores = [access for access in recorder.stores if access.launch == launch]
        loads = [access for access in recorder.loads if access.launch == launch]
        programs = {access.program: number for number, access in enumerate(stores + loads)}
        stored, loaded = _addresses(stores), _addresses(loads)
        order = np.argsort(stored, kind="stable")
        place = np.searchsorted(stored, loaded, "right", sorter=order) - 1  # the last that stores the address, if any
        stored_before = place >= 0
        owner, loader = order[place[stored_before]], _owners(loads, programs)[stored_before]
        same = stored[owner] == loaded[stored_before]
        found += int((same & (_owners(stores, programs)[owner] != loader)).sum())
    return found


def _owners(accesses: list[Access], programs: dict[tuple[int, int, int], int]) -> np.ndarray:
    numbers = np.array([programs[access.program] for access in accesses], np.int64)
    return np.repeat(numbers, np.array([len(access.addresses) for access in accesses], np.int64))


def trace(case: TraceCase) -> dict[str, float]:
    """Run one case under the recorder and judge it."""
    with recording() as recorder:
        call = case.run()
    return judge(recorder, call)


def main() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("set TRITON_INTERPRET=1: the trace is taken from Triton's interpreter")
    json.dump({case.name: trace(case) for case in trace_cases() if case.name in sys.argv[1:]}, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
