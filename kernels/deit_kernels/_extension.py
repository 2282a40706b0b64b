"""Loads the compiled extension. Importing this module does it once; the two constants then say what happened.

`cpu_missing` and `cuda_missing` are None when the binary is loaded, else the reason, ready to be printed. The binaries
register C++ implementations of ops whose schemas Python defines; they use no Python API and lie beside this file as
`_C.abi3.so` and `_C_cuda.cu<N>.abi3.so`, with the CUDA version N they were built for.
"""

from __future__ import annotations

from pathlib import Path

import torch


def _load(pattern: str, needs: str) -> str | None:
    hint = f"to build it, type: pip install -e .  (needs {needs})"
    found = sorted(Path(__file__).parent.glob(pattern))
    if not found:
        return f"the extension is not built; {hint}"
    try:
        torch.ops.load_library(found[0])
    except OSError as error:
        return f"{found[0].name} does not load ({error}); {hint}"
    return None


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return "this torch is a build without CUDA"
    major = torch.version.cuda.split(".")[0]
    return _load(f"_C_cuda.cu{major}.*.so", f"nvcc {major}, the CUDA version of this torch, and a C++20 compiler")


cpu_missing: str | None = _load("_C.*.so", "a C++20 compiler")
cuda_missing: str | None = _load_cuda()
