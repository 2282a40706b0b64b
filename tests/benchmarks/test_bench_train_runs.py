"""The benchmark of the training step runs here at its smallest size, with the code that a card runs."""

import pytest

from benchmarks import bench_train
from benchmarks.bench_train import Form
from benchmarks.measure import interleaved
from tests.benchmarks.test_table import Fixture


@pytest.mark.parametrize("row", ["live_teacher", "cached_labels", "student_only"])
def test_a_row_holds_the_ratio_to_timm_and_how_it_was_measured(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = interleaved.alternate
    monkeypatch.setattr(interleaved, "alternate", lambda runs, *, rounds, **options: turn(runs, rounds=1, warmup=0))
    for name, small in {"ROWS": 1, "STEPS": 1, "TEACHER": "test_resnet"}.items():
        monkeypatch.setattr(bench_train, name, small)
    benchmark = Fixture()
    getattr(bench_train, f"test_{row}")(benchmark, Form("tiny"))
    found = benchmark.extra_info
    assert found["ours"] == "deit_fast" and found["clock"] == "processor time" and found["unit"] == "images/s"
    peers = {"timm", "official"} if row == "live_teacher" else {"timm"}
    assert all(found[f"ratio_to_{peer}"] > 0 for peer in peers) and found["percent_of_limit"] > 0
    assert {"card", "torch", "model", "teacher", "batch", "versions"} <= found.keys()
