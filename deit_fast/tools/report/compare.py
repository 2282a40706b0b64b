"""Several runs side by side: scores, what their configurations differ in, their curves over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...config import changes, fields_where
from ...names import HEADS, flag
from .facts import Facts


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
    n = int(next(iter(run.scores()[ours[0]].values()))["n"])
    same = run.data.get("labels") == plain.data.get("labels") and run.config.data.data == plain.config.data.data
    differing = changes(plain.config.identity(), run.config.identity())
    others = [flag(name) for name, *_ in differing if name not in fields_where("taught")]
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
    configs = [run.config.flat() for run in runs]
    for name in (name for name in configs[0] if name not in fields_where("once")):
        values = [config[name] for config in configs]
        if any(value != values[0] for value in values):
            flags.append(flag(name))
            rows.append([_text(value) for value in values])
    return flags, rows


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "—" if value in ("", None) else str(value)
