"""The replay of instruction sequences whose clocks can be counted by hand."""

import pytest

from benchmarks.compiled.model import replay as module
from benchmarks.compiled.model.pipes import CARDS
from benchmarks.compiled.model.replay import BARRIER, DRAM_LATENCY, LAUNCH, Replay, Traffic, replay
from benchmarks.compiled.model.sass import NO_SCOREBOARD, Instruction

H100, A100 = CARDS[90], CARDS[80]


def code(*lines: tuple) -> list[Instruction]:
    """Instructions from (opcode, stall, fields); an EXIT ends them."""
    made = []
    for address, (opcode, stall, *fields) in enumerate([*lines, ("EXIT", 1)]):
        given = {"operands": "", "written": NO_SCOREBOARD, "read": NO_SCOREBOARD, "waits": ()} | dict(*fields)
        made.append(Instruction(16 * address, "", opcode, target=None, stall=stall, **given))
    return made


def play(
    path: list[Instruction], *, warps: int = 4, resident: int = 1, programs: int = 1, card=H100, **traffic
) -> Replay:
    return replay([[path]], card, warps=warps, resident=resident, programs=programs, traffic=Traffic(**traffic))


def clocks(path: list[Instruction], **options) -> float:
    """Without the time before the first instruction."""
    return play(path, **options).clocks - LAUNCH


def test_a_warp_issues_after_its_stall_counts() -> None:
    assert clocks(code(*[("IADD3", 4)] * 10)) == 40


def test_a_second_warp_fills_the_stalls_of_the_first() -> None:
    path = code(*[("IADD3", 4)] * 10)
    assert clocks(path, warps=8) == 42  # the second is one integer instruction behind
    assert clocks(path, resident=2, programs=2) == 42


def test_the_warps_of_a_program_may_issue_different_instructions() -> None:
    short, long = code(*[("IADD3", 4)] * 3), code(*[("IADD3", 4)] * 10)
    waits = code(*[("IADD3", 4)] * 3, ("BAR", 1), ("IADD3", 4))
    after = code(*[("IADD3", 4)] * 10, ("BAR", 1), ("IADD3", 4))

    def together(*paths: list[Instruction]) -> float:
        return replay([paths], H100, warps=8, resident=1, programs=1, traffic=Traffic()).clocks - LAUNCH

    assert together(long, short) == 40  # the short one fills the other's stalls
    assert clocks(waits, warps=8) < 4 * 10 + BARRIER < together(waits, after) <= clocks(after, warps=8)


def test_one_instruction_is_issued_a_clock() -> None:
    assert clocks(code(*[("NOP", 1)] * 10), warps=16) == 4 * 11 - 1


def test_a_pipe_takes_an_instruction_each_so_many_clocks() -> None:
    assert clocks(code(*[("MUFU.EX2", 1)] * 5), warps=8) == 8 * 9 + 1, "ten exponentials of 8 clocks, then EXIT"
    floats = code(*[("FFMA", 1)] * 10)
    assert clocks(floats, warps=8) == 21, "an H100 has two halves"
    assert clocks(floats, warps=8, card=A100) == 2 * 19 + 1, "an A100 has one"


def test_a_scoreboard_is_waited_for() -> None:
    waiting = code(("MUFU.EX2", 1, {"written": 0}), ("FADD", 1, {"waits": (0,)}))
    assert clocks(waiting) == 8 + module.SPECIAL_LATENCY + 1
    other = code(("MUFU.EX2", 1, {"written": 0}), ("FADD", 1, {"waits": (1,)}))
    assert clocks(other) == 2


def test_registers_of_a_store_are_free_before_it_is_done() -> None:
    path = code(("STS.128", 1, {"read": 2, "written": 0}), ("FADD", 1, {"waits": (2,)}))
    assert clocks(path) == 16 + module.READ_LATENCY + 1


def test_a_load_takes_the_latency_of_dram() -> None:
    path = code(("LDG.E.128", 1, {"written": 0}), ("FADD", 1, {"waits": (0,)}))
    assert clocks(path) == 16 + DRAM_LATENCY + 1


def test_a_barrier_waits_for_every_warp_of_the_program() -> None:
    path = code(("MUFU.EX2", 1), ("BAR.SYNC", 1), ("NOP", 1))
    assert clocks(path, warps=8) == 8 + 1 + BARRIER + 3, "the second exponential is 8 clocks late, four follow"
    assert clocks(path, warps=4, resident=2, programs=2) == 8 + 1 + BARRIER + 1, "programs do not wait for each other"


def test_matrix_products_of_a_warp_group_run_on_until_they_are_awaited() -> None:
    product = ("HGMMA.64x64x16.F32", 1, {"operands": "R24, R4, gdesc[UR4], R24, gsb0"})
    work = [("NOP", 1)] * 20
    wait = ("WARPGROUP.DEPBAR.LE", 1, {"operands": "gsb0, 0x0"})
    done = 32 + module.GROUP_PRODUCT_LATENCY
    assert clocks(code(product, *work)) == 21
    assert clocks(code(product, *work, wait)) == done + 1
    one_open = ("WARPGROUP.DEPBAR.LE", 1, {"operands": "gsb0, 0x1"})
    assert clocks(code(product, product, one_open)) == done + 1
    assert clocks(code(product, product, wait)) == done + 32 + 1


def test_copies_into_shared_memory_are_awaited_by_group() -> None:
    copy, commit = ("LDGSTS.E.128", 1), ("LDGDEPBAR", 1)
    arrived = 16 + DRAM_LATENCY
    wait = ("DEPBAR.LE", 1, {"operands": "SB0, 0x0"})
    assert "copy into shared memory" not in play(code(copy, commit)).idle
    assert clocks(code(copy, commit, wait)) == arrived + 1
    one_open = ("DEPBAR.LE", 1, {"operands": "SB0, 0x1"})
    assert clocks(code(copy, commit, copy, commit, one_open)) == arrived + 1
    assert clocks(code(copy, commit, copy, commit, wait)) == arrived + 16 + 1


def test_stores_are_limited_by_dram() -> None:
    path = code(*[("STG.E.128", 1)] * 200)
    played = play(path, resident=4, programs=16)
    least = 16 * 200 * 512 / H100.dram_bytes(1 << 20)
    assert least < played.clocks < 1.15 * least and played.busy["dram"] > 0.9
    half = play(path, resident=4, programs=16, store=0.5)
    assert half.clocks == pytest.approx(0.5 * played.clocks, rel=0.1), "half of the lanes are masked"
    alone = play(path, resident=4, programs=16, busy=1)
    assert alone.clocks < 0.5 * played.clocks, "one multiprocessor has the whole bandwidth up to that of L2"


def test_what_is_not_played_takes_as_long_as_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    path = code(*[("LDG.E.128", 2, {"written": 0}), ("MUFU.EX2", 4, {"waits": (0,)}), ("FADD", 4)] * 30)
    short = play(path, warps=8, resident=3, programs=60).clocks
    monkeypatch.setattr(module, "WAVES", 1000)
    assert short == pytest.approx(play(path, warps=8, resident=3, programs=60).clocks, rel=0.02)


def test_programs_take_their_paths_in_turn() -> None:
    short, long = code(("NOP", 10)), code(("NOP", 15), ("NOP", 15))
    both = replay([[short], [long]], H100, warps=4, resident=1, programs=2, traffic=Traffic())
    assert both.clocks == 2 * LAUNCH + 10 + 30
    assert both.idle["stall count or barrier"] == pytest.approx(1, abs=0.02)
