"""The benchmarks run here, some rows of every group, with the code that measures, so that they cannot rot."""

import functools
import inspect
import json
import os
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch

from benchmarks import __main__ as run
from benchmarks import bench_attention, bench_augment, bench_inference, bench_loss, bench_overhead
from benchmarks.__main__ import groups, main
from benchmarks.measure import device_timing, interleaved
from tests.benchmarks.alone import alone
from tests.benchmarks.test_table import Fixture

ROOT = Path(__file__).parents[2]
ROW = {"ours", "unit", "clock", "rate", "versions", "seconds"}


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        (bench_attention, "attention", (bench_attention.Shape(1, 198, 3, torch.float32), "forward")),
        (bench_loss, "worst_form", (1, 10, "both")),
        (bench_overhead, "call_cross_entropy", ()),
        (bench_overhead, "call_attention", (1, 1)),
        (bench_inference, "inference", ("tiny", 1)),
        (bench_augment, "crop_and_flip", ()),
    ],
)
def test_a_row_names_peers_ratios_versions_and_its_limit(
    module: ModuleType, name: str, arguments: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = functools.partial(interleaved.alternate, rounds=2, warmup=0)
    for place in (interleaved, device_timing):
        monkeypatch.setattr(place, "alternate", lambda runs, rounds=9, warmup=1, **clock: once(runs, **clock))
    monkeypatch.setattr(bench_augment, "IMAGES", 2)
    monkeypatch.setattr(bench_overhead, "CALLS", 5)
    row, shared = Fixture(), {"one_thread": None, "photos": bench_augment.windows()}
    test = getattr(module, f"test_{name}")
    fixtures = {key: value for key, value in shared.items() if key in inspect.signature(test).parameters}
    rest = [key for key in inspect.signature(test).parameters if key not in ("benchmark", *fixtures)]
    test(row, **fixtures, **dict(zip(rest, arguments, strict=True)))
    numbers = row.extra_info
    own, *peers = numbers["seconds"]
    assert ROW <= set(numbers) and own == numbers["ours"] and peers
    assert len({len(seconds) for seconds in numbers["seconds"].values()}) == 1, "as many rounds for everybody"
    assert all(numbers[f"ratio_to_{peer}"] > 0 for peer in peers if peer != "timm with our attention")
    assert "ratio_to_timm with our attention" not in numbers, "a form of ours is no peer"
    assert numbers["percent_of_limit"] > 0 and numbers["limit"]
    assert numbers["versions"].keys() == {*peers} - {"timm with our attention"}, "every peer has a version"


def test_pytest_collects_the_benchmarks_of_the_folder_once() -> None:
    class Collected:
        names: ClassVar[list[str]] = []

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            self.names += [item.nodeid for item in session.items]

    arguments = [str(ROOT / "benchmarks"), "--collect-only", "-q", "-p", "no:cacheprovider"]
    assert pytest.main(arguments, plugins=[Collected()]) == 0
    names = Collected.names
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


ROWS = """
from benchmarks.measure.interleaved import compare

def test_first(benchmark):
    compare(benchmark, {"ours": list, "peer": dict}, rounds=3)

def test_second(benchmark):
    compare(benchmark, {"ours": list, "peer": dict}, rounds=3)

def test_agree():
    pass
"""


def test_an_interrupted_run_keeps_its_rows_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out, file = tmp_path / "results.json", tmp_path / "bench_small.py"
    file.write_text(ROWS)
    (tmp_path / "conftest.py").write_text("from benchmarks.conftest import *")
    monkeypatch.setattr(run, "groups", lambda: {"small": file})
    for name in os.environ.keys() - alone().keys():
        monkeypatch.delenv(name)

    def benchmarks(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["benchmarks", "small", "--out", str(out), *words])
        return run.main()

    assert benchmarks("-k", "first") == 0
    first = json.loads(out.read_text())["rows"]
    assert benchmarks("--continue") == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows[:1] == first and len(rows) == 2, "what was measured stays as it was"
    summary = capsys.readouterr().out.split("group ")
    assert "first" in summary[1] and "second" in summary[2], "a table at the end holds every row"
    assert benchmarks("--continue") == 0 and "holds every row that runs here" in capsys.readouterr().out
    out.write_text(json.dumps(json.loads(out.read_text()) | {"commit": "1234567"}))
    assert benchmarks("--continue") == 0, "a commit that changes no code changes no number"
    out.write_text(json.dumps(json.loads(out.read_text()) | {"sources": "1234567"}))
    with pytest.raises(SystemExit):
        benchmarks("--continue")
    assert "is of other sources than these" in capsys.readouterr().err


def test_without_marks_asked_for_the_rows_of_every_size_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes that are collected on a card."""
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
