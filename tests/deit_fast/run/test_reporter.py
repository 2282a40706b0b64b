"""The console of a run."""

import io

import pytest
from rich.text import Text

from deit_fast.run.report import Reporter, numbers_line

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
