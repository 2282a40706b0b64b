"""Triton kernels on CPU tensors, run by the machine code that the compile report has of them.

with machine_code(compile_cases(), capability=80):
    out, lse = launch.forward(query, key, value, scale, config)
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import JITFunction

from benchmarks.compiled.cases.case import CompileCase
from benchmarks.compiled.resources import compile_case
from benchmarks.compiled.sass.listing import Listing
from benchmarks.compiled.sass.machine import Machine
from benchmarks.compiled.sass.memory import Memory

_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int64: "*i64"}
_FORMATS = {"i32": "i", "fp32": "f"}
_compiled: dict[tuple[str, int, tuple[str, ...]], tuple[Listing, int]] = {}  # and bytes of shared memory


@contextlib.contextmanager
def machine_code(
    cases: list[CompileCase], capability: int, change: Callable[[Listing], Listing] = lambda listing: listing
) -> Iterator[list[tuple[str, Machine]]]:
    """Run what is launched within, and give the cases that ran, each with its machine.

    A launch runs the case of its kernel, constants and options, compiled for the types of its tensors: for those of the
    case the very machine code that the report counts. `torch.empty` gives NaN, so that a result that is not stored, or
    is loaded before, shows.

    Args:
        change: of what is compiled, what runs instead.

    Raises:
        LookupError: no case has the kernel with these constants and options.
        benchmarks.compiled.sass.memory.Fault: a race, or a load of what nobody has stored.
    """
    ran: list[tuple[str, Machine]] = []

    def run(kernel: JITFunction, *arguments: object, grid: tuple[int, ...], warmup: bool, **options: object) -> None:
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
        case = _case_of(cases, kernel, capability, given)
        listing, shared_bytes = _compile(case, capability)
        ran.append((case.name, _run(case, change(listing), shared_bytes, given, (grid[0], *grid[1:2], 1)[:2])))

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with mock.patch.object(JITFunction, "run", run):
            yield ran
    finally:
        torch.use_deterministic_algorithms(before)


def _case_of(cases: list[CompileCase], kernel: JITFunction, capability: int, given: dict[str, Any]) -> CompileCase:
    options = ("num_warps", "num_stages", "maxnreg")
    for case in cases:
        asked = case.constexprs | dict(zip(options, (case.num_warps, case.num_stages, case.max_registers), strict=True))
        if case.kernel is kernel and case.capability in (None, capability):
            if all(given.get(name) == value for name, value in asked.items()):
                types = {name: _TYPES[value.dtype] for name, value in given.items() if isinstance(value, Tensor)}
                return replace(case, signature=case.signature | types)
    raise LookupError(f"no compile case of {kernel.__name__} for sm_{capability} has the constants of this launch")


def _compile(case: CompileCase, capability: int) -> tuple[Listing, int]:
    key = case.name, capability, tuple(case.signature.values())
    if key not in _compiled:
        compiled = compile_case(case, capability)
        _compiled[key] = Listing.of(compiled.asm["cubin"]), compiled.metadata.shared
    return _compiled[key]


def _run(
    case: CompileCase, listing: Listing, shared_bytes: int, given: dict[str, Any], grid: tuple[int, int]
) -> Machine:
    names = [name for name, kind in case.signature.items() if kind != "constexpr"]
    tensors = {name: given[name] for name in names if isinstance(given[name], Tensor)}
    contents = {tensor.data_ptr() - _offset(tensor): _bytes(tensor) for tensor in tensors.values()}
    memory = Memory(4096 + sum(content.nbytes + 512 for content in contents.values()))
    places = {start: memory.place(content) for start, content in contents.items()}
    parameters = b""
    for name in names:
        kind = _FORMATS.get(case.signature[name], "Q")
        value = given[name]
        if kind == "Q":
            value = places[value.data_ptr() - _offset(value)] + _offset(value)
            if name in case.divisible_by_16 and value % 16:
                raise ValueError(f"{case.name}: {name} does not begin at a multiple of 16 bytes")
        parameters += bytes(-len(parameters) % struct.calcsize(kind)) + struct.pack(f"<{kind}", value)
    parameters += bytes(-len(parameters) % 8 + 16)  # two pointers to scratch memory that Triton adds
    machine = Machine(listing, grid, 32 * case.num_warps, shared_bytes, parameters, memory, checked=True)
    machine.run()
    for start, content in contents.items():
        content[:] = memory.read(places[start], content.nbytes)
    return machine


def _offset(tensor: Tensor) -> int:
    """Bytes of the storage before the tensor's first element."""
    return tensor.storage_offset() * tensor.element_size()


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """All bytes of a tensor's storage, not copied."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
