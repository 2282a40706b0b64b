"""Machine code is read with its control bits, and a warp's path through its loops is what the trips say."""

import pytest

from benchmarks.compiled.model.sass import NO_SCOREBOARD, Loop, Program, parse

LISTING = """\
.text.mean_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000e300000000800 */
        /*0010*/                   LDC R0, c[0x0][0x248] ;                    /* 0x00009200ff007b82 */
                                                                              /* 0x000e620000000800 */
        /*0020*/              @!P0 BRA `(.L_x_0) ;                            /* 0x0000000800b48947 */
                                                                              /* 0x003fc400000001ff */
.L_x_1:
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ; /* 0x0000000000027805 */
                                                                              /* 0x000fe2000001ff00 */
        /*0040*/               @P1 BRA `(.L_x_1) ;                            /* 0xfffffff400f08947 */
                                                                              /* 0x000fc400000001ff */
.L_x_0:
        /*0050*/                   BSSY B0, `(.L_x_1) ;                       /* 0x0000056000007945 */
                                                                              /* 0x000fe2000001ff00 */
        /*0060*/                   EXIT ;                                     /* 0x000000000000794d */
                                                                              /* 0x000fea0003800000 */
.L_x_2:
        /*0070*/                   BRA `(.L_x_2);                             /* 0xfffffffc00fc7947 */
                                                                              /* 0x000fc00000000000 */
"""


def listing(*lines: str) -> Program:
    """A program of lines as "label: @P0 OPCODE operands", with a stall count of 1."""
    text = ""
    for number, line in enumerate(lines):
        label, _, rest = line.rpartition(": ")
        text += f".L_{label}:\n" if label else ""
        text += f"        /*{16 * number:04x}*/  {rest} ;  /* 0x0000000000000000 */\n"
        text += "                                          /* 0x000fe20000000000 */\n"
    return parse(text)


def places(program: Program, *arguments) -> list[int]:
    return [instruction.address // 16 for instruction in program.path(*arguments)]


def test_instructions_are_read_with_their_control_bits() -> None:
    first, second, branch, product, *_ = parse(LISTING).instructions
    assert (first.address, first.opcode, first.operands) == (0, "LDC", "R1, c[0x0][0x28]")
    assert (first.stall, first.written, first.read, first.waits) == (8, 0, NO_SCOREBOARD, ())
    assert (second.stall, second.written) == (1, 1)
    assert (branch.predicate, branch.target, branch.waits, branch.stall) == ("@!P0", 5, (0, 1), 2)
    assert product.opcode == "HGMMA.64x128x16.F32.BF16" and product.name == "HGMMA"


def test_only_branches_have_targets_and_only_backward_ones_make_loops() -> None:
    program = parse(LISTING)
    assert program.instructions[5].target is None, "BSSY names a label and goes on"
    assert program.loops == [Loop(3, 4)], "the last branch is the trap behind EXIT"
    assert places(program, (3,)) == [0, 1, 2, 3, 4, 3, 4, 3, 4, 5, 6]
    assert places(program, (0,)) == [0, 1, 2, 5, 6]


def test_trips_must_be_those_of_the_loops() -> None:
    with pytest.raises(ValueError, match="1 loops in the machine code, 2 trips"):
        parse(LISTING).path((1, 1))


def test_an_inner_loop_runs_in_every_round_of_the_outer() -> None:
    program = listing("a: NOP", "b: NOP", "@P0 BRA `(.L_b)", "@P1 BRA `(.L_a)", "EXIT")
    assert program.loops == [Loop(1, 2), Loop(0, 3)]
    assert places(program, (2, 2)) == [0, 1, 2, 1, 2, 3, 0, 1, 2, 1, 2, 3, 4]


def test_a_loop_that_always_branches_back_is_left_in_its_middle() -> None:
    program = listing("a: NOP", "@P0 EXIT", "NOP", "BRA `(.L_a)", "b: BRA `(.L_b)")
    assert places(program, (2,)) == [0, 1, 2, 3, 0, 1]
    outside = listing("a: NOP", "@P0 BRA `(.L_b)", "BRA `(.L_a)", "b: EXIT")
    assert places(outside, (2,)) == [0, 1, 2, 0, 1, 3]


def test_polling_and_the_way_back_from_rare_code_are_no_loops() -> None:
    poll = listing("a: SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4]", "@!P0 BRA `(.L_a)", "EXIT")
    assert poll.loops == [] and places(poll, ()) == [0, 1, 2]
    rare = listing("@P0 BRA `(.L_rare)", "back: NOP", "EXIT", "rare: NOP", "BRA `(.L_back)")
    assert rare.loops == [] and places(rare, ()) == [0, 1, 2]


def test_two_kinds_of_program_take_two_ways() -> None:
    ends = listing("@P0 BRA `(.L_b)", "a: NOP", "@P1 BRA `(.L_a)", "EXIT", "b: NOP", "@P1 BRA `(.L_b)", "EXIT")
    assert ends.forks == [0]
    assert places(ends, (1, 2)) == [0, 1, 2, 3]
    assert places(ends, (1, 2), frozenset(ends.forks)) == [0, 4, 5, 4, 5, 6]
    joins = listing(
        "BRA.U UP0, `(.L_b)", "a: NOP", "@P1 BRA `(.L_a)", "BRA `(.L_c)", "b: NOP", "@P1 BRA `(.L_b)", "c: EXIT"
    )
    assert joins.forks == [0]
    assert places(joins, (1, 1)) == [0, 1, 2, 3, 6]
    guarded = listing("@P0 BRA `(.L_b)", "a: NOP", "@P1 BRA `(.L_a)", "b: NOP", "c: NOP", "@P1 BRA `(.L_c)", "EXIT")
    assert guarded.forks == [], "a loop that may not run at all parts no programs"
