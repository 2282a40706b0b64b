"""What the kernels promise of their machine code and their traffic, for the Triton of the committed budget."""

import itertools
import json
import re

import pytest
import triton

from benchmarks.compiled import report as compile_report
from benchmarks.compiled.cases import attention, compile_cases, trace_cases
from benchmarks.compiled.report import BUDGET, as_lines, trace_violations, unusable, violations
from benchmarks.compiled.resources import compile_resources, resident_warps

PINNED = json.loads(BUDGET.read_text())
CASES = {(case.name, case.capability): case for case in attention.compile_cases()}
needs_pinned_triton = pytest.mark.skipif(
    triton.__version__ != PINNED["triton"], reason=f"the budget is that of Triton {PINNED['triton']}"
)

# A register limit that lets a third program onto the multiprocessor; and outside of the loop.
SPILLS = {"attention_forward_resident n198 d64": 58, "attention_backward_resident n198 d64": 7}


def compiled(name: str, capability: int) -> dict:
    return compile_resources(CASES[name, capability], capability)


@pytest.mark.proof
@needs_pinned_triton
@pytest.mark.parametrize(
    "name",
    [
        "attention_forward_resident n198 d64",
        "attention_backward_resident n198 d64",
        "attention_forward_tiled n578 d64",
        "attention_backward_tiled n578 d64",
        "attention_delta d64",
    ],
)
def test_on_an_h100_the_default_kernels_hardly_spill_and_use_its_instructions(name: str) -> None:
    numbers = compiled(name, 90)
    assert violations({"sm_90": {name: numbers}}, PINNED["kernels"]) == []
    assert numbers["spills"] <= SPILLS.get(name, 0)
    assert numbers["warps"] >= 8
    assert numbers["loads_128"] > 0
    if "delta" not in name:
        # What is left of narrower loads is the log-sum-exp and delta, one float a row.
        assert set(numbers["matrix"]) == {"HGMMA"} and numbers["loads_narrow"] <= 10


@pytest.mark.proof
@needs_pinned_triton
@pytest.mark.parametrize(
    "name",
    ["attention_forward_resident n198 d64", "attention_backward_two_phase n198 d64"],
    ids=["forward", "backward"],
)
def test_on_an_a100_the_kernels_keep_to_their_budget(name: str) -> None:
    assert violations({"sm_80": {name: compiled(name, 80)}}, PINNED["kernels"]) == []


# A second each at most, of every kernel and both edges of a block; the others are slow.
QUICK = re.compile(
    r"loss_mean|loss_(forward|backward) .* c(1000|4096)|attention_\w+ n(16|64|128|192|198) d(64|8) .*"
    r"|attention_\w+_tiled n128 d128 in m(64|128) n64|attention_forward_tiled n257 d64 in m128 n64"
)
TRACES = [case.name for case in trace_cases()]


@pytest.fixture(scope="module")
def traced() -> dict[str, dict[str, float]]:
    return compile_report.traces(filter(QUICK.fullmatch, TRACES))


@pytest.mark.proof
def test_traffic_and_arithmetic_keep_to_their_budget(traced: dict[str, dict[str, float]]) -> None:
    assert trace_violations(traced, PINNED["traces"]) == []
    assert {name.split()[0] for name in traced} == {name.split()[0] for name in TRACES}


@pytest.mark.slow
@pytest.mark.proof
def test_traffic_and_arithmetic_of_long_sequences_keep_to_their_budget() -> None:
    long = [name for name in TRACES if not QUICK.fullmatch(name)]
    traced = compile_report.traces(long)
    assert [*traced] == long and trace_violations(traced, PINNED["traces"]) == []


@pytest.mark.proof
def test_up_to_208_tokens_every_byte_moves_once(traced: dict[str, dict[str, float]]) -> None:
    for direction, length in itertools.product(("forward", "backward"), (64, 192, 198)):
        case = CASES[f"attention_{direction}_resident n{length} d64", 90]
        assert traced[case.trace]["traffic"] <= 1.05, case.trace


def test_every_kernel_but_delta_is_traced_in_its_own_blocks() -> None:
    cases = compile_cases()
    assert {case.trace for case in cases} - {""} == set(TRACES)
    assert all(case.trace or "attention_delta" in case.name for case in cases)


@pytest.mark.proof
def test_arithmetic_over_the_minimum_is_what_the_blocks_pad(traced: dict[str, dict[str, float]]) -> None:
    forward = traced[CASES["attention_forward_resident n198 d64", 90].trace]  # rows of 64, keys of 128 + 64 + 16
    assert forward["products"] == pytest.approx(256 * 208 / 198**2, abs=1e-4)
    assert forward["exponentials"] == forward["products"]
    tiled = traced["attention_backward_tiled n128 d128 in m64 n64"]  # 5, and 2 for a second time
    assert tiled["products"] == pytest.approx(7 / 5, abs=1e-4)
    assert tiled["exponentials"] == pytest.approx(2, abs=1e-4)
    assert "products" not in traced["loss_forward hard mixed c1000"]


@pytest.mark.slow
@needs_pinned_triton
def test_every_kernel_on_every_card_keeps_to_its_budget() -> None:
    report = compile_report.compile_all(compile_report.selected(compile_cases(), "", None))
    assert unusable(report) + violations(report, PINNED["kernels"]) == []


def test_a_kernel_worse_than_its_budget_is_named() -> None:
    name = "attention_forward_resident n198 d64"
    allowed = PINNED["kernels"]["sm_90"][name]
    worse = allowed | {"registers": 256, "loads_128": 0, "warps": 4, "matrix": {"HMMA": 1}}
    found = violations({"sm_90": {name: worse}}, PINNED["kernels"])
    assert len(found) == 4 and all(name in line and "sm_90" in line for line in found)
    assert violations({"sm_90": {name: allowed}}, PINNED["kernels"]) == []
    assert violations({"sm_120": {name: worse}}, PINNED["kernels"]) == [], "sm_120 is reported, not gated"
    assert "not in the budget" in violations({"sm_90": {"new kernel": allowed}}, PINNED["kernels"])[0]


def test_a_kernel_that_cannot_run_is_named_on_every_card() -> None:
    numbers = PINNED["kernels"]["sm_90"]["attention_delta d64"]
    dropped = numbers | {"stores_128": 0, "stores_narrow": 0}
    assert unusable({"sm_100": {"a": numbers, "b": dropped, "c": numbers | {"warps": 0}}}) == [
        "b sm_100: stores nothing",
        "c sm_100: does not fit on a multiprocessor",
    ]


def test_traffic_and_arithmetic_that_are_worse_are_named() -> None:
    clean = {"traffic": 1.0, "outside": 0, "stored_twice": 0, "missing": 0, "foreign_loads": 0}
    assert trace_violations({"a": clean}, {"a": clean}) == []
    assert trace_violations({"a": clean | {"traffic": 1.1, "missing": 2}}, {"a": clean}) == [
        "a: traffic 1.1, budget 1.0",
        "a: 2 missing",
    ]
    assert trace_violations({"a": clean | {"products": 1.5}}, {"a": clean | {"products": 1.4}}) == [
        "a: products 1.5, budget 1.4"
    ]


@pytest.mark.parametrize(
    ("capability", "registers", "shared", "columns", "warps", "resident"),
    [
        (90, 128, 0, 0, 8, 16),  # by registers
        (90, 168, 0, 0, 4, 12),
        (90, 32, 100 * 1024, 0, 4, 8),  # by shared memory
        (89, 32, 0, 0, 4, 48),  # by threads
        (100, 32, 0, 256, 4, 8),  # by tensor memory
        (100, 32, 0, 576, 4, 0),
    ],
)
def test_resident_warps(capability: int, registers: int, shared: int, columns: int, warps: int, resident: int) -> None:
    assert resident_warps(capability, registers, shared, columns, warps) == resident


def test_a_signature_that_is_not_the_kernels_is_refused() -> None:
    case = next(iter(CASES.values()))
    broken = type(case)(**{**vars(case), "divisible_by_16": frozenset({"nothing"})})
    with pytest.raises(ValueError, match="the kernel takes"):
        compile_resources(broken, 90)


def test_the_command_checks_a_kernel_and_its_trace(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    name = "loss_mean"
    monkeypatch.setattr(compile_report, "traces", lambda names: {each: PINNED["traces"][each] for each in names})
    monkeypatch.setattr("sys.argv", ["compile_report", "--select", name, "--capability", "90", "--check"])
    with pytest.raises(SystemExit) as ended:
        compile_report.main()
    assert ended.value.code == 0 and "within the budget" in capsys.readouterr().out
    monkeypatch.setattr(compile_report, "traces", lambda names: {name: PINNED["traces"][name] | {"missing": 1}})
    with pytest.raises(SystemExit) as ended:
        compile_report.main()
    assert ended.value.code == 1 and "loss_mean: 1 missing" in capsys.readouterr().out


def test_the_budget_is_written_one_kernel_a_line() -> None:
    assert json.loads(as_lines(PINNED)) == PINNED
    assert as_lines(PINNED) + "\n" == BUDGET.read_text()


def test_a_part_of_the_budget_is_written_into_the_whole() -> None:
    kernel = {"new kernel": PINNED["kernels"]["sm_90"]["attention_delta d64"]}
    budget = compile_report.updated({"sm_90": kernel}, {"new trace": {"traffic": 1.0}}, partial=True)
    assert budget["kernels"]["sm_90"] == PINNED["kernels"]["sm_90"] | kernel
    assert budget["kernels"]["sm_80"] == PINNED["kernels"]["sm_80"]
    assert budget["traces"] == PINNED["traces"] | {"new trace": {"traffic": 1.0}}
    assert compile_report.updated({"sm_90": kernel}, {}, partial=False)["kernels"] == {"sm_90": kernel}
