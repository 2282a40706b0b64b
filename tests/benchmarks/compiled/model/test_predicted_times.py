"""The launches that the ops declare are those of their machine code, and the model keeps near published speeds."""

import itertools
import json

import pytest
import triton

from benchmarks.compiled.cases import compile_cases
from benchmarks.compiled.model import calibration, pipes
from benchmarks.compiled.model.predict import CORRECTION, paths_of
from benchmarks.compiled.report import BUDGET, numbers_of
from benchmarks.compiled.resources import CAPABILITIES, compile_case, program_of

PINNED = json.loads(BUDGET.read_text())["triton"]
needs_pinned_triton = pytest.mark.skipif(triton.__version__ != PINNED, reason=f"the budget is that of Triton {PINNED}")
pytestmark = needs_pinned_triton


def case_of(name: str, capability: int):
    cases = compile_cases()
    return next(case for case in cases if case.name == name and case.capability in (None, capability))


def moved(case, capability: int) -> tuple[float, float]:
    """(bytes loaded, bytes stored) by the lanes of a program's path, the mean of the kinds of program."""
    paths = paths_of(program_of(compile_case(case, capability)), case.launch)
    loaded, stored = zip(*(pipes.global_bytes(path, pipes.CARDS[capability]) for path in paths), strict=True)
    return case.num_warps * sum(loaded) / len(paths), case.num_warps * sum(stored) / len(paths)


@pytest.mark.parametrize(
    ("name", "capability", "loaded", "stored"),
    [
        # K and V are padded to 208 rows, Q and O to 256; 128 lanes store the log-sum-exp of 64 rows, 256 that of 128.
        # With two stages a block past the last one is asked for ahead.
        ("attention_forward_resident n198 d64", 90, (2 * 208 + 256) * 128, 256 * 128 + 4 * 512),
        ("attention_forward_resident n198 d64", 80, (2 * 208 + 256) * 128, 256 * 128 + 2 * 1024),
        ("attention_forward_resident n192 d64", 80, (2 * 192 + 256) * 128, 192 * 128 + 3 * 512),
        ("attention_forward_resident n128 d64", 90, (2 * 128 + 3 * 64) * 128, 128 * 128 + 2 * 512),
        # A row each of two, a tile of 1,024 classes, of which each program has one.
        ("loss_forward soft dense c1000", 90, 4 * 1024 * 2, 10 * 4 * 128),
        ("loss_backward binary dense c1000", 90, 2 * 1024 * 2 + 12 * 128, 1024 * 2),
    ],
)
def test_a_launch_loads_and_stores_what_is_declared_and_the_padding(
    name: str, capability: int, loaded: int, stored: int
) -> None:
    case = case_of(name, capability)
    assert moved(case, capability) == (loaded, stored)
    assert case.launch.loaded <= loaded and case.launch.stored <= stored


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("attention_backward_resident n198 d64", 90), ("attention_backward_two_phase n198 d64", 80),
        *itertools.product(
            (
                "attention_backward_resident n64 d64", "attention_backward_tiled n578 d64",
                "attention_forward_tiled n578 d64", "loss_forward topk c1000", "loss_forward hard mixed c21841",
            ), (80, 90),
        ),
    ],
)  # fmt: skip
def test_trips_and_bytes_fit_the_machine_code(name: str, capability: int) -> None:
    check_fit(case_of(name, capability), capability)


def check_fit(case, capability: int) -> None:
    loaded, stored = moved(case, capability)  # raises where the loops are others
    assert case.launch.loaded <= loaded, "less is loaded than is declared"
    assert case.launch.stored <= stored, "less is stored than is declared"
    if case.name.startswith("attention") and case.constexprs["D"] == case.constexprs["BD"] > 16:
        # 80 tokens are padded to 128 rows, and a loop asks for two blocks ahead.
        assert loaded <= 2.5 * case.launch.loaded, "more is loaded than is declared and padded"
    assert case.launch.fetched <= case.launch.loaded


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_trips_and_bytes_of_every_launch_fit(capability: int) -> None:
    for case in compile_cases():
        if case.capability in (None, capability):
            check_fit(case, capability)


def test_predictions_stand_beside_the_resources() -> None:
    numbers = numbers_of(case_of("loss_forward hard mixed c1000", 90), 90)
    assert numbers["predicted_us"] > numbers["floor_us"] > 0
    for name in ("attention_delta d64", "attention_forward_resident n198 d64"):
        others = numbers_of(case_of(name, 90), 90)
        replayed = others["predicted_us"] / CORRECTION
        assert replayed > others["bound_us"] and replayed > others["floor_us"], "faster than its pipes or the DRAM"
    assert numbers["resident"] == numbers["warps"] // 4
    blackwell = numbers_of(case_of("loss_forward hard mixed c1000", 120), 120)
    assert "predicted_us" not in blackwell and blackwell["bound_us"] > 0


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("longest", "count"), [(1024, 5), pytest.param(4096, 10, marks=pytest.mark.slow)])
def test_the_model_keeps_near_published_speeds(longest: int, count: int) -> None:
    """The sources are named in calibration.py."""
    errors = [speed / published.teraflops - 1 for published, speed in calibration.compare(longest)]
    assert len(errors) == count
    assert all(-0.05 <= error <= 0.30 for error in errors), errors
    assert 0 < sum(errors) / len(errors) < 0.15, "too fast, and by less than the correction"
