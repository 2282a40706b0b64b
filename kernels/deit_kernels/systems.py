"""What others ask of an op: its FLOPs, how it is split over devices, and what it does under `torch.func.vmap`.

Nothing here imports `torch.utils.flop_counter` or `torch.distributed.tensor`, since importing our ops would then take
several times as long: what is registered with one of them waits until somebody else imports it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_waiting: dict[str, list[Callable[[], None]]] = {}


def when_imported(module: str, register: Callable[[], None]) -> None:
    """Call `register` now if `module` is imported, else right after somebody imports it."""
    if module in sys.modules:
        register()
    else:
        _waiting.setdefault(module, []).append(register)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path, target=None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name in _waiting else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            for register in _waiting.pop(name, []):
                register()

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]  # of this one loader
        return spec


sys.meta_path.insert(0, _Finder())


def register_flops(op: torch._ops.OpOverloadPacket, formula: Callable[..., int]) -> None:
    """Let FlopCounterMode of `torch.utils.flop_counter` count an op.

    Args:
        formula: takes the op's arguments with shapes in place of tensors, and `out_shape`.
    """

    def register() -> None:
        from torch.utils.flop_counter import register_flop_formula

        register_flop_formula(op)(formula)

    when_imported("torch.utils.flop_counter", register)


Split = tuple[list[int | None], list[int | None]]


def register_splits(op: torch._ops.OpOverload, splits: list[Split] | Callable[..., list[Split]]) -> None:
    """Let DTensors run an op without communication, split along the same part of every tensor, or whole.

    Args:
        splits: for every way the dimension of each result and of each argument that is split; None: whole, or no
            tensor. Or a function that takes the op's arguments and returns them.
    """

    def register() -> None:
        from torch.distributed.tensor import Replicate, Shard
        from torch.distributed.tensor.experimental import register_sharding

        def placed(dims: list[int | None], args: tuple) -> list:
            tensors = [hasattr(arg, "placements") for arg in args] if args else [True] * len(dims)
            return [
                (Replicate() if dim is None else Shard(dim)) if is_tensor else None
                for dim, is_tensor in zip(dims, tensors, strict=True)
            ]

        def rule(*args: Any) -> list[tuple[list, list]]:
            ways = splits(*args) if callable(splits) else splits
            whole: Split = [None] * len(op._schema.returns), [None] * len(args)
            return [(placed(results, ()), placed(given, args)) for results, given in (whole, *ways)]

        register_sharding(op)(rule)

    when_imported("torch.distributed.tensor", register)


def folded(info: Any, dims: tuple[int | None, ...], args: Any) -> list[Any]:
    """A vmap's arguments with the mapped dimension as a part of the first: (V, B, …) becomes (V·B, …)."""
    pairs = zip(args, dims, strict=True)
    return [mapped(info, dim, arg).flatten(0, 1) if isinstance(arg, torch.Tensor) else arg for arg, dim in pairs]


def mapped(info: Any, dim: int | None, tensor: torch.Tensor) -> torch.Tensor:
    """An argument of a vmap with the mapped dimension first."""
    return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
