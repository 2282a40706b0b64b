"""Curves as the template draws them: points scaled into a box, ticks at round numbers, values for the pointer.

chart = line_chart("Loss", "nats", [Series("label", steps, values)])
chart["series"][0]["path"]          # "M0,150L12.5,80…", what an SVG path takes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 520, 220  # of the box that is drawn in; the template adds margins
MOST_POINTS = 400  # of a curve; a longer one is thinned by means


@dataclass(frozen=True)
class Series:
    """One curve; a value that is None leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    dashed: bool = False


def line_chart(
    title: str, unit: str, series: Sequence[Series], *, zero: bool = False, top: float | None = None, digits: int = 3,
    level: tuple[str, float] | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """A chart's numbers; None where no curve has a point.

    Args:
        zero: the axis begins at 0.
        top: the greatest value that the axis may show, such as 100 for per cent.
        digits: significant digits of values under the pointer.
        level: name and value of a horizontal line.
    """
    thin = [_thinned(one) for one in series]
    thin = [one for one in thin if any(_known(value) for value in one.y)]
    values = [value for one in thin for value in one.y if _known(value)] + ([level[1]] if level else [])
    places = [place for one in thin for place in one.x]
    if not thin:
        return None
    low, high = (0.0 if zero else min(values)), max(values)
    if high <= low:
        low, high = low - (abs(low) * 0.1 or 1.0) * (not zero), high + (abs(high) * 0.1 or 1.0)
    ticks_y = _ticks(low, high)
    low, high = min(low, ticks_y[0]), max(high, ticks_y[-1])
    if top is not None:
        high = min(high, top)
    left, right = min(places), max(places)
    right = right if right > left else left + 1

    def across(place: float) -> float:
        return round(WIDTH * (place - left) / (right - left), 1)

    def up(value: float) -> float:
        return round(HEIGHT * (1 - (value - low) / (high - low)), 1)

    return {
        "title": title,
        "unit": unit,
        "digits": digits,
        "width": WIDTH,
        "height": HEIGHT,
        "ticks_x": [{"at": across(tick), "text": _text(tick)} for tick in _ticks(left, right) if left <= tick <= right],
        "ticks_y": [{"at": up(tick), "text": _text(tick)} for tick in ticks_y if low <= tick <= high],
        "level": {"name": level[0], "at": up(level[1]), "value": _rounded(level[1], digits)} if level else None,
        "series": [
            {
                "name": one.name,
                "dashed": one.dashed,
                "path": _path(one, across, up),
                "points": [[across(place), up(value), place, _rounded(value, digits)]
                           for place, value in zip(one.x, one.y, strict=True) if _known(value)],
            }
            for one in thin
        ],
    }  # fmt: skip


def _path(series: Series, across: Any, up: Any) -> str:
    """SVG's path data; a lone point becomes a dot, which a round cap makes visible."""
    parts: list[str] = []
    begun = False
    for place, value in zip(series.x, series.y, strict=True):
        if not _known(value):
            begun = False
            continue
        parts.append(f"{'L' if begun else 'M'}{across(place):g},{up(value):g}" + ("" if begun else "h0"))
        begun = True
    return "".join(parts)


def _thinned(series: Series) -> Series:
    """At most MOST_POINTS points, each the mean of its neighbours; the last stays as it is."""
    count = len(series.x)
    if count <= MOST_POINTS:
        return series
    size = math.ceil(count / MOST_POINTS)
    x, y = [], []
    for start in range(0, count, size):
        known = [value for value in series.y[start : start + size] if _known(value)]
        x.append(series.x[min(start + size, count) - 1])
        y.append(sum(known) / len(known) if known else None)
    return Series(series.name, x, y, series.dashed)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _rounded(value: float, digits: int) -> float:
    """Significant digits."""
    return float(f"{value:.{digits}g}")


def _ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [float(f"{tick:.6g}") for tick in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _text(value: float) -> str:
    if value == round(value) and abs(value) >= 1:
        return f"{value:,.0f}"
    return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e") if 0 < abs(value) < 0.001 else f"{value:g}"
