"""The compile report judges the kernels that a GPU would run: its cases are what Triton's JIT makes of a real call."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from benchmarks.compiled.cases import loss as cases
from benchmarks.compiled.resources import compile_resources
from deit_kernels.distill_loss import kernels

CASES = {case.name: case for case in cases.compile_cases()}


class NoCard:
    """The part of a CUDA driver that the JIT asks before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_active", NoCard())


def jit_view(kernel, arguments: tuple, options: dict) -> tuple[dict, frozenset[str]]:
    """(signature, arguments marked as divisible by 16) that the JIT chooses, launch options left out."""
    source = kernel.warmup(*arguments, grid=(1,), **options).src
    names = kernel.arg_names
    marked = [names[path[0]] for path, attributes in source.attrs.items() if attributes]
    return source.signature, frozenset(marked)


@pytest.mark.parametrize(
    "form, classes",
    [("hard mixed", 1000), ("topk", 1000), ("soft dense", 21841), ("binary hard", 1000), ("hard weighted", 1000)],
)
def test_the_cases_are_what_the_jit_specialises(form: str, classes: int, no_card: None) -> None:
    call = cases.example(form, classes, torch.bfloat16)
    for direction, (arguments, options) in cases.example_arguments(call).items():
        case = CASES[f"loss_{direction} {form} c{classes}"]
        signature, marked = jit_view(getattr(kernels, f"{direction}_kernel"), arguments, options)
        assert signature == case.signature
        assert marked == case.divisible_by_16


def test_a_label_view_at_an_odd_address_and_another_batch_size_run_the_same_binary(no_card: None) -> None:
    call = cases.example("hard mixed", 1000, torch.bfloat16)
    moved = cases.example("hard mixed", 1000, torch.bfloat16, rows=9)
    odd = [torch.zeros(10, dtype=vector.dtype)[1:].copy_(vector) for vector in (moved.target, moved.partner, moved.lam)]
    assert any(vector.data_ptr() % 16 for vector in odd)
    moved = moved._replace(target=odd[0], partner=odd[1], lam=odd[2], alpha=0.25, ignore_index=-1, tau=1.0)
    first, second = cases.example_arguments(call), cases.example_arguments(moved)
    for direction, (arguments, options) in first.items():
        kernel = getattr(kernels, f"{direction}_kernel")
        assert jit_view(kernel, *second[direction]) == jit_view(kernel, arguments, options)
        assert second[direction][1] == options


@pytest.mark.parametrize("classes", [1000, 21840, 21841])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("form", ["hard mixed", "binary"])
def test_no_spills_and_128_bit_accesses(form: str, direction: str, classes: int) -> None:
    numbers = compile_resources(CASES[f"loss_{direction} {form} c{classes}"], 90)
    assert numbers["spills"] == numbers["stack_bytes"] == 0
    # cls, dist, teacher; backward knows the teacher's label. A binary cross-entropy reads cls alone.
    read, written = {"hard mixed": (3, 2), "binary": (1, 1)}[form]
    assert numbers["loads_128"] >= (read if direction == "forward" else written)
    assert numbers["stores_128"] >= (written if direction == "backward" else 0)
