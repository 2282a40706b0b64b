"""The benchmarks run here, some rows of every group, with the code that measures, so that they cannot rot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import groups, main
from tests.benchmarks.alone import alone

ROOT = Path(__file__).parents[2]
CHOSEN = "agree or (B1 and forward) or (soft-dense and forward) or call_ or tiny-1"
ROW = {"ours", "unit", "clock", "rate", "versions", "seconds"}


def test_rows_name_peers_ratios_versions_and_limits(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    files = [f"benchmarks/bench_{group}.py" for group in ("attention", "loss", "overhead", "inference")]
    command = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider", "-k", CHOSEN]
    run = subprocess.run(
        [*command, f"--benchmark-json={results}"], cwd=ROOT, env=alone(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    rows = {entry["name"]: entry for entry in json.loads(results.read_text())["benchmarks"]}
    assert {entry["group"] for entry in rows.values()} == {"attention", "loss", "overhead", "inference"}
    for entry in rows.values():
        numbers = entry["extra_info"]
        own, *peers = numbers["seconds"]
        assert ROW <= set(numbers) and own == numbers["ours"] and peers
        assert len({len(seconds) for seconds in numbers["seconds"].values()}) == 1, "as many rounds for everybody"
        assert all(numbers[f"ratio_to_{peer}"] > 0 for peer in peers if peer != "timm with our attention")
        assert "ratio_to_timm with our attention" not in numbers, "a form of ours is no peer"
        if entry["group"] in ("attention", "loss", "inference"):
            assert numbers["percent_of_limit"] > 0 and numbers["limit"]
    assert rows["test_inference[tiny-1]"]["extra_info"]["versions"].keys() >= {"timm", "hugging face"}
    summary = run.stdout[run.stdout.index("group ") :]
    assert all(name.removeprefix("test_") in summary for name in rows), "one table at the end holds every row"


def test_pytest_collects_the_benchmarks_of_the_folder_once() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, env=alone(), capture_output=True, text=True)
    names = [line for line in run.stdout.splitlines() if line.startswith("benchmarks/bench_")]
    assert len(names) == len(set(names))
    assert {name.split("::")[0] for name in names} == {f"benchmarks/bench_{group}.py" for group in groups()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["lodaer"], "no group lodaer: there are attention"), (["--out", "."], "--out results.json")],
)
def test_a_mistake_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], says: str
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert says in capsys.readouterr().err


def test_an_interrupted_run_keeps_its_rows_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "results.json"

    def benchmarks(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks", "overhead", "--out", str(out), *words]
        return subprocess.run(command, cwd=ROOT, env=alone(), capture_output=True, text=True)

    assert benchmarks("-k", "call_attention").returncode == 0
    first = json.loads(out.read_text())["rows"]
    done = benchmarks("-k", "call_", "--continue")
    assert done.returncode == 0, done.stdout
    rows = json.loads(out.read_text())["rows"]
    assert rows[: len(first)] == first and len(rows) == len(first) + 2, "what was measured stays as it was"
    assert "holds every row that runs here" in benchmarks("-k", "call_", "--continue").stdout
    out.write_text(json.dumps(json.loads(out.read_text()) | {"commit": "1234567"}))
    assert benchmarks("-k", "call_", "--continue").returncode == 0, "a commit that changes no code changes no number"
    out.write_text(json.dumps(json.loads(out.read_text()) | {"sources": "1234567"}))
    refused = benchmarks("-k", "call_", "--continue")
    assert refused.returncode == 2 and "is of other sources than these" in refused.stderr


def test_without_marks_asked_for_the_rows_of_every_size_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are collected on a card."""
    from benchmarks import bench_attention, bench_loss, conftest

    for module in (bench_attention, bench_loss):
        monkeypatch.setattr(module, "ON_CARD", True)
        marks = [getattr(shape, "marks", ()) for shape in module.shapes()]
        quick = [shape.values[0] for shape in module.shapes() if not shape.marks]
        assert len(quick) < 10 < len(marks) and quick[0].__dict__.get("batch", quick[0].__dict__.get("rows")) == 256

    class Item:
        def __init__(self, path: Path, slow: bool) -> None:
            self.path, self._slow = path, slow

        def get_closest_marker(self, name: str) -> bool:
            return name == "slow" and self._slow

    class Config:
        class option:
            markexpr = ""

        class hook:
            pytest_deselected = staticmethod(lambda items: deselected.extend(items))

    deselected: list[Item] = []
    folder = ROOT / "benchmarks"
    slow, quick, elsewhere = Item(folder / "a.py", True), Item(folder / "a.py", False), Item(ROOT / "tests/a.py", True)
    items = [slow, quick, elsewhere]
    conftest.pytest_collection_modifyitems(Config, items)
    assert items == [quick, elsewhere] and deselected == [slow]
    Config.option.markexpr = "slow or not slow"
    items = [slow, quick]
    conftest.pytest_collection_modifyitems(Config, items)
    assert items == [slow, quick]
