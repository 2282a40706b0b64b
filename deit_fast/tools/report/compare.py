"""Several runs side by side: scores, what their configurations differ in, their curves over each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...config import Config
from ...names import HEADS, flag, headline
from .charts import Series, line_chart
from .facts import Facts

# Fields in which a run differs from one without a teacher because of the teacher.
_TAUGHT = {
    "recipe", "model", "distill", "distill_on", "teacher", "teacher_model", "teacher_top_k", "teacher_precision",
    "alpha", "tau", "kl_normalizer",
}  # fmt: skip
_OF_A_FOLDER = ("out", "fresh", "dry_run", "report", "profile")


def names(runs: Sequence[Facts]) -> list[str]:
    """The folders' names, or as much of their paths as tells them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        short = ["/".join(one[-count:]) for one in parts]
        if len(set(short)) == len(short):
            return short
    return [str(run.folder) for run in runs]


def scores(runs: Sequence[Facts]) -> list[dict[str, Any]]:
    """{"name", "values": top-1 of each run or None, "best": indices} of every score that one of the runs has."""
    found = [run.scores() for run in runs]
    rows = []
    for kind, word in (("teacher", "teacher"), ("student", "last weights"), ("ema", "moving average")):
        for head in HEADS:
            values = [one.get(kind, {}).get(head, {}).get("top1") for one in found]
            if any(value is not None for value in values):
                best = max(value for value in values if value is not None)
                name = word if kind == "teacher" else f"{word}, {HEADS[head]}"
                rows.append({
                    "name": name, "values": values, "best": [at for at, value in enumerate(values) if value == best],
                })  # fmt: skip
    return rows


def gain(run: Facts, plain: Facts) -> dict[str, Any] | None:
    """What the teacher brought `run` over `plain`, a run without one, in points of top-1 of their own best scores."""
    ours, theirs = run.best(), plain.best()
    if ours is None or theirs is None:
        return None
    n = next(iter(run.scores()[ours[0]].values()))["n"]
    same = run.data.get("labels") == plain.data.get("labels") and run.config.data == plain.config.data
    before, after = plain.config.identity(), run.config.identity()
    others = [flag(name) for name in after if before[name] != after[name] and name not in _TAUGHT]
    return {
        "points": ours[1] - theirs[1], "run": ours[1], "plain": theirs[1], "images": n, "same_images": same,
        "error": 100 * ((_spread(ours[1], n) ** 2 + _spread(theirs[1], n) ** 2) ** 0.5), "others": others,
    }  # fmt: skip


def _spread(top1: float, n: int) -> float:
    """Standard error of a share of n images."""
    share = top1 / 100
    return (share * (1 - share) / max(n, 1)) ** 0.5


def differences(runs: Sequence[Facts]) -> tuple[list[str], list[list[str]]]:
    """(flags in which configurations differ, for each the value of every run)."""
    flags, rows = [], []
    for field in dataclasses.fields(Config):
        values = [getattr(run.config, field.name) for run in runs]
        if field.name not in _OF_A_FOLDER and any(value != values[0] for value in values):
            flags.append(flag(field.name))
            rows.append([_text(value) for value in values])
    return flags, rows


def curves(runs: Sequence[Facts]) -> list[dict[str, Any]]:
    """Loss, validation and speed of all runs in one chart each."""
    short = names(runs)

    def chart(title: str, unit: str, key: str, **options: Any) -> dict[str, Any] | None:
        series = [Series(name, [row["step"] for row in run.steps], [row.get(key) for row in run.steps])
                  for name, run in zip(short, runs, strict=True)]  # fmt: skip
        return line_chart(title, unit, series, **options)

    validation = []
    for name, run in zip(short, runs, strict=True):
        kind = (run.best() or ("student",))[0]
        rows = [row for row in run.evaluations if row.get(kind)]
        heads = [row[kind][headline(row[kind], run.config.fusion)]["top1"] for row in rows]
        validation.append(Series(name, [row["step"] for row in rows], heads))
    charts = [
        chart("Training loss", "nats", "loss"),
        line_chart("Validation top-1, each run's own head", "per cent", validation, top=100, digits=4),
        chart("Learning rate", "", "lr", zero=True),
        chart("Throughput", "images/s", "images_per_second", zero=True),
    ]
    return [one for one in charts if one is not None]


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "—" if value in ("", None) else str(value)
