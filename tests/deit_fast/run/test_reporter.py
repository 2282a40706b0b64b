"""The console of a run."""

import io

import pytest
from rich.text import Text

from deit_fast.run.report import Reporter, interval, is_a_guess, numbers_line, worth

ROW = {
    "loss": 3.4119, "top1": 31.25, "images_per_second": 58900.4, "mfu": 0.44, "data_wait": 0.012, "teacher_share": 0.3,
    "memory": 3 << 29,
}  # fmt: skip


@pytest.mark.parametrize("columns", [80, 200])
def test_the_progress_line_shows_bar_step_and_time_left_in_every_width(columns: int, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    reporter = Reporter(True)
    reporter.console.file, reporter.console.width = io.StringIO(), columns
    with reporter.progress("deit", 12_340, 375_300) as advance:
        advance(12_340, ROW)
    lines = Text.from_ansi(reporter.console.file.getvalue()).plain.splitlines()
    line = next(line for line in lines if "loss" in line)
    assert len(line.rstrip()) <= columns
    assert all(part in line for part in ("deit", "━━━━", " 12340/375300", "eta", "loss 3.412"))
    assert numbers_line(ROW) in line or columns == 80


@pytest.mark.parametrize(("right", "n"), [(0, 10), (5, 10), (33, 40), (10, 10), (1, 1), (900, 1480)])
def test_the_interval_of_a_top1_is_scipys(right: int, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert interval({"top1": 100 * right / n, "n": n}) == pytest.approx(
        (100 * expected.low, 100 * expected.high), abs=1e-5
    )


def test_no_images_tell_nothing() -> None:
    assert interval({"top1": 0.0, "n": 0}) == (0.0, 100.0)


def scores(**top1: float) -> dict:
    return {name: {"top1": value, "n": 40} for name, value in top1.items()}


def test_a_small_table_says_what_it_is_worth() -> None:
    student = scores(cls=77.5, dist=30.0, fused=45.0, softmax=45.0)
    lines = worth({"student": student, "ema": None, "teacher": {"top1": 95.0, "n": 40}}, "logits", 25.0)
    assert lines == [
        "40 validation images: 45.0 % stands for 31 to 60 %; the most frequent class has 25.0 %",
        "the class token alone scores 77.5 %, more than the model's answer",
        "the teacher scores more, 95.0 %: use it where its size does no harm",
    ]
    assert worth({"student": scores(cls=30.0), "ema": None}, "logits", 25.0) == [
        "40 validation images: 30.0 % stands for 18 to 45 %; the most frequent class has 25.0 %, so the model is no "
        "better than guessing"
    ]
    many = {"top1": 80.0, "n": 50_000}
    assert worth({"student": {"cls": many}, "ema": None, "teacher": {"top1": 79.0, "n": 50_000}}, "logits", 0.1) == []
    assert not is_a_guess(many, 0.1) and is_a_guess({"top1": 9.0, "n": 1480}, 11.4)
