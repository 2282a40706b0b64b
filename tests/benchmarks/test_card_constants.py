"""The kernels that measure constants time what they claim: their machine code, and the arithmetic around them."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import triton
from torch.cuda import _utils

from benchmarks.card import constants
from benchmarks.card.constants import COLUMNS, EXPECTED, SOURCE, UNROLL, beside_expected, measure, source

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TIMED = {  # what the innermost loop that holds it has, UNROLL times
    "l2_latency": "LDG.E.64.STRONG.GPU",
    "shared_latency": "LDS",
    "shared_bandwidth": "LDS.128",
    "barrier": "BAR.SYNC.DEFER_BLOCKING",
    "ex2": "MUFU.EX2",
    "ffma": "FFMA",
    "stream": "LDG.E.128.STRONG.GPU",
    "hmma": "HMMA.16816.F32.BF16",
}
CASES = [
    *((name, opcode, 0, target) for name, opcode in TIMED.items() for target in ("80", "90a")),
    *(("hgmma", f"HGMMA.64x{columns}x16.F32.BF16", columns, "90a") for columns in COLUMNS),
]
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(.*?);")


def last_loop(machine_code: str) -> Counter[str]:
    """Opcodes of the last innermost loop: what stands before it warms up."""
    found = [(int(line[1], 16), line[2], line[3]) for line in INSTRUCTION.finditer(machine_code)]
    clock = max(i for i, (_, opcode, operands) in enumerate(found) if opcode == "CS2R" and "SR_CLOCKLO" in operands)
    begins = [
        i for i, (_, opcode, operands) in enumerate(found[:clock]) if opcode == "CS2R" and "SR_CLOCKLO" in operands
    ]
    assert begins, "both readings of the clock stand around the loop"
    loops = []
    for address, opcode, operands in found[begins[-1] : clock]:
        if opcode == "BRA" and (target := int(operands.split("0x")[1], 16)) < address:
            loops.append([name for at, name, _ in found if target <= at <= address])
    assert loops, "there is no loop between the readings of the clock"
    return Counter(min(loops, key=len))


@pytest.mark.parametrize(("name", "opcode", "columns", "target"), CASES)
def test_the_timed_loop_holds_what_it_claims_and_a_counter(
    name: str, opcode: str, columns: int, target: str, tmp_path: Path
):
    binary, _ = _utils._nvrtc_compile(source(columns), name, target)
    (tmp_path / "k.cubin").write_bytes(binary)
    command = [CUOBJDUMP, "-sass", "-fun", name, tmp_path / "k.cubin"]
    loop = last_loop(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert loop.pop(opcode) == UNROLL
    loop.pop("NOP", 0)  # between two HGMMAs of sm_90a
    assert not any(each.startswith(("LDL", "STL", "STS", "STG", "CS2R")) for each in loop)
    allowed = {"stream": 6 * UNROLL, "shared_bandwidth": 2 * UNROLL + 4}.get(
        name, 8
    )  # addresses and sums of what is read
    assert sum(loop.values()) <= allowed


class Card:
    """A card whose constants are those expected: it says how long a kernel takes there."""

    target, multiprocessors, out = "sm_90", 132, None
    ghz = 1.7

    def clocks(self, name: str, blocks: int, threads: int, *arguments: object, columns: int = 0) -> tuple[float, float]:
        rounds, warps = arguments[-1], threads / 32
        clocks = UNROLL * rounds * {
            "hgmma": columns / 2, "hmma": warps * 16 * 8 * 16 / 1290, "l2_latency": 280, "shared_latency": 30,
            "shared_bandwidth": threads * 16 / 128, "barrier": 25, "ex2": threads / 16, "ffma": threads / 128,
            "stream": 0,
        }[name]  # fmt: skip
        if name == "stream":
            size, rate = arguments[2] * 16, 64.0 * blocks
            if size == 1 << 30:
                rate = min(rate, 0.92 * 3350 / self.ghz)
            clocks = size * rounds / rate
        return clocks, clocks / self.ghz / 1e9

    def launch_seconds(self) -> float:
        return 1e-6

    def ring(self, places: int) -> int:
        return places

    vectors = ring


def test_a_card_as_expected_gives_the_expected_constants() -> None:
    rows = beside_expected(measure(Card()), "sm_90")
    assert {row["name"] for row in rows} == {*EXPECTED}
    assert [row["measured over expected"] for row in rows] == pytest.approx([1.0] * len(rows), abs=2e-3)
    assert all(row["source"] and row["unit"] for row in rows)
    elsewhere = beside_expected(measure(Card()), "sm_100")
    assert {row["expected"] for row in elsewhere} == {row["measured over expected"] for row in elsewhere} == {None}


def test_ten_kernels_of_which_a_test_reads_each_but_the_empty_one() -> None:
    kernels = re.findall(r"^extern .* (\w+)\(", SOURCE.read_text(), flags=re.MULTILINE)
    assert len(kernels) == 10 and {*kernels} == {*TIMED, "hgmma", "launch"}
    assert f"#define UNROLL {UNROLL}\n" in SOURCE.read_text()


def test_the_ring_of_addresses_is_one_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DEVICE", "cpu")
    ring = constants.Bench.ring(None, 64)
    at, seen = ring.data_ptr(), set()
    while at not in seen:
        seen.add(at)
        at = ring[(at - ring.data_ptr()) // 8].item()
    assert len(seen) == 64 and at == ring.data_ptr()
