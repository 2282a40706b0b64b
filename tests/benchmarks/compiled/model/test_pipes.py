"""Pipes and bounds of programs that can be counted by hand."""

import pytest

from benchmarks.compiled.model.pipes import CARDS, access_bytes, cost, global_bytes, tally
from benchmarks.compiled.model.predict import CORRECTION, predict
from benchmarks.compiled.model.sass import NO_SCOREBOARD, Instruction, Program
from deit_kernels.compile_case import Launch

H100, A100 = CARDS[90], CARDS[80]


def instruction(opcode: str, operands: str = "", address: int = 0) -> Instruction:
    return Instruction(address, "", opcode, operands, None, 1, NO_SCOREBOARD, NO_SCOREBOARD, ())


def program(*opcodes: str) -> Program:
    return Program(tuple(instruction(opcode, address=16 * place) for place, opcode in enumerate(opcodes)))


def test_peaks_are_those_of_the_data_sheets() -> None:
    def teraflops(card, ghz: float) -> float:
        return 2 * card.products * 4 * card.multiprocessors * ghz / 1e3

    assert teraflops(A100, 1.41) == pytest.approx(312, rel=0.01)
    assert teraflops(H100, 1.83) == pytest.approx(989, rel=0.01)
    assert teraflops(CARDS[89], 2.52) == pytest.approx(362, rel=0.02)
    assert teraflops(CARDS[120], 2.41) == pytest.approx(209.5, rel=0.01)


def test_a_matrix_product_takes_its_arithmetic_or_its_operands() -> None:
    registers = cost(instruction("HGMMA.64x64x16.F32.BF16", "R24, R4, gdesc[UR4], R24"), H100)
    assert (registers.clocks, registers.operand_clocks) == (32, 16)
    shared = cost(instruction("HGMMA.64x32x16.F32.BF16", "R24, gdesc[UR4], R24, !UPT"), H100)
    assert (shared.clocks, shared.operand_clocks) == (24, 24), "16 clocks of arithmetic wait for 3 KB"
    assert cost(instruction("HGMMA.64x64x16.F32.BF16", "R24, gdesc[UR4], R24"), H100).clocks == 32
    assert cost(instruction("HMMA.16816.F32.BF16"), A100).clocks == 8
    assert cost(instruction("HMMA.16816.F32.BF16"), H100).clocks == pytest.approx(4 / 0.63)


@pytest.mark.parametrize(
    ("opcode", "pipe", "clocks"),
    [
        ("FFMA", "float", 1), ("IMAD.MOV.U32", "multiply", 2), ("FMNMX", "integer", 2), ("MUFU.EX2", "special", 8),
        ("SHFL.BFLY", "shuffle", 4), ("LDS.128", "memory", 16), ("LDG.E.64", "memory", 8), ("BAR.SYNC", "control", 1),
        ("UIADD3", "uniform", 1), ("LDSM.16.M88.4", "memory", 16), ("STG.E.U16", "memory", 2),
    ],
)  # fmt: skip
def test_an_instruction_has_a_pipe(opcode: str, pipe: str, clocks: float) -> None:
    found = cost(instruction(opcode), H100)
    assert (found.pipe, found.clocks) == (pipe, clocks)


def test_an_a100_takes_two_clocks_for_floats() -> None:
    assert cost(instruction("FFMA"), A100).clocks == 2


def test_bytes_of_an_access() -> None:
    sizes = {"LDG.E.128": 16, "LDGSTS.E.BYPASS.LTC128B.128": 16, "LDG.E.U16": 2, "STS.64": 8, "LDG.E": 4, "STG.E.U8": 1}
    assert {opcode: access_bytes(instruction(opcode)) for opcode in sizes} == sizes
    path = [instruction(opcode) for opcode in ("LDG.E.128", "LDGSTS.E.64", "LDS.128", "STG.E")]
    assert global_bytes(path, H100) == (32 * 24, 32 * 4)


def test_bounds_of_a_program_counted_by_hand() -> None:
    code = program("LDG.E.128", "FFMA", "FFMA", "MUFU.EX2", "FMNMX", "HGMMA.64x64x16.F32.BF16", "STG.E.128", "EXIT")
    clocks = tally(code.instructions, H100)
    # The product reads no register here: 64 x 16 and 64 x 16 values of two bytes, 128 a clock.
    assert clocks["memory"] == 16 + 32 + 16
    assert (clocks["issue"], clocks["float"], clocks["special"], clocks["integer"]) == (8, 2, 8, 2)
    launch = Launch(programs=132 * 10, trips=(), loaded=2048, stored=2048, fetched=1024)
    found = predict(code, launch, 90, warps=8, resident=2)
    # Ten programs of two warps a sub-partition.
    assert found.bounds["memory"] == pytest.approx(10 * 2 * 64 / 1.7e3)
    assert found.floor == pytest.approx(1320 * 3072 / 3.35e6)
    assert found.microseconds == pytest.approx(CORRECTION * found.replay.clocks / 1.7e3)
    assert found.replay.clocks / 1.7e3 >= max(found.bounds.values())


def test_what_binds_is_named_with_its_share() -> None:
    launch = Launch(programs=132 * 64, trips=(), loaded=0, stored=0, fetched=0)
    bound = predict(program(*["MUFU.EX2"] * 200, "EXIT"), launch, 90, warps=16, resident=4)
    assert bound.binding == "exponentials 100 %"
    lone = predict(program(*["MUFU.EX2"] * 3, "EXIT"), launch, 90, warps=4, resident=1)
    assert lone.binding.startswith("latency; exponentials")


def test_where_the_replay_does_not_reach_there_are_bounds_alone() -> None:
    launch = Launch(programs=1480, trips=(), loaded=0, stored=512, fetched=0)
    found = predict(program("UTCHMMA", *["FFMA"] * 100, "STG.E.128", "EXIT"), launch, 100, warps=4, resident=1)
    assert found.microseconds is None and found.replay is None
    assert set(found.as_dict()) == {"floor_us", "bound_us", "binding"}
    assert found.as_dict()["binding"] == "instruction issue"


def test_a_loop_that_no_program_reaches_is_refused() -> None:
    launch = Launch(programs=1, trips=(2,), loaded=0, stored=0, fetched=0)
    with pytest.raises(ValueError, match="0 loops in the machine code"):
        predict(program("NOP", "EXIT"), launch, 90, warps=4, resident=1)
