"""What the CUDA augmentation executes: held to its budget, to what its comments promise, and to its page."""

import json
import re

import numpy as np
import pytest
from setuptools.errors import CompileError

from benchmarks.compiled.model import augmentation, blocks, recipe

BUDGET = json.loads(augmentation.BUDGET.read_text())
VALUES = 3 * recipe.SIZE**2 / 32  # of an image, by warps


@pytest.fixture(scope="module")
def counted() -> dict[str, blocks.Counted]:
    try:
        found, toolkit = recipe.count(augmentation.FEW)
    except CompileError as error:
        pytest.skip(str(error))
    if toolkit != BUDGET["toolkit"]:
        pytest.skip(f"the budget is that of CUDA {BUDGET['toolkit']}, this is {toolkit}")
    return found


def issued(counted: blocks.Counted, *names: str) -> float:
    """Warp instructions an image whose opcode begins with one of the names."""
    return sum(count for opcode, count in counted.issued.items() if opcode.startswith(names))


def test_no_stage_executes_more_than_its_budget(counted: dict[str, blocks.Counted]) -> None:
    found = {stage: {"instructions": kernel.instructions} for stage, kernel in counted.items()}
    assert augmentation.over(found, BUDGET["few"]) == []
    too_many = {stage: {"instructions": 1.06 * kernel.instructions} for stage, kernel in counted.items()}
    assert len(augmentation.over(too_many, BUDGET["few"])) == 3


def test_the_resize_copies_sixteen_bytes_and_stores_words(counted: dict[str, blocks.Counted]) -> None:
    resize = counted["resize"]
    assert issued(resize, "LDGSTS.E.BYPASS.128") == issued(resize, "LDGSTS") > 3 * recipe.SIZE**2 / 512
    assert issued(resize, "LDG.") < issued(resize, "LDGSTS")  # the rows of the plan
    assert VALUES / 4 <= issued(resize, "STG.E") == issued(resize, "STG") < 1.06 * VALUES / 4


def test_the_sums_of_the_resize_are_products_of_matrices(counted: dict[str, blocks.Counted]) -> None:
    # A product of 16 x 32 by 32 x 8 bytes is an eighth of three for the 256 levels of two sets of 16 x 8 sums.
    lines = VALUES / 4  # of the output: 128 sums of a product, which reads 32 source lines
    assert issued(counted["resize"], "IMMA") > 3 * (lines + lines)
    # All lanes of a warp take part in each.
    products = [found for found in counted["resize"].listing.instructions if found.base == "IMMA"]
    assert products and all(found.guard is None for found in products)


def test_the_last_stage_stores_sixteen_bytes_where_nothing_is_erased(counted: dict[str, blocks.Counted]) -> None:
    finish = counted["finish"]
    assert VALUES <= issued(finish, "STG.E.128") * 8 < 1.05 * VALUES  # a block's last warp may be half full
    assert issued(finish, "LDG.E.64") >= VALUES / 8  # an image's bytes by eights, and its partner's


def test_no_value_costs_an_integer_division(counted: dict[str, blocks.Counted]) -> None:
    # The compiler's division of integers begins with a reciprocal that is rounded up.
    assert all(issued(kernel, "I2F.RP", "I2F.U32.RP", "I2F.U64.RP") < 0.1 * VALUES for kernel in counted.values())


def test_loops_over_pixels_hold_no_float64(counted: dict[str, blocks.Counted]) -> None:
    ops, resize = counted["plan_ops"], counted["resize"]
    opcodes = np.array([found.base for found in ops.listing.instructions])
    often = ops.counts.sum(1) / ops.images > VALUES / 100
    assert often.any() and not set(opcodes[often]) & blocks.DOUBLE
    assert issued(ops, *blocks.DOUBLE) < 0.01 * ops.instructions
    # The resize's float64 is in its functions of weights, behind the code that makes pixels.
    opcodes = [found.base for found in resize.listing.instructions]
    products = [place for place, opcode in enumerate(opcodes) if opcode == "IMMA"]
    assert not set(opcodes[products[0] : products[-1]]) & blocks.DOUBLE
    assert 0 < issued(resize, *blocks.DOUBLE) < 0.05 * resize.instructions


def test_three_launches_make_a_batch() -> None:
    def body(source: str, function: str) -> str:
        text = (recipe.ROOT / "csrc" / source).read_text()
        return re.findall(rf"^void {function}\(.*?^}}", text, re.MULTILINE | re.DOTALL)[-1]  # behind the CPU's

    called = re.findall(r"cuda::(\w+)\(batch, images", body("ops.cpp", "apply_into"))
    assert called == ["resize", "run_plan_ops", "finish"]
    launches = [body("cuda/augment.cu", function) for function in called]
    # The last one launches the kernel of the output's type.
    assert [len(re.findall(r"<<<|launch_ops\(", text)) for text in launches] == [1, 1, 0]
    assert launches[2].count("break;") == launches[2].count("launch_finish<") == 3
    assert set(BUDGET["stages"]) == set(recipe.KERNELS)


@pytest.mark.parametrize(
    ("work", "multiprocessors", "resident", "clocks"),
    [
        ([5.0], 4, 2, 5.0),
        ([1.0] * 8, 4, 1, 2.0),
        ([1.0] * 8, 4, 2, 2.0),  # two share a multiprocessor
        ([6.0, 1.0, 1.0, 1.0, 1.0], 2, 1, 6.0),  # the four find room beside the long one
        ([1.0, 1.0, 1.0, 6.0], 2, 1, 7.0),  # the long one comes last
        ([6.0, 2.0, 2.0, 2.0], 2, 2, 8.0),  # it shares with the third block, and then has all
    ],
)
def test_blocks_are_given_out_in_order(work: list[float], multiprocessors: int, resident: int, clocks: float) -> None:
    assert blocks.makespan(np.array(work), multiprocessors, resident) == pytest.approx(clocks)


def test_the_page_is_that_of_the_budget() -> None:
    assert augmentation.PAGE.read_text() == augmentation.page(BUDGET)
