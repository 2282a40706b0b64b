"""What large systems ask of an op: its FLOPs, and how it is split over devices.

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


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, name: str) -> None:
        self.loader, self.name = loader, name

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        for register in _waiting.pop(self.name, []):
            register()

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path, target=None) -> importlib.machinery.ModuleSpec | None:
        if name not in _waiting:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, spec.name)
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
