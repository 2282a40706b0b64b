"""A run on the console: decisions with their reasons, a progress bar, a table at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from ..config import DataConfig
from ..files import shown
from ..names import HEADS, headline
from ..progress import progress

_NAMED = 10  # images
_MANY = 5_000  # validation images, from which a top-1 needs no interval
_SECONDS = 10.0  # between two lines of a console that is no terminal

logger = logging.getLogger(__name__)


class Reporter:
    """Prints on rank 0; every rank logs all of it (see `ranks/log.py`)."""

    def __init__(self, enabled: bool) -> None:
        self.console = Console(quiet=not enabled, soft_wrap=True, highlight=False)
        self._printed = time.monotonic()

    def decide(self, what: str, value: object, reason: str = "") -> None:
        """One automatic decision and why it was taken."""
        self.say(f"  {what:<10} {value}" + (f"  ({reason})" if reason else ""))

    def say(self, text: str) -> None:
        text = shown(text)  # paths that are not UTF-8
        logger.info(text)
        self.console.print(text, markup=False)

    def step(self, row: dict[str, Any], total: int) -> None:
        """A line of metrics.jsonl in words: in the log, and every 10 s on a console without a progress bar."""
        text = step_line(row, total)
        logger.info(text)
        if not self.console.is_terminal and time.monotonic() - self._printed > _SECONDS:
            self._printed = time.monotonic()
            self.console.print(text, markup=False)

    @contextmanager
    def progress(self, description: str, step: int, total: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
        """A bar while the body runs; it gets a function of (steps done, newest line of metrics.jsonl or {})."""
        with progress(description, total, done=step, text="first steps", console=self.console) as update:
            yield lambda step, row: update(completed=step, **({"text": numbers_line(row)} if row else {}))


def step_line(row: dict[str, Any], total: int) -> str:
    """One line for the steps up to row["step"] of `total`."""
    eta = timedelta(seconds=round(row["eta"]))
    return f"step {row['step']}/{total} {row['step'] / total:.1%} · {numbers_line(row)} · eta {eta}"


def numbers_line(row: dict[str, Any]) -> str:
    """A line of metrics.jsonl in words, without the shares that are unknown here."""
    parts = [f"loss {row['loss']:.3f}", f"top-1 {row['top1']:.1f} %"] if row["loss"] is not None else ["no loss"]
    parts.append(f"{row['images_per_second']:,.0f} images/s")
    data = f"data {row['data_wait']:.0%}"
    if "slowest_rank" in row:
        data += f", {row['slowest_wait']:.0%} at rank {row['slowest_rank']}"
    optional = [("mfu {:.0%}", "mfu"), (data, "data_wait"), ("teacher {:.0%}", "teacher_share")]
    parts += [text.format(row[key]) for text, key in optional if row.get(key) is not None]
    parts += [f"skipped {row['skipped']}"] if row.get("skipped") else []
    return " · ".join([*parts, f"{row['memory'] / 2**30:.1f} GiB"])


def epoch_line(epoch: int, epochs: int, row: dict[str, Any], student: dict, ema: dict | None, head: str) -> str:
    """One line for an evaluated epoch, with the top-1 of one head."""
    loss = "none" if row["loss"] is None else f"{row['loss']:.3f}"
    average = f" · ema {ema[head]['top1']:5.1f} %" if ema else ""
    return (
        f"epoch {epoch:>3}/{epochs} · loss {loss} · {head} {student[head]['top1']:5.1f} %{average} · "
        f"lr {row['lr']:.2e} · {row['images_per_second']:,.0f} images/s · data {row['data_wait']:.0%}"
    )


def skipped_lines(paths: Sequence[str]) -> str:
    """How many unreadable images were skipped, and the first ten."""
    number = "1 unreadable image was" if len(paths) == 1 else f"{len(paths)} unreadable images were"
    lines = [f"{number} skipped; summary.json lists all of them", *(f"  {path}" for path in paths[:_NAMED])]
    return "\n".join(lines + [f"  and {len(paths) - _NAMED} more"] * (len(paths) > _NAMED))


def table_of(title: str, *columns: str) -> Table:
    """An empty table of names in the first column and numbers in the others."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def summary_table(summary: dict[str, Any], data: DataConfig) -> Table:
    """Top-1 of the teacher and of every head of the student and its moving average, on the same crops."""
    student, ema, teacher = summary["student"], summary.get("ema"), summary.get("teacher")
    n = next(iter(student.values()))["n"]
    title = f"top-1 on {n} validation images at {data.image_size} pixels, crop ratio {data.crop_ratio:g}, per cent"
    table = table_of(title, "", "last weights", "moving average")
    if teacher:
        table.add_row("teacher", f"{teacher['top1']:.1f}", "")
    for key, label in HEADS.items():
        if key in student:
            name = f"student, {label}" if teacher else label
            table.add_row(name, f"{student[key]['top1']:.1f}", f"{ema[key]['top1']:.1f}" if ema else "")
    return table


def interval(score: dict[str, Any]) -> tuple[float, float]:
    """Wilson's 95 % interval of a top-1, per cent."""
    n, share, z = score["n"], score["top1"] / 100, 1.959964
    if not n:
        return 0.0, 100.0
    middle, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return 100 * (middle - half) / (1 + z**2 / n), 100 * (middle + half) / (1 + z**2 / n)


def is_a_guess(score: dict[str, Any], majority: float) -> bool:
    """Whether a top-1 may be that of the most frequent class, which has `majority` per cent of the images."""
    return interval(score)[0] <= majority


def guessing_teacher(score: dict[str, Any], majority: float) -> str:
    """The warning of a teacher that `is_a_guess`."""
    return (
        f"warning: the teacher is right on {score['top1']:.1f} % of {score['n']:,} validation images, and the most "
        f"frequent class has {majority:.1f} %: it teaches no more than a guess. Type another --teacher, or train "
        "this one on this data, at this --image-size"
    )


def worth(summary: dict[str, Any], fusion: str, majority: float | None) -> list[str]:
    """What the table of a few validation images is worth; `majority` is None where it is not known."""
    student, teacher = summary["student"], summary.get("teacher")
    head = headline(student, fusion)
    score, (low, high) = student[head], interval(student[head])
    lines = []
    if 0 < score["n"] < _MANY:
        lines.append(f"{score['n']:,} validation images: {score['top1']:.1f} % stands for {low:.0f} to {high:.0f} %")
        if majority is not None:
            guess = ", so the model is no better than guessing" if is_a_guess(score, majority) else ""
            lines[0] += f"; the most frequent class has {majority:.1f} %{guess}"
    best = max(student, key=lambda one: student[one]["top1"])
    if student[best]["top1"] > high:
        lines.append(f"the {HEADS[best]} alone scores {student[best]['top1']:.1f} %, more than the model's answer")
    answers = [*student.values(), *(summary.get("ema") or {}).values()]
    if teacher and teacher["top1"] > max(one["top1"] for one in answers):
        lines.append(f"the teacher scores more, {teacher['top1']:.1f} %: use it where its size does no harm")
    return lines
