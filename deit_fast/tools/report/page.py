"""From a run folder to report.html: one file that needs no other.

    write(Facts.read(run), run / "report.html")
    compare([Facts.read(run) for run in runs], Path("comparison.html"))

The page is made by Jinja2 from page.html.j2, with style.css and page.js inside it. Its content policy forbids every
request, so a name or a path that is shown cannot load anything either.
"""

from __future__ import annotations

import importlib.resources
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import torch

from ...data.loader import default_threads
from ...files import shown, write_file
from ...names import HEADS, headline
from ...run.provenance import PACKAGES, versions
from . import compare as comparison
from .clock import FREE, spent
from .curves import Chart, draw, of_run, of_runs
from .facts import Facts
from .gather import PARTS, WHOLE_MATRIX, Gone, content, look_at

MOST_IMAGES = 50_000  # of each split that are looked at, unless more are asked for
MOST_SECONDS = 300.0  # at the end of a training
KINDS = {"teacher": "teacher", "student": "last weights", "ema": "moving average"}


def write_missing(runs: Iterable[Path], html: bool = True) -> None:
    """report.png and report.html of finished runs that have none; where that fails, a sentence says why."""
    writers: dict[str, tuple[Callable[[Facts, Path], object], str]] = {"report.png": (draw, "the same command")}
    if html:
        writers["report.html"] = (partial(write, seconds=MOST_SECONDS), "deit-fast report {}")
    for run in runs:
        for name, (writer, again) in writers.items():
            if (run / name).exists():
                continue
            try:
                writer(Facts.read(run), run / name)
                print(shown(f"report: {run / name}"), flush=True)
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                why = f"{name} is not written ({type(error).__name__}: {reason}): {again.format(run)} tries again"
                print(shown(why), flush=True)


def write(
    facts: Facts,
    target: Path,
    device: torch.device | None = None,
    threads: int = 0,
    most: int = MOST_IMAGES,
    baseline: Facts | None = None,
    seconds: float = float("inf"),
    say: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Write the page of one run and return what it says, JSON values.

    Args:
        device: of the run's models; None: a GPU where there is one.
        threads: that decode images; 0: one a core.
        most: images of each split that are looked at; 0: all.
        baseline: a run without a teacher, to say what the teacher brought.
        say: gets a sentence before what takes long.
        seconds: after which no further image is looked at.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = threads or default_threads(1)
    until = time.monotonic() + seconds / 2  # the rest is for duplicates and thumbnails
    images, gone = None, ""
    try:
        images = content(look_at(facts, device, threads, most, lambda: time.monotonic() > until, say), threads)
    except Gone as error:
        gone = shown(str(error))
    return render_run(target, facts, images, of_run(facts), gone, baseline)


def render_run(
    target: Path, facts: Facts, images: dict[str, Any] | None, charts: list[Chart], gone: str = "",
    baseline: Facts | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the page of a run, and return what it says; `gone` is why there are no images."""
    classes = facts.data["classes"]
    page = {"run": about(facts), "gone": gone, "images": images, "time": spent(facts),
            "gain": comparison.gain(facts, baseline) if baseline else None,
            "baseline": baseline.name if baseline else ""}  # fmt: skip
    _render(target, facts.name, classes, charts, comparison=None, **page)
    lists = {}
    if images is not None:
        parts = {key: images[key] for key in ("mistakes", "rights", "per_class")}
        parts |= {"confusions": images["confusions"]["pairs"]}
        parts |= {key: images[key]["items"] for key in ("labels", "duplicates")}
        lists = _named(parts, classes)
    notes = [gone] if images is None else images["notes"]
    return {**page["run"], "gain": page["gain"], "notes": notes, "time": page["time"], **lists}


def compare(runs: Sequence[Facts], target: Path) -> dict[str, Any]:
    """Write a page with several runs side by side, and return what it says, JSON values."""
    flags, values = comparison.differences(runs)
    plain = [run for run in runs if run.config.distill.distill == "none"]
    gains = []
    if len(plain) == 1:
        itself = plain[0].folder.resolve()  # which may be the teacher of another: that is no gain
        taught = [run for run in runs if run is not plain[0] and Path(run.config.distill.teacher).resolve() != itself]
        found = [(run, comparison.gain(run, plain[0])) for run in taught]
        gains = [gain | {"run": run.name, "run_top1": gain["run"], "baseline": plain[0].name}
                 for run, gain in found if gain is not None]  # fmt: skip
    names = comparison.names(runs)
    side_by_side = {
        "names": names, "scores": comparison.scores(runs), "gains": gains,
        "differences": [{"flag": flag, "values": row} for flag, row in zip(flags, values, strict=True)],
        "runs": [about(run) for run in runs],
        "times": [{"name": name, "time": spent(run)} for name, run in zip(names, runs, strict=True)],
    }  # fmt: skip
    _render(target, " · ".join(names), runs[0].data["classes"], of_runs(runs, names), comparison=side_by_side,
            **dict.fromkeys(("run", "images", "gain", "time")), gone="")  # fmt: skip
    return side_by_side


def about(facts: Facts) -> dict[str, Any]:
    """The head of the page: what was trained on what, how well, where, and the command that repeats it."""
    config, state = facts.config, facts.state
    taught = {"none": "without a teacher", "hard": "taught by {}'s labels", "soft": "taught by {}'s probabilities"}
    rows = []
    for kind, heads in facts.scores().items():
        for head in HEADS:
            if head in heads:
                named = HEADS[head] if kind != "teacher" else ""
                rows.append({"model": KINDS[kind], "head": named, **heads[head]})
    best = facts.best()
    own = headline(facts.scores()[best[0]], config.model.fusion) if best else ""
    made = {name: version for name, version in state.get("versions", {}).items() if version}
    return {
        "name": facts.name, "folder": str(facts.folder), "finished": facts.summary is not None,
        "model": config.model.model, "data": config.data.data, "train": facts.data["train"], "val": facts.data["val"],
        "classes": len(facts.data["classes"]), "teacher": taught[config.distill.distill].format(config.distill.teacher),
        "distilled": config.distill.distill != "none",
        "scores": rows,
        "best": {"model": KINDS[best[0]], "top1": best[1], "head": HEADS[own]} if best else None,
        "command": facts.command(), "versions": made, "machine": facts.last("machine"),
        "seconds": state.get("seconds"), "step": facts.last("step"), "processes": state.get("world_size"),
        "epochs": config.optim.epochs, "batch_size": config.optim.batch_size, "image_size": config.data.image_size,
        "recipe": config.recipe, "skipped": sum(row.get("skipped", 0) for row in facts.steps),
        "unreadable": [shown(path) for path in (facts.summary or {}).get("bad_images", [])],
    }  # fmt: skip


def _named(value: Any, classes: Sequence[str]) -> Any:
    """The lists of a page as JSON values: classes by name, no pictures."""
    if isinstance(value, list):
        return [_named(part, classes) for part in value]
    if not isinstance(value, dict):
        return value
    labels = ("class", "label", "proposed", "true", "taken")
    return {key: classes[part] if key in labels else _named(part, classes)
            for key, part in value.items() if key not in ("image", "file")}  # fmt: skip


def _render(target: Path, title: str, classes: Sequence[str], charts: Sequence[Chart], **page: Any) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deit_fast.tools.report", "templates"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["duration"] = lambda seconds: str(timedelta(seconds=round(seconds)))
    inline = [chart.inline() for chart in charts]
    files = importlib.resources.files("deit_fast.tools.report") / "templates"
    html = environment.get_template("page.html.j2").render(
        title=title, classes=classes, made={"python": platform.python_version(), **versions((*PACKAGES, "jinja2"))},
        now=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), style=(files / "style.css").read_text(),
        script=(files / "page.js").read_text(), free=FREE, splits=PARTS, whole=WHOLE_MATRIX, charts=inline,
        curves=[{key: chart[key] for key in ("series", "across")} for chart in inline], **page,
    )  # fmt: skip
    write_file(target, lambda temporary: temporary.write_text(html, encoding="utf-8", errors="backslashreplace"))
