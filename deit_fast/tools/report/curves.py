"""The curves of a run or of several: as one PNG, and as SVG for the page, which decides its colours.

draw(facts, run / "report.png")
for chart in of_run(facts): chart.inline()       # what the page's template takes
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...names import HEADS, headline
from ...picture import picture
from .facts import Facts

MOST_POINTS = 400  # of a curve; a longer one is thinned by means
LEFT, TOP, WIDTH, HEIGHT, RIGHT, BOTTOM = 68, 12, 520, 220, 16, 38  # of the axes and of what surrounds them, pixels
COLOURS = ("#1f5fa8", "#c4500e", "#2b7d3f", "#8a3fa0", "#a0660a", "#0f7f86", "#b3264f", "#596070")
_IN_THE_PAGE = {colour: f"var(--c{number})" for number, colour in enumerate(COLOURS)} | {
    "#dcdfe4": "var(--line)", "#5c6370": "var(--quiet)", "#1c1e21": "var(--ink)"
}  # fmt: skip
LINE, QUIET, INK = list(_IN_THE_PAGE)[len(COLOURS) :]


class Series:
    """One curve of at most MOST_POINTS points; a value that is None, NaN or infinite leaves a gap."""

    def __init__(self, name: str, rows: Sequence[dict[str, Any]], values: Sequence[float | None], dashed: bool = False):
        steps, found = np.array([row["step"] for row in rows]), np.array(values, np.float64)
        found[~np.isfinite(found)] = np.nan
        size = -(-len(steps) // MOST_POINTS)  # of a thinned curve each point is the mean of so many, at the last
        if size > 1:
            parts = np.split(found, range(size, len(found), size))
            found = np.array([np.nanmean(part) if np.isfinite(part).any() else np.nan for part in parts])
            steps = steps[[*range(size - 1, len(steps) - 1, size), -1]]
        self.name, self.dashed, self.steps, self.values = name, dashed, steps, found
        self.known = np.isfinite(found)


@dataclass
class Chart:
    """Curves over the steps.

    Attributes:
        zero: the axis begins at 0.
        top: the greatest value that the axis may show, such as 100 for per cent.
        digits: significant digits of a value in the page.
        level: name and value of a horizontal line.
    """

    title: str
    unit: str
    series: list[Series] = field(default_factory=list)
    zero: bool = False
    top: float | None = None
    digits: int = 3
    level: tuple[str, float] | None = None

    def plot(self, axes: Any) -> None:
        for number, one in enumerate(self.series):
            between = np.concatenate([[False], one.known, [False]])
            axes.plot(
                one.steps, one.values, label=one.name, color=COLOURS[number % len(COLOURS)], linewidth=1.8,
                linestyle="--" if one.dashed else "-", solid_capstyle="round", clip_on=False, marker=".",
                markevery=list(one.known & ~between[:-2] & ~between[2:]),  # a point without a neighbour
            )  # fmt: skip
        if self.level:
            axes.axhline(self.level[1], label=self.level[0], color=INK, linewidth=2, linestyle=":", clip_on=False)
        if self.zero:
            axes.set_ylim(bottom=0)
        if self.top is not None:
            axes.set_ylim(top=min(self.top, axes.get_ylim()[1]))
        axes.grid(axis="y", color=LINE, clip_on=False)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.spines["bottom"].set_color(QUIET)
        axes.tick_params(length=0)
        axes.locator_params(nbins=6)
        axes.xaxis.set_major_formatter("{x:,.9g}")
        axes.yaxis.set_major_formatter("{x:,.9g}")

    def inline(self) -> dict[str, Any]:
        """{"title", "unit", "size", "drawing": the inside of an svg element, "series": [{"name", "dashed", "points":
        [[step, value]]}], "across": [a, b] for the place a + b · step, "level": {"name", "value"} or None}."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        width, height, file = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM, io.StringIO()
        with rc_context({"svg.fonttype": "none", "font.size": 13}):
            figure = Figure(figsize=(width / 72, height / 72), dpi=72)  # SVG has 72 pixels an inch
            axes = figure.add_axes((LEFT / width, BOTTOM / height, WIDTH / width, HEIGHT / height))
            self.plot(axes)
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        drawing = file.getvalue().partition("<svg")[2].partition(">")[2].rpartition("</svg>")[0]
        styles = r"<defs>\s*<style.*?</defs>|(?<=<g) id=\"[^\"]*\"|font[-a-z]*: [^;]*; "  # those are the page's
        drawing = re.sub(styles, "", drawing, flags=re.DOTALL)
        drawing = re.sub('#[0-9a-f]{6}(?=[;"])', lambda found: _IN_THE_PAGE[found[0]], drawing)
        begin, end = (float(axes.transData.transform((step, 0))[0]) for step in (0, 1))
        return {
            "title": self.title, "unit": self.unit, "size": [width, height], "drawing": drawing,
            "across": [round(begin, 3), end - begin],
            "level": {"name": self.level[0], "value": self._rounded(self.level[1])} if self.level else None,
            "series": [{"name": one.name, "dashed": one.dashed, "points": self._points(one)} for one in self.series],
        }  # fmt: skip

    def _points(self, one: Series) -> list[list[float]]:
        return [[step, self._rounded(value)] for step, value, known
                in zip(one.steps.tolist(), one.values.tolist(), one.known, strict=True) if known]  # fmt: skip

    def _rounded(self, value: float) -> float:
        return float(f"{value:.{self.digits}g}")


def of_run(facts: Facts) -> list[Chart]:
    """The charts of one run."""
    steps = facts.steps

    def of(key: str, name: str) -> Series:
        return Series(name, steps, [row.get(key) for row in steps])

    loss = [of("loss", "loss")]
    if any(row.get("distillation") is not None for row in steps):
        loss += [of("label", "true label"), of("distillation", "teacher")]
    heads = []
    for kind, dashed in (("student", False), ("ema", True)):
        rows = [row for row in facts.evaluations if row.get(kind)]
        for head in HEADS:
            if head != "softmax" and rows and head in rows[0][kind]:
                name = HEADS[head] + (", moving average" if dashed else "")
                heads.append(Series(name, rows, [row[kind][head]["top1"] for row in rows], dashed))
    teacher = facts.scores().get("teacher")
    level = ("teacher", teacher["cls"]["top1"]) if teacher else None
    skipped = [of("skipped", "skipped")] if any(row.get("skipped") for row in steps) else []
    return _drawable(
        Chart("Training loss", "nats", loss),
        Chart("Validation top-1", "per cent", heads, top=100, digits=4, level=level),
        Chart("Learning rate", "", [of("lr", "learning rate")], zero=True),
        Chart("Throughput", "images/s", [of("images_per_second", "images/s")], zero=True),
        Chart("Gradient norm", "", [of("grad_norm", "norm before the update")]),
        Chart("Skipped steps", "steps", skipped, zero=True),
    )


def of_runs(runs: Sequence[Facts], names: Sequence[str]) -> list[Chart]:
    """Loss, validation and speed of several runs, one chart for all of them each."""

    def of(key: str) -> list[Series]:
        return [Series(name, run.steps, [row.get(key) for row in run.steps])
                for name, run in zip(names, runs, strict=True)]  # fmt: skip

    validation = []
    for name, run in zip(names, runs, strict=True):
        kind = (run.best() or ("student",))[0]
        rows = [row for row in run.evaluations if row.get(kind)]
        top1 = [row[kind][headline(row[kind], run.config.model.fusion)]["top1"] for row in rows]
        validation.append(Series(name, rows, top1))
    return _drawable(
        Chart("Training loss", "nats", of("loss")),
        Chart("Validation top-1, each run's own head", "per cent", validation, top=100, digits=4),
        Chart("Learning rate", "", of("lr"), zero=True),
        Chart("Throughput", "images/s", of("images_per_second"), zero=True),
    )


def _drawable(*charts: Chart) -> list[Chart]:
    """Those that have a point, each without the curves that have none."""
    for chart in charts:
        chart.series = [one for one in chart.series if one.known.any()]
    return [chart for chart in charts if chart.series]


def draw(facts: Facts, target: Path) -> None:
    """All charts of a run as a PNG."""
    charts = of_run(facts)
    rows = max(1, -(-len(charts) // 2))
    with picture(target, rows, 2, figsize=(11, 3.5 * rows), squeeze=False) as (figure, axes):
        figure.suptitle(facts.name)
        for chart, panel in zip(charts, axes.flat, strict=False):
            chart.plot(panel)
            panel.set(title=chart.title, xlabel="step", ylabel=chart.unit)
            if len(chart.series) > 1 or chart.level:
                panel.legend(fontsize=8)
        for panel in axes.flat[len(charts) :]:
            panel.axis("off")
