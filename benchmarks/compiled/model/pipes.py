"""The cards, which pipe of a multiprocessor an instruction uses and for how long, and the bounds that follow.

A multiprocessor has four sub-partitions, each with its own scheduler, arithmetic and tensor core; shared memory and L1
are common to them, here a quarter each. Clocks are those of one sub-partition.

Where the rates are from:
[BPG] CUDA C++ Best Practices Guide 13, "Throughput of Native Arithmetic Instructions", results a clock and
      multiprocessor: float32 64 on 8.0 and 128 since; compare, minimum, logic, conversion, integer multiply-add 64;
      special functions 16; warp shuffle 32; warp reduction 16.
[A100], [H100], [Ada], [Blackwell]  NVIDIA's architecture papers and data sheets: multiprocessors, clocks, bandwidth,
      shared memory of 128 bytes a clock, and the dense bf16 rate, of which follow the multiply-adds a clock:
      312 TFLOP/s is 108 × 1.41 GHz × 2,048 (two a multiply-add), 989 is 132 × 1.83 GHz × 4,096, 362 is
      142 × 2.52 GHz × 1,011, 210 is 170 × 2.41 GHz × 512. Products of 8-bit integers have twice these rates.
[Luo] Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture" (2024): mma.sync reaches 0.63 of an
      H100's peak, warp-group products full speed from N = 64 up.
An H100 is taken at 1.7 GHz, below its boost clock, since it holds no more in matrix products; DRAM gives 92 % of the
data sheet's bandwidth to a stream. Both are assumptions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.compiled.model.sass import Instruction

SUB_PARTITIONS = 4
LANES = 32
SUSTAINED = 0.92  # of the data sheet's bandwidth
SHARED_BYTES = 128  # a clock and multiprocessor, of shared memory and L1
L2_BYTES = 64  # a clock that one multiprocessor takes from L2 at most


@dataclass(frozen=True)
class Card:
    """One card as the model sees it.

    Attributes:
        name: as in the names of results files.
        multiprocessors: of the whole card.
        ghz: clock under load.
        bandwidth: of the DRAM, bytes a second, by the data sheet.
        products: dense 16-bit multiply-adds a clock and sub-partition; 0 where the instruction does not tell its shape.
        warp_share: of `products`, what mma.sync reaches.
        float_lanes: float32 results a clock and sub-partition.
    """

    name: str
    multiprocessors: int
    ghz: float
    bandwidth: float
    products: int
    warp_share: float = 1.0
    float_lanes: int = 32

    def dram_bytes(self, busy: int) -> float:
        """Bytes a clock for one sub-partition when `busy` multiprocessors share the sustained bandwidth."""
        share = self.bandwidth * SUSTAINED / (self.ghz * 1e9) / min(busy, self.multiprocessors)
        return min(share, L2_BYTES) / SUB_PARTITIONS

    def microseconds(self, clocks: float) -> float:
        return clocks / self.ghz / 1e3


# tcgen05 (100) names its operands' shape in a descriptor, so its products are not counted.
CARDS = {
    80: Card("A100", 108, 1.41, 2.039e12, 256, float_lanes=16),
    89: Card("L40S", 142, 2.52, 0.864e12, 128),
    90: Card("H100", 132, 1.70, 3.35e12, 512, warp_share=0.63),
    100: Card("B200", 148, 1.85, 8.0e12, 0),
    120: Card("RTX-5090", 170, 2.41, 1.792e12, 64),
}
REPLAYED = (80, 89, 90)  # where the replay knows every instruction

PIPES = ("issue", "tensor", "memory", "shuffle", "special", "integer", "float", "multiply", "uniform", "control")
_FLOAT = {"FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2"}
_SPECIAL = {"MUFU", "I2F", "F2I", "F2IP", "F2F", "POPC", "FRND"}
_SHARED = {"LDS", "STS", "LDSM", "STSM", "ATOMS", "LDL", "STL"}  # spilled registers lie in L1, the same memory
GLOBAL_LOADS = {"LDG", "LDGSTS", "LD", "UBLKCP", "UTMALDG", "ATOMG"}
GLOBAL_STORES = {"STG", "ST", "RED", "UTMASTG"}
_CONTROL = {
    "BAR", "BRA", "EXIT", "NOP", "DEPBAR", "LDGDEPBAR", "WARPGROUP", "WARPSYNC", "BSSY", "BSYNC", "MEMBAR", "FENCE",
    "ERRBAR", "CCTL", "YIELD", "SYNCS", "ACQBULK", "NANOSLEEP",
}  # fmt: skip
_UNIFORM = re.compile(r"U[A-Z]|R2UR|S2UR|VOTEU")
_GROUP_SHAPE = re.compile(r"HGMMA\.64x(\d+)x(\d+)")
_WARP_PRODUCTS = {"1688": 1024, "16816": 2048, "16832": 4096}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one warp's instruction takes of a sub-partition.

    Attributes:
        pipe: one of `PIPES`.
        clocks: for which the pipe takes nothing else.
        operand_clocks: of shared memory, for operands that a matrix product reads there.
        global_bytes: that its lanes load or store, all of them.
    """

    pipe: str
    clocks: float
    operand_clocks: float = 0.0
    global_bytes: int = 0


def cost(instruction: Instruction, card: Card) -> Cost:
    """Pipe and clocks of one instruction; what is in no list runs on the integer pipe."""
    name = instruction.name
    if name == "HGMMA":
        products, operands = _group_clocks(instruction, card)
        return Cost("tensor", max(products, operands), operand_clocks=operands)
    if name in ("HMMA", "IMMA", "QMMA") and card.products:
        size = _WARP_PRODUCTS.get(instruction.opcode.split(".")[1], 2048)
        products = card.products * (2 if name == "IMMA" else 1)
        return Cost("tensor", size / products / card.warp_share)
    if name in _SHARED:
        return Cost("memory", _memory_clocks(instruction))
    if name in GLOBAL_LOADS or name in GLOBAL_STORES:
        return Cost("memory", _memory_clocks(instruction), global_bytes=LANES * access_bytes(instruction))
    if name in _FLOAT:
        return Cost("float", LANES / card.float_lanes)
    for pipe, names, clocks in (
        ("multiply", {"IMAD", "IDP"}, 2),
        ("special", _SPECIAL, 8),
        ("shuffle", {"SHFL"}, 4),
        ("integer", {"REDUX"}, 8),
    ):
        if name in names:
            return Cost(pipe, clocks)
    if name in _CONTROL:
        return Cost("control", 1)
    return Cost("uniform", 1) if _UNIFORM.match(name) else Cost("integer", 2)


def access_bytes(instruction: Instruction) -> int:
    """Bytes that one thread loads or stores."""
    parts = instruction.opcode.split(".")
    if parts[0] in ("LDSM", "STSM"):
        return {"4": 16, "2": 8}.get(parts[-1], 4)
    for width, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if width in parts:
            return size
    return 4


def _memory_clocks(instruction: Instruction) -> float:
    return SUB_PARTITIONS * LANES * access_bytes(instruction) / SHARED_BYTES


def _group_clocks(instruction: Instruction, card: Card) -> tuple[float, float]:
    """(clocks of the product, of reading its operands) of a warp group's 64 × N × K; each of its warps is in another
    sub-partition, so one instruction of a warp takes that long of each.

    K × N always lies in shared memory, 64 × K there or in registers: then a register stands before its descriptor.
    """
    columns, depth = (int(size) for size in _GROUP_SHAPE.match(instruction.opcode).groups())
    from_registers = re.match(r"R\d+, R\d+, gdesc", instruction.operands)
    operand_bytes = 2 * depth * (columns + (0 if from_registers else 64))
    return 64 * columns * depth / (SUB_PARTITIONS * card.products), operand_bytes / SHARED_BYTES


def tally(path: Iterable[Instruction], card: Card) -> dict[str, float]:
    """Clocks of every pipe for one warp's path. "memory" holds the operands of matrix products too."""
    clocks: Counter[str] = Counter(dict.fromkeys(PIPES, 0))
    for instruction in path:
        taken = cost(instruction, card)
        clocks["issue"] += 1
        clocks[taken.pipe] += taken.clocks
        clocks["memory"] += taken.operand_clocks
    return dict(clocks)


def global_bytes(path: Iterable[Instruction], card: Card) -> tuple[int, int]:
    """(bytes loaded, bytes stored) in global memory by one warp, as if every lane took part."""
    moved = {"load": 0, "store": 0}
    for instruction in path:
        kind = "store" if instruction.name in GLOBAL_STORES else "load"
        moved[kind] += cost(instruction, card).global_bytes
    return moved["load"], moved["store"]
