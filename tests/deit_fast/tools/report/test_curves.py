"""Curves: points lie where their values are, gaps stay gaps, a long curve is thinned by means, the page colours it."""

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_fast.tools.report import curves
from deit_fast.tools.report.curves import HEIGHT, LEFT, MOST_POINTS, TOP, WIDTH, Chart, Series
from deit_fast.tools.report.facts import Facts


def series(name: str, steps: list[int], values: list, dashed: bool = False) -> Series:
    return Series(name, [{"step": step} for step in steps], values, dashed)


def parsed(chart: Chart) -> tuple[list[list[tuple[float, float]]], list[str]]:
    """(the places of the curves, each as its runs of points; the text) of a drawing."""
    drawing = chart.inline()["drawing"]
    root = ET.fromstring(f'<svg xmlns:xlink="http://www.w3.org/1999/xlink">{drawing}</svg>')
    paths = [path.get("d") for path in root.iter("path") if re.search(r"stroke: var\(--c\d\)", path.get("style", ""))]
    runs = [run for path in paths if " C" not in path and "\nC" not in path for run in path.split("M ")[1:]]  # no dot
    return [[tuple(map(float, point.split())) for point in re.split("L|\n", run) if point.strip()] for run in runs], [
        text.text for text in root.iter("text")
    ]


def test_points_lie_where_their_values_are() -> None:
    chart = Chart("speed", "images/s", [series("speed", [0, 5, 10], [0.0, 50.0, 100.0])], zero=True, top=100)
    ((first, middle, last),), text = parsed(chart)
    assert (first[1], middle[1], last[1]) == (TOP + HEIGHT, TOP + HEIGHT / 2, TOP)
    begin, each = chart.inline()["across"]
    for step, (place, _) in zip((0, 5, 10), (first, middle, last), strict=True):
        assert LEFT <= place <= LEFT + WIDTH and place == pytest.approx(begin + each * step, abs=0.01)
    assert text == ["0", "2", "4", "6", "8", "10", "0", "20", "40", "60", "80", "100"]


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
def test_a_value_that_is_none_leaves_a_gap_and_a_lone_point_is_a_dot(nothing: float | None) -> None:
    chart = Chart("loss", "", [series("loss", [1, 2, 3, 4], [2.0, 1.5, nothing, 1.0])])
    assert [len(run) for run in parsed(chart)[0] if len(run) > 1] == [2]
    assert chart.inline()["drawing"].count("<use") == 1
    assert [step for step, _ in chart.inline()["series"][0]["points"]] == [1, 2, 4]
    assert curves._drawable(Chart("loss", "", [series("loss", [1], [nothing])])) == []


@pytest.mark.parametrize("count", [5000, 801, 400])
def test_a_long_curve_keeps_its_means_and_its_last_step(count: int) -> None:
    points = Chart("", "", [series("loss", list(range(count)), list(range(count)))], digits=9).inline()["series"][0]
    size = -(-count // MOST_POINTS)
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    assert points["points"] == [[part[-1], sum(part) / len(part)] for part in parts]


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_curve_is_drawn_inside_the_box(value: float) -> None:
    chart = Chart("skipped", "", [series("skipped", [1, 2], [value, value])], level=("other", value))
    ((first, last),), _ = parsed(chart)
    assert TOP < first[1] == last[1] < TOP + HEIGHT
    assert chart.inline()["level"] == {"name": "other", "value": value}


def test_small_ticks_and_large_ones_are_numbers_without_an_offset() -> None:
    _, text = parsed(Chart("", "", [series("", [1, 80_000], [0.0, 5e-4])], zero=True))
    assert text == ["0", "20,000", "40,000", "60,000", "80,000", "0", "0.0001", "0.0002", "0.0003", "0.0004", "0.0005"]


def test_the_page_decides_the_colours_and_nothing_refers_outside() -> None:
    many = [series(f"<b>{number}", [1, 2], [number, 2.0], number % 2 == 1) for number in range(9)]
    drawing = Chart("top-1", "", many, level=("teacher", 3.0)).inline()["drawing"]
    style = (Path(curves.__file__).parent / "templates" / "style.css").read_text()
    used = set(re.findall(r"var\((--\w+)\)", drawing))
    assert used == {"--line", "--quiet", "--ink", *(f"--c{number}" for number in range(8))}
    assert all(f"{name}:" in style for name in used)
    assert not re.search(r"#[0-9a-f]{6}|url\(|<style|id=|font|<b>|http", drawing)
    assert drawing.count("stroke-dasharray") == 5  # the dashed curves and the level


def test_the_png_shows_what_the_page_shows(reported: Path, tmp_path: Path) -> None:
    charts = curves.of_run(Facts.read(reported))
    names = ["Training loss", "Validation top-1", "Learning rate", "Throughput", "Gradient norm"]
    assert [chart.title for chart in charts] == names
    assert [one.name for one in charts[0].series] == ["loss", "true label", "teacher"] and charts[1].level is not None
    assert len(charts[1].series) == 6  # class token, distillation token and fused, each with its moving average
    curves.draw(Facts.read(reported), tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    for colour in curves.COLOURS[:6]:
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - rgb).sum(1) < 12).sum() > 20, colour
    assert (reported / "report.png").stat().st_size > 20_000
