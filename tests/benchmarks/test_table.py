"""A results file becomes one table and one picture."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.compare.table import draw, read, rows_of, text_table
from benchmarks.measure import machine
from benchmarks.measure.interleaved import Limit, alternate, record
from tests.benchmarks.results import measured


class Fixture:
    """What `record` needs of pytest-benchmark's fixture."""

    name = "a row"

    def __init__(self) -> None:
        self.extra_info: dict = {}

    def pedantic(self, function, rounds: int) -> None:
        function()


def test_contenders_take_turns_and_the_order_changes() -> None:
    turns: list[str] = []
    runs = {name: (lambda name=name: turns.append(name)) for name in "abc"}
    seconds = alternate(runs, rounds=3, warmup=1)
    assert "".join(turns) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_row_holds_ratios_of_medians_and_the_share_of_the_limit() -> None:
    fixture = Fixture()
    seconds = {"ours": [1.0, 2.0, 9.0], "timm": [4.0, 6.0, 6.0], "torchvision v2": [3.0, 3.0, 3.0]}
    limit = Limit(16.0, "what limits")
    record(fixture, seconds, work=8, unit="images/s", clock="wall clock", limit=limit, cores=2)
    info = fixture.extra_info
    assert info["rate"] == {"ours": 4.0, "timm": 1.333, "torchvision v2": 2.667}
    assert (info["ratio_to_timm"], info["ratio_to_torchvision v2"]) == (3.0, 1.5)
    assert (info["best_peer"], info["smallest"], info["largest"]) == ("torchvision v2", 0.33, 3.0)
    assert (info["percent_of_limit"], info["limit"], info["cores"]) == (25.0, "what limits", 2)
    assert info["versions"].keys() == {"timm", "torchvision v2"}
    (row,) = rows_of([{"name": "test_loading", "group": "loader", "extra_info": info}])
    line = text_table([row]).splitlines()[-1]
    for cell in ("loader", "loading", "4 images/s", "1.50 × torchvision v2, 3.00 × timm", "25 %"):
        assert cell in line


def test_variants_of_ours_get_no_ratio() -> None:
    fixture = Fixture()
    record(fixture, {"ours": [1.0], "ours, bf16": [0.5]}, clock="processor time", variants=True)
    assert not [name for name in fixture.extra_info if name.startswith("ratio")]
    (row,) = rows_of([{"name": "test_types", "group": "augment", "extra_info": fixture.extra_info}])
    assert "own variants: 2 ours, bf16" in text_table([row])


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(rows_of(measured(0, rows=5)["rows"]), tmp_path / "rows.png", "five rows")
    with Image.open(tmp_path / "rows.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize("arguments", [["nonsense"], ["loader", "augmnt"]])
def test_a_group_that_does_not_exist_is_named_with_those_that_do(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 2
    assert f"no group {arguments[-1]}: there are attention, augment," in run.stderr


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"top1": 80.0}'], ids=["missing", "cut off", "a list", "another"]
)
def test_what_is_no_results_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"results\.json is not a results file .* python -m benchmarks --out FILE"):
        read(path)
    run = subprocess.run([sys.executable, "-m", "benchmarks.compare", path, path], capture_output=True, text=True)
    assert run.returncode == 2 and "is not a results file" in run.stderr and "Traceback" not in run.stderr


def test_a_machine_without_git_measures_an_unknown_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.commit() != ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit() == "unknown"
