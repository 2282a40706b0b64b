"""Compile one Triton kernel for a GPU that is not there, and read its resources from the machine code.

`compile_resources(case, capability)` needs neither a GPU nor a driver: Triton brings ptxas, cuobjdump and nvdisasm.
The numbers are those of the compiled binary; how fast it runs they do not say.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.compiled.cases.case import CompileCase
from benchmarks.compiled.sass.listing import TOOLS, Listing

CAPABILITIES = (80, 89, 90, 100, 120)

_WARP = 32
_REGISTERS = 65536  # a multiprocessor's, every target here
_RESERVED_SHARED = 1024  # bytes the driver takes of each block's shared memory, since sm_80
_TENSOR_COLUMNS = 512  # a multiprocessor's tensor memory, sm_100
# Per capability: shared memory of a multiprocessor in bytes, resident threads, resident blocks (CUDA C++ Programming
# Guide, "Compute Capabilities").
_LIMITS = {
    80: (164 * 1024, 2048, 32),
    89: (100 * 1024, 1536, 24),
    90: (228 * 1024, 2048, 32),
    100: (228 * 1024, 2048, 32),
    120: (100 * 1024, 1536, 24),
}
# SASS mnemonics. HGMMA: matrix multiply of a warp group (sm_90); UTC*MMA: in tensor memory (sm_100); HMMA: of a warp.
_MATRIX = re.compile(r"^(HGMMA|UTC[A-Z]*MMA|HMMA|DMMA)")


def compile_resources(case: CompileCase, capability: int) -> dict[str, Any]:
    """Compile `case` for `capability` (as 90) and count what it takes there.

    Returns:
        registers: of each thread.
        stack_bytes: of each thread; above 0 means spilled registers or local arrays.
        spills: LDL and STL instructions.
        shared_bytes: of each block, Triton's static and dynamic together.
        tensor_columns: of each block's tensor memory; 0 but on sm_100.
        warps: resident on a multiprocessor at once, by all of these; 0 means that it cannot be launched.
        matrix: matrix instructions by mnemonic.
        loads_128, loads_narrow: global loads (LDG, LDGSTS) of 16 bytes, and of fewer.
        stores_128, stores_narrow: global stores of 16 bytes, and of fewer.
        instructions: lines of machine code.

    Raises:
        ValueError: the case's constexprs or divisible_by_16 name an argument that its kernel does not have.
    """
    compiled = compile_case(case, capability)
    cubin = compiled.asm["cubin"]
    usage = dict(re.findall(r"(REG|STACK):(\d+)", _usage(cubin)))
    opcodes = Counter(instruction.opcode for instruction in Listing.of(cubin).instructions)
    registers, shared = int(usage["REG"]), compiled.metadata.shared
    columns = getattr(compiled.metadata, "tmem_size", None) or 0
    matrix: Counter[str] = Counter()
    for opcode, count in opcodes.items():
        if found := _MATRIX.match(opcode):
            matrix[found[1]] += count
    loads_128, loads_narrow = _widths(opcodes, ("LDG", "LDGSTS"))
    stores_128, stores_narrow = _widths(opcodes, ("STG",))
    return {
        "registers": registers,
        "stack_bytes": int(usage["STACK"]),
        "spills": sum(_widths(opcodes, ("LDL", "STL"))),
        "shared_bytes": shared,
        "tensor_columns": columns,
        "warps": resident_warps(capability, registers, shared, columns, compiled.metadata.num_warps),
        "matrix": dict(matrix),
        "loads_128": loads_128,
        "loads_narrow": loads_narrow,
        "stores_128": stores_128,
        "stores_narrow": stores_narrow,
        "instructions": sum(opcodes.values()),
    }


def compile_case(case: CompileCase, capability: int):
    """Triton's compiled kernel; `.asm` holds every stage from ttir to cubin."""
    names = list(case.kernel.arg_names)
    unknown = (set(case.constexprs) | case.divisible_by_16 | set(case.signature)) - set(names)
    if unknown or list(case.signature) != names:
        raise ValueError(f"{case.name}: the signature lists {list(case.signature)}, the kernel takes {names}")
    source = ASTSource(
        fn=case.kernel,
        signature=case.signature,
        constexprs=case.constexprs,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in sorted(case.divisible_by_16)},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.max_registers}
    return triton.compile(source, target=GPUTarget("cuda", capability, _WARP), options=options)


def resident_warps(capability: int, registers: int, shared_bytes: int, tensor_columns: int, num_warps: int) -> int:
    """Warps of this kernel that fit on one multiprocessor at once."""
    shared, threads, blocks = _LIMITS[capability]
    allocated = -(-registers // 8) * 8 * _WARP * num_warps  # registers are handed out in units of 8 a thread
    by_shared = shared // (shared_bytes + _RESERVED_SHARED)
    by_columns = _TENSOR_COLUMNS // tensor_columns if tensor_columns else blocks
    return min(_REGISTERS // allocated, by_shared, by_columns, threads // (_WARP * num_warps), blocks) * num_warps


def _usage(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _widths(opcodes: Counter[str], names: tuple[str, ...]) -> tuple[int, int]:
    """(accesses of 16 bytes, accesses of fewer) among the opcodes called one of `names`."""
    wide = sum(n for opcode, n in opcodes.items() if opcode.split(".")[0] in names and ".128" in opcode)
    return wide, sum(n for opcode, n in opcodes.items() if opcode.split(".")[0] in names) - wide
