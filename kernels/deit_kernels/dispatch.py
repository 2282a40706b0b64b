"""Where a Triton kernel runs: decided from the device of the tensors and from a real driver, without importing triton.

Every op that has one asks `kernel_unavailable_reasons(device)` and takes its PyTorch path when the list is not empty,
after telling why through `report_fallback`; a loss of CPU tensors asks only where the extension does not run it. Both
may be called inside `torch.compile`: they are constants to Dynamo, since a logger or a driver query in the traced code
would break the full graph.

With `TRITON_INTERPRET=1` in the environment before import, the Triton kernels run on CPU tensors through Triton's
interpreter (fp16 and fp32; its bf16 additions and dots are silently wrong, so bf16 is refused).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
"""True when the Triton kernels run on CPU tensors; fixed at import, as Triton fixes it where a kernel is defined."""

ON_CPU = "the tensors are on the CPU"
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
_OLDEST_CAPABILITY = (8, 0)  # cp.async and bf16 matrix instructions; nothing older is compiled or tested

_OLDEST_TRITON = (3, 6)

_log = logging.getLogger("deit_kernels")
T = TypeVar("T")


def constant_to_dynamo(function: Callable[..., T]) -> functools._lru_cache_wrapper[T]:
    """Call `function` once for the same positional arguments; Dynamo takes the result for a constant.

    `torch.compiler.assume_constant_result` does the same, but calling it imports torch._dynamo, which takes seconds.
    Dynamo looks through a `functools.cache`, so another function stands around it.
    """
    cached = functools.cache(function)

    @functools.wraps(function)
    def constant(*args: Any) -> Any:
        return cached(*args)

    vars(constant).update(_dynamo_marked_constant=True, cache_clear=cached.cache_clear)  # what Dynamo looks for
    return cast("functools._lru_cache_wrapper[T]", constant)


@constant_to_dynamo
def report_fallback(op: str, reason: str, expected: bool) -> bool:
    """Log once per process why `op` runs plain PyTorch: INFO where that is expected (a CPU tensor), else WARNING.

    Returns:
        True, since Dynamo takes no None for a constant.
    """
    _log.log(logging.INFO if expected else logging.WARNING, "%s runs plain PyTorch: %s", op, reason)
    return True


@constant_to_dynamo
def kernel_unavailable_reasons(device: torch.device) -> tuple[str, ...]:
    """Why a Triton kernel of this package cannot run on `device`; empty when it can."""
    if not _TRITON_INSTALLED:
        return ("triton is not installed",)
    if (version := _triton_version()) < _OLDEST_TRITON:
        return (f"triton {version[0]}.{version[1]} is older than {_OLDEST_TRITON[0]}.{_OLDEST_TRITON[1]}",)
    if device.type == "cpu":
        return () if INTERPRETING else (ON_CPU,)
    if device.type != "cuda":
        return (f"no kernel for device type {device.type!r}",)
    if torch.version.hip is not None:
        return ("ROCm is not supported",)
    # Fake CUDA tensors exist on machines without a driver, where asking for the capability would raise.
    if not torch.cuda.is_available():
        return ("no CUDA driver",)
    if torch.cuda.get_device_capability(device.index) < _OLDEST_CAPABILITY:
        return ("compute capability below 8.0",)
    if not _has_c_compiler():
        return (
            "there is no C compiler, by which Triton builds a kernel's launcher: install gcc (Debian, Ubuntu: "
            "apt install gcc python3-dev), or set CC to a compiler",
        )
    return ()


def _has_c_compiler() -> bool:
    """Whether Triton 3.8 finds a compiler (triton/runtime/build.py): CC, gcc, clang, or a builder in their place."""
    knobs = sys.modules.get("triton.knobs")
    if knobs is not None and knobs.build.impl is not None:
        return True
    command = os.environ.get("CC")
    return any(map(shutil.which, ["gcc", "clang"] if command is None else [command]))


def _triton_version() -> tuple[int, int]:
    """Triton's version, without importing it; a Triton installed under another name counts as new enough."""
    try:
        major, minor = importlib.metadata.version("triton").split(".")[:2]
        return int(major), int(minor)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return _OLDEST_TRITON
