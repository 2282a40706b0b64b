"""The constants that the predictions rest on, each measured by a kernel of its own (constants.cu).

    python -m benchmarks.card.constants --out constants.json      # half a minute on a card, no compiler but NVRTC

Beside a measured constant stands what the predictions take it for, and where they have that from. Clocks are those of a
multiprocessor while the kernel runs, so most of these numbers do not depend on the card's frequency. Not run on a card
yet; a test reads the kernels' machine code for sm_80 and sm_90a.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.measure.device_timing import CLOCK, DEVICE, prepare
from benchmarks.measure.interleaved import alternate

SOURCE = Path(__file__).with_suffix(".cu")
UNROLL = 16  # of constants.cu
COLUMNS = (64, 128, 256)  # of HGMMA
RING_STEP = 2048  # bytes, so that 4,096 places are 8 MB of the L2
LAUNCHES = 200
GUIDE = "CUDA C++ Best Practices Guide 13, throughput of native arithmetic instructions"
SHEET = "NVIDIA's data sheets of A100 SXM 80 GB and H100 SXM"
ASSUMED = "assumed by the predictions"


class Expected(NamedTuple):
    """What the predictions take a constant for."""

    unit: str
    sm_80: float | None
    sm_90: float | None
    source: str


PRODUCTS = "multiply-adds a clock and multiprocessor"
EXPECTED = {
    **{f"HGMMA 64x{n}x16": Expected(PRODUCTS, None, 2048, SHEET) for n in COLUMNS},
    "HMMA 16x8x16": Expected(PRODUCTS, 1024, 1290, f"{SHEET}; H100: 0.63 of it, Luo et al. 2024, arXiv 2402.13499"),
    "clock in HGMMA": Expected("GHz", None, 1.70, ASSUMED),
    "L2 latency": Expected("clocks", 280, 280, f"{ASSUMED}, within 222 to 339 of arXiv 2606.22588"),
    "L2 to one multiprocessor": Expected("bytes a clock", 64, 64, ASSUMED),
    "L2 to all": Expected("bytes a clock and multiprocessor", 64, 64, ASSUMED),
    "DRAM to one multiprocessor": Expected("bytes a clock", 64, 64, f"{ASSUMED}: as much as from L2"),
    "DRAM to all": Expected("GB/s", 0.92 * 2039, 0.92 * 3350, f"0.92 ({ASSUMED}) of {SHEET}"),
    "shared latency": Expected("clocks", 30, 30, "Luo et al. 2024, arXiv 2402.13499, rounded"),
    "shared bandwidth": Expected("bytes a clock", 128, 128, SHEET),
    "barrier of 8 warps": Expected("clocks", 25, 25, ASSUMED),
    "ex2": Expected("results a clock and multiprocessor", 16, 16, GUIDE),
    "FFMA": Expected("results a clock and multiprocessor", 64, 128, GUIDE),
    "launch in a graph": Expected("microseconds", 1.0, 1.0, f"{ASSUMED}: the gap between two kernels"),
}


def source(columns: int = 0) -> str:
    """constants.cu; with the kernel of HGMMA where `columns` says of which shape."""
    text = SOURCE.read_text()
    if not columns:
        return text
    sums = range(columns // 2)
    defined = {
        "COLUMNS": columns, "NAME": f'"{columns}"', "SUMS": f'"{", ".join(f"%{i}" for i in sums)}"',
        "BOUND": ", ".join(f'"+f"(d[{i}])' for i in sums),
        "A_OPERAND": f'"%{len(sums)}"', "B_OPERAND": f'"%{len(sums) + 1}"',
    }  # fmt: skip
    return "".join(f"#define {name} {value}\n" for name, value in defined.items()) + text


class Bench:
    """Launches kernels of constants.cu on the card here."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(DEVICE)
        self.target = f"sm_{properties.major}{properties.minor}"
        self.multiprocessors = properties.multi_processor_count
        self.architecture = self.target[3:] + "a" * (properties.major == 9)  # HGMMA is sm_90a's
        self.out = torch.zeros(4096, dtype=torch.int32, device=DEVICE)

    def compiled(self, name: str, columns: int = 0) -> Callable:
        return torch.cuda._compile_kernel(source(columns), name, compute_capability=self.architecture)

    def clocks(self, name: str, blocks: int, threads: int, *arguments: object, columns: int = 0) -> tuple[float, float]:
        """(most clocks of a block, seconds of the launch), the second of two launches; `arguments` follow `clocks`."""
        counted = torch.zeros(blocks, dtype=torch.int64, device=DEVICE)
        kernel = self.compiled(name, columns)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(2):
            start.record()
            kernel(grid=(blocks, 1, 1), block=(threads, 1, 1), args=[counted, *arguments])
            end.record()
            end.synchronize()
        return counted.max().item(), start.elapsed_time(end) / 1e3

    def launch_seconds(self) -> float:
        kernel = self.compiled("launch")
        run, _ = prepare([lambda: kernel(grid=(1, 1, 1), block=(32, 1, 1))] * LAUNCHES)
        return min(alternate({"launch": run}, rounds=5, clock=CLOCK)["launch"])

    def ring(self, places: int) -> Tensor:
        """Addresses in one cycle through `places` of memory in random order, `RING_STEP` bytes apart."""
        ring = torch.zeros(places * RING_STEP // 8, dtype=torch.int64, device=DEVICE)
        order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(places - 1)]).to(DEVICE)
        ring[order * (RING_STEP // 8)] = ring.data_ptr() + order.roll(-1) * RING_STEP
        return ring

    def vectors(self, size: int) -> Tensor:
        return torch.zeros(size // 4, dtype=torch.int32, device=DEVICE)


def measure(bench: Bench) -> dict[str, float]:
    """Every constant that the card has, in the units of `EXPECTED`."""
    found: dict[str, float] = {}
    every, out = bench.multiprocessors, bench.out
    if bench.target == "sm_90":
        for columns in COLUMNS:
            clocks, seconds = bench.clocks("hgmma", every, 128, out, 4096, columns=columns)
            found[f"HGMMA 64x{columns}x16"] = 4096 * UNROLL * 64 * columns * 16 / clocks
        found["clock in HGMMA"] = clocks / seconds / 1e9
    clocks, _ = bench.clocks("hmma", every, 256, out, 4096)
    found["HMMA 16x8x16"] = 4096 * UNROLL * 8 * 16 * 8 * 16 / clocks
    clocks, _ = bench.clocks("l2_latency", 1, 1, bench.ring(256 * UNROLL), out, 256)
    found["L2 latency"] = clocks / (256 * UNROLL)
    for place, size, rounds in (("L2", 8 << 20, 16), ("DRAM", 1 << 30, 1)):
        data = bench.vectors(size)
        clocks, _ = bench.clocks("stream", 1, 1024, data, out, size // 16, rounds)
        found[f"{place} to one multiprocessor"] = size * rounds / clocks
        clocks, seconds = bench.clocks("stream", every, 1024, data, out, size // 16, rounds)
        found[f"{place} to all"] = size / seconds / 1e9 if place == "DRAM" else size * rounds / clocks / every
    clocks, _ = bench.clocks("shared_latency", 1, 32, out, 1024)
    found["shared latency"] = clocks / (1024 * UNROLL)
    clocks, _ = bench.clocks("shared_bandwidth", 1, 1024, out, 1024)
    found["shared bandwidth"] = 1024 * UNROLL * 1024 * 16 / clocks
    clocks, _ = bench.clocks("barrier", 1, 256, 1024)
    found["barrier of 8 warps"] = clocks / (1024 * UNROLL)
    for kernel, name in (("ex2", "ex2"), ("ffma", "FFMA")):
        clocks, _ = bench.clocks(kernel, 1, 1024, out, 1024)
        found[name] = 1024 * UNROLL * 1024 / clocks
    found["launch in a graph"] = bench.launch_seconds() * 1e6
    return found


def beside_expected(found: dict[str, float], target: str) -> list[dict[str, object]]:
    """A row for each constant; `expected` is null on a card that nothing is predicted for."""
    rows = []
    for name, measured in found.items():
        expected = EXPECTED[name]._asdict().get(target)
        rows.append({
            "name": name, "measured": round(measured, 3), "expected": expected, "unit": EXPECTED[name].unit,
            "measured over expected": expected and round(measured / expected, 3), "source": EXPECTED[name].source,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card.constants", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    bench = Bench()
    rows = beside_expected(measure(bench), bench.target)
    arguments.out.write_text(json.dumps({"target": bench.target, "constants": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{row['name']:<27}{row['measured']:10.1f}  expected {row['expected']}, {row['unit']}")


if __name__ == "__main__":
    main()
