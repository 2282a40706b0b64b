"""Loads the compiled extension. Importing this module does it once; the two constants then say what happened.

`cpu_missing` and `cuda_missing` are None when the binary is loaded, else the reason, ready to be printed. The binaries
register C++ implementations of ops whose schemas Python defines; they use no Python API and lie beside this file as
`_C.abi3.so` and `_C_cuda.cu<N>.abi3.so`, with the CUDA version N they were built for.

A binary that was built for another INTERFACE is not loaded, as if it were not there: after a `git pull` the Python code
of an editable install is new and its binaries are old.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import torch

# Stands for what Python and C++ agree on: the ops' schemas, the layout of their records, the meaning of their numbers.
# Raised with every change of these; setup.py hands it to the compiler, csrc/interface.cpp writes it into each binary.
INTERFACE = 5
_MARK = re.compile(rb"deit_kernels interface (\d{1,9});")


def other_interface(binary: Path) -> str | None:
    """Why a binary does not fit this Python code; None where it does, and for a file that is no binary at all.

    Raises:
        OSError: the file cannot be read, or is cut short.
    """
    content = binary.read_bytes()
    if not content.startswith(b"\x7fELF"):
        return None
    if _is_cut_short(content):
        raise OSError("the file is cut short")
    found = _MARK.search(content)
    number = int(found[1]) if found else 0  # 0: older than this check
    if number == INTERFACE:
        return None
    age = "older" if number < INTERFACE else "newer"
    return f"{binary.name} is {age} than its Python code (built for interface {number}, needed is {INTERFACE})"


def _is_cut_short(content: bytes) -> bool:
    """Whether an ELF file lacks some of its table of sections, which comes last. Loading one may end the process."""
    if len(content) < 64:
        return True
    (table,), (entry, count) = struct.unpack_from("=Q", content, 0x28), struct.unpack_from("=HH", content, 0x3A)
    return len(content) < table + entry * count


def _load(pattern: str, needs: str, absent: str = "the extension is not built") -> str | None:
    hint = f"to build it, type in a clone of deit-fast: pip install -e ./kernels  (needs {needs})"
    found = sorted(Path(__file__).parent.glob(pattern))
    if not found:
        return f"{absent}; {hint}"
    try:
        if reason := other_interface(found[0]):
            return f"{reason}; {hint}"
        torch.ops.load_library(found[0])
    except OSError as error:
        return f"{found[0].name} does not load ({error}); {hint}"
    return None


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return "this torch is a build without CUDA"
    major = torch.version.cuda.split(".")[0]
    absent = "the extension is not built"
    for other in Path(__file__).parent.glob("_C_cuda.cu*.so"):
        built_for = other.name.removeprefix("_C_cuda.cu").partition(".")[0]
        absent = f"{other.name} is built for CUDA {built_for}, this torch for CUDA {torch.version.cuda}"
    needs = f"nvcc {major} and a C++20 compiler"
    return _load(f"_C_cuda.cu{major}.*.so", needs, absent)


cpu_missing: str | None = _load("_C.*.so", "a C++20 compiler")
cuda_missing: str | None = _load_cuda()
