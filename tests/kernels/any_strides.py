"""Calls of every op of deit_kernels, and each of their tensors laid out otherwise: strides, offsets, expansions, hooks.

An op must return the same bits for the same values, or refuse the layout by a ValueError.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Call = tuple[torch._ops.OpOverload, tuple]


def op_names() -> set[str]:
    """The registered ops of deit_kernels, without the namespace."""
    schemas = (schema.name for schema in torch._C._jit_get_all_schemas())
    return {name.removeprefix("deit_kernels::") for name in schemas if name.startswith("deit_kernels::")}


def calls_of(run: Callable[[], Any]) -> list[Call]:
    """Every call of our ops that `run` makes, in its backward pass too."""
    calls: list[Call] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))  # a call that is refused has no results to compare
            if function.namespace == "deit_kernels":
                calls.append((function, tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)))
            return result

    with Record():
        run()
    return calls


def layouts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of a tensor in other layouts."""
    backwards = tuple(range(tensor.dim()))[::-1]
    yield "permuted", tensor.permute(backwards).contiguous().permute(backwards)
    yield "with an offset", contiguous_from_an_offset(tensor)
    if tensor.dim():
        apart = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])[..., ::2]
        yield "with gaps", apart.copy_(tensor)


def assert_no_layout_matters(call: Call) -> None:
    op, args = call
    plain = results_of(op, args)
    for place, arg in enumerate(args):
        if not isinstance(arg, Tensor) or arg.numel() == 0:
            continue
        for name, other in layouts(arg):
            _assert_same(op, args, place, name, other, plain)
        if arg.dim() and arg.shape[0] > 1:  # its first row for all rows
            repeated = arg[:1].expand_as(arg)
            changed = (*args[:place], repeated.contiguous(), *args[place + 1 :])
            with suppress(ValueError):  # such values are refused
                _assert_same(op, changed, place, "expanded", repeated, results_of(op, changed))


def _assert_same(op: Any, args: tuple, place: int, name: str, arg: Tensor, plain: list[Tensor]) -> None:
    try:
        seen = results_of(op, args, place, arg)
    except ValueError:
        return  # refused, which is no wrong result
    for one, two in zip(seen, plain, strict=True):
        same = torch.equal(one.nan_to_num(7.0), two.nan_to_num(7.0))
        assert same, f"{op}: {op._schema.arguments[place].name} {name}"


def results_of(op: Any, args: tuple, place: int | None = None, arg: Tensor | None = None) -> list[Tensor]:
    """What an op returns, or writes into its last argument; with another argument at a place, as it is."""
    copies = [each.clone() if isinstance(each, Tensor) else each for each in args]
    if place is not None:
        copies[place] = arg
    result = op(*copies)
    if result is None:
        return [copies[-1].clone()]
    return [result] if isinstance(result, Tensor) else list(result)


@contextmanager
def saved_to_disk() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        files: list[Path] = []

        def pack(tensor: Tensor) -> Path:
            files.append(Path(folder) / f"{len(files)}.pt")
            torch.save(tensor.clone(memory_format=torch.contiguous_format), files[-1])
            return files[-1]

        with torch.autograd.graph.saved_tensors_hooks(pack, torch.load):
            yield


def contiguous_from_an_offset(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


HOOKS = {
    "save_on_cpu": lambda: torch.autograd.graph.save_on_cpu(pin_memory=False),
    "packed contiguously": lambda: torch.autograd.graph.saved_tensors_hooks(
        contiguous_from_an_offset, lambda tensor: tensor
    ),
    "saved to disk": saved_to_disk,
}


def assert_hooks_change_no_gradient(run: Callable[..., Tensor], *leaves: Tensor) -> None:
    """`run` of leaves that require grad gives the same gradients through every hook as without one."""

    def gradients(hook: Callable[[], Any]) -> tuple[Tensor, ...]:
        copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        with hook():
            return torch.autograd.grad(run(*copies).float().square().sum(), copies)

    expected = gradients(nullcontext)
    for name, hook in HOOKS.items():
        for seen, wanted in zip(gradients(hook), expected, strict=True):
            assert torch.equal(seen, wanted), name
