"""Loads the compiled extension. Importing this module runs it once; after that the two constants say what happened.

`cpu_missing` and `cuda_missing` are None when the binary is loaded, else the reason, ready to be printed. The binaries
register C++ implementations of ops whose schemas Python has defined, hold no Python, and are found beside this file:
`_C.abi3.so` and `_C_cuda.cu<major>.abi3.so`, whose name carries the CUDA version it was built for.
"""

from __future__ import annotations

from pathlib import Path

import torch

BUILD_HINT = "to build it, type: pip install -e .  (needs a C++20 compiler)"


def _load(pattern: str) -> str | None:
    found = sorted(Path(__file__).parent.glob(pattern))
    if not found:
        return f"not built; {BUILD_HINT}"
    try:
        torch.ops.load_library(found[0])
    except OSError as error:
        return f"{found[0].name} does not load: {error}; {BUILD_HINT}"
    return None


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return "this torch is a build without CUDA"
    major = torch.version.cuda.split(".")[0]
    if not (reason := _load(f"_C_cuda.cu{major}.*.so")):
        return None
    return f"no extension for CUDA {major}, this torch's version: {reason} and nvcc {major}"


cpu_missing: str | None = _load("_C.*.so")
cuda_missing: str | None = _load_cuda()
