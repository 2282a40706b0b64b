"""A kernel's machine code, as nvdisasm prints it, and the constant banks of its file."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T])\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
_NO_BYTES = 8  # the type of an ELF section that takes no room in the file
_ANY = ("shared", "local", "global")
# The memories that an instruction accesses.
SPACES = {
    "LDS": ("shared",), "STS": ("shared",), "ATOMS": ("shared",), "LDSM": ("shared",), "STSM": ("shared",),
    "LDL": ("local",), "STL": ("local",), "LDG": ("global",), "STG": ("global",),
    "REDG": ("global",), "LD": _ANY, "ST": _ANY, "LDGSTS": ("global", "shared"),
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One line of machine code: `@!P0 IADD3.X R1, R2, ~R3, RZ, P1, !PT` with its address in bytes."""

    address: int
    guard: str | None
    opcode: str
    operands: tuple[str, ...]

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @cached_property
    def modifiers(self) -> set[str]:
        return set(self.opcode.split(".")[1:])

    @property
    def bytes(self) -> int:
        """How many bytes a lane of a load or store moves."""
        if self.modifiers & {"U8", "S8"}:
            return 1
        if self.modifiers & {"U16", "S16"}:
            return 2
        return 16 if "128" in self.modifiers or self.base in ("LDSM", "STSM") else 8 if "64" in self.modifiers else 4

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{self.address:#06x} {guard}{self.opcode} {', '.join(self.operands)}"


@dataclass(frozen=True)
class Listing:
    """A kernel's instructions, its labels as indices into them, and its file's constant banks.

    `capability` is its target's, as 80.
    """

    capability: int
    instructions: list[Instruction]
    labels: dict[str, int]
    constants: dict[int, bytes]

    @classmethod
    def of(cls, cubin: bytes, kernel: str = "") -> Listing:
        """The kernel whose mangled name contains `kernel`.

        Raises:
            ValueError: no kernel or several of that name.
        """
        text = disassemble(cubin)
        parts = re.split(r"^\s*\.section\s+\.text\.(\S+?),.*$", text, flags=re.MULTILINE)
        found = [(name, part) for name, part in zip(parts[1::2], parts[2::2], strict=True) if kernel in name]
        if len(found) != 1:
            raise ValueError(f"{len(found)} kernels are called {kernel!r} of {parts[1::2]}")
        name, lines = found[0]
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for line in lines.splitlines():
            if label := _LABEL.match(line):
                labels[label[1]] = len(instructions)
            elif match := _INSTRUCTION.match(line):
                address, guard, opcode, operands = match.groups()
                instructions.append(Instruction(int(address, 16), guard, opcode, split_operands(operands)))
        capability = int(re.search(r"(?:EF_CUDA_SM|\.target\s+sm_)(\d+)", text)[1])
        return cls(capability, instructions, labels, constant_banks(cubin, name))

    @property
    def least_bytes(self) -> dict[str, int]:
        """How many bytes the smallest access of each memory moves."""
        sizes = {"shared": 16, "local": 16, "global": 16}
        for instruction in self.instructions:
            for space in SPACES.get(instruction.base, ()):
                sizes[space] = min(sizes[space], instruction.bytes)
        return sizes


def disassemble(cubin: bytes) -> str:
    """The listing of a cubin with its encodings, by the nvdisasm that Triton brings."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "nvdisasm", "-hex", "-c", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def split_operands(text: str) -> tuple[str, ...]:
    text = re.sub(r"\(\*.*?\*\)", "", text).replace(".reuse", "")
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


def constant_banks(elf: bytes, kernel: str) -> dict[int, bytes]:
    """The constant banks that a kernel sees, from the sections .nv.constant<bank> and .nv.constant<bank>.<kernel>."""
    (offset,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, offset + i * size) for i in range(count)]
    banks = {}
    for name, kind, _, _, start, length in sections:
        begin = sections[names][4] + name
        called = elf[begin : elf.index(b"\0", begin)].decode()
        match = re.fullmatch(r"\.nv\.constant(\d+)(?:\.(.*))?", called)
        if match and match[2] in (None, kernel) and kind != _NO_BYTES:
            banks[int(match[1])] = elf[start : start + length]
    return banks
