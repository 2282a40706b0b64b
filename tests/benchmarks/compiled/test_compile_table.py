"""docs/compile-report.md is what the committed budget says, with every kernel of every architecture."""

import copy
import json
import re

import pytest

from benchmarks.compiled import page as compile_table
from benchmarks.compiled.page import (
    PAGE,
    budget_of,
    commit_of,
    page,
    picture_of,
    times_of,
)
from benchmarks.compiled.report import BUDGET

NOW = json.loads(BUDGET.read_text())


def row(text: str, target: str, kernel: str) -> list[str]:
    section = text[text.index(f"## {target}\n") :]
    return [cell.strip() for cell in section[section.index(f"| {kernel} |") :].splitlines()[0].split("|")[1:-1]]


def test_the_page_of_the_repository_holds_the_committed_budget() -> None:
    written = PAGE.read_text()
    for target, kernels in NOW["kernels"].items():
        assert picture_of(target).exists()
        for kernel, numbers in kernels.items():
            cells = row(written, target, kernel)
            assert cells[1:3] == [str(numbers["registers"]), str(numbers["spills"])], "run benchmarks.compiled.page"
            assert cells[9] == str(numbers["instructions"])


def test_a_row_tells_occupancy_traffic_and_drift() -> None:
    before = copy.deepcopy(NOW)
    name = "attention_forward_resident n198 d64"
    before["kernels"]["sm_90"][name]["registers"] -= 3
    del before["kernels"]["sm_80"][name]
    text = page(NOW, before, "abc1234")
    cells = row(text, "sm_90", name)
    assert cells[5] == f"{100 * NOW['kernels']['sm_90'][name]['warps'] / 64:.0f} %"
    assert cells[10:] == ["1.00", "1.36", "1.36", "+3 registers", "–"]  # 256 x 208 for 198 x 198
    assert row(text, "sm_89", "attention_backward_two_phase n198 d64")[10] == "2.02", "of this form"
    assert row(text, "sm_80", name)[13] == "new"
    assert row(text, "sm_120", "attention_delta d64")[13] == "none"
    assert row(text, "sm_90", "loss_forward hard mixed c1000")[10:13] == ["1.00", "–", "1.02"]
    assert row(text, "sm_90", "attention_delta d64")[10:13] == ["–"] * 3


def test_a_time_stands_beside_the_kernel_it_is_of() -> None:
    times = {"attention[B256-N198-H6-bfloat16-forward]": 70.4, "attention[B256-N198-H6-bfloat16-backward]": 150.0}
    assert times_of("attention_forward_resident n198 d64", times) == "70 µs"
    for other in ("attention_forward_resident n197 d64", "attention_forward_resident n198 d8", "attention_delta d64"):
        assert times_of(other, times) == "–"
    times = {"loss[hard-mixed-B256-C1000-forward]": 9.6, "loss[hard-mixed-B256-C1000-both]": 30.0}
    assert times_of("loss_forward hard mixed c1000", times) == "10 µs"
    for other in ("loss_backward hard mixed c1000", "loss_forward soft dense c1000", "loss_mean"):
        assert times_of(other, times) == "–"


def test_the_page_names_a_commit_that_stays_and_tells_drift_from_it() -> None:
    against = re.search(r"Drift is against the budget of (\w+)\.", PAGE.read_text()).group(1)
    assert re.fullmatch(r"[0-9a-f]{7,}", against)
    assert commit_of("") == ""
    changed = copy.deepcopy(NOW)
    changed["kernels"]["sm_90"]["attention_delta d64"]["instructions"] += 8
    assert row(page(changed, NOW, "abc1234"), "sm_90", "attention_delta d64")[13] == "+8 instructions"


def test_a_commit_without_a_budget_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert budget_of("0000000") is None
    monkeypatch.setattr("sys.argv", ["compile_table", "--against", "0000000"])
    with pytest.raises(SystemExit):
        compile_table.main()
    assert "0000000 holds no budget.json" in capsys.readouterr().err
