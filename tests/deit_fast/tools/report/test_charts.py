"""Curves: points lie where their values are, gaps stay gaps, long curves are thinned by means."""

import math

import pytest

from deit_fast.tools.report.charts import HEIGHT, MOST_POINTS, WIDTH, Series, line_chart


def test_the_ends_of_the_axes_are_the_edges_of_the_box() -> None:
    chart = line_chart("speed", "images/s", [Series("speed", [0, 5, 10], [0.0, 50.0, 100.0])], zero=True)
    assert chart["series"][0]["points"] == [[0, HEIGHT, 0, 0], [WIDTH / 2, HEIGHT / 2, 5, 50], [WIDTH, 0, 10, 100]]
    assert chart["series"][0]["path"] == f"M0,{HEIGHT}h0L{WIDTH / 2:g},{HEIGHT / 2:g}L{WIDTH},0"
    assert [tick["text"] for tick in chart["ticks_y"]] == ["0", "20", "40", "60", "80", "100"]


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
def test_a_value_that_is_none_leaves_a_gap(nothing: float | None) -> None:
    chart = line_chart("loss", "", [Series("loss", [1, 2, 3], [2.0, nothing, 1.0])])
    assert chart["series"][0]["path"].count("M") == 2
    assert [point[2] for point in chart["series"][0]["points"]] == [1, 3]
    assert line_chart("loss", "", [Series("loss", [1], [nothing])]) is None


def test_a_long_curve_keeps_its_means_and_its_last_step() -> None:
    steps = list(range(5000))
    points = line_chart("loss", "", [Series("loss", steps, [float(step) for step in steps])])["series"][0]["points"]
    assert len(points) <= MOST_POINTS and points[-1][2] == 4999
    assert points[0][3] == pytest.approx(6.0)  # of the first 13 steps


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_curve_is_drawn_inside_the_box(value: float) -> None:
    chart = line_chart("skipped", "", [Series("skipped", [1, 2], [value, value])], level=("other", value))
    assert all(0 <= point[1] <= HEIGHT for point in chart["series"][0]["points"])
    assert 0 <= chart["level"]["at"] <= HEIGHT


def test_the_axis_of_per_cent_ends_at_100() -> None:
    chart = line_chart("top-1", "per cent", [Series("head", [1, 2], [12.0, 99.7])], top=100)
    assert [tick["text"] for tick in chart["ticks_y"]][-1] == "100"
    assert min(tick["at"] for tick in chart["ticks_y"]) == 0


def test_small_ticks_are_short() -> None:
    chart = line_chart("learning rate", "", [Series("lr", [1, 2], [0.0, 5e-4])], zero=True)
    assert [tick["text"] for tick in chart["ticks_y"]] == ["0", "1e-4", "2e-4", "3e-4", "4e-4", "5e-4"]
