"""The console of a run."""

import pytest
from rich.text import Text

from deit_fast.run.report import Reporter, numbers_line

ROW = {
    "loss": 3.4119, "top1": 31.25, "images_per_second": 58900.4, "mfu": 0.44, "data_wait": 0.012, "teacher_share": 0.3,
    "memory": 3 << 29,
}  # fmt: skip


@pytest.mark.parametrize("columns", [80, 200])
def test_the_progress_line_shows_bar_step_and_time_left_in_every_width(columns: int, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    reporter = Reporter(True)
    reporter._bar.add_task("deit", total=375_300, completed=12_340, text=numbers_line(ROW))
    with reporter.console.capture() as captured:
        reporter.console.print(reporter._bar.get_renderable())
    (line,) = Text.from_ansi(captured.get()).plain.splitlines()
    assert len(line) <= columns
    assert all(part in line for part in ("deit", "━━━━", " 12340/375300", "eta", "loss 3.412"))
    assert numbers_line(ROW) in line or columns == 80
