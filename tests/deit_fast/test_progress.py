"""The bar: on a terminal it counts what the caller is done with; elsewhere nothing is printed."""

import io

import pytest
from rich.console import Console

from deit_fast.progress import progress, track


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_counts_what_is_done_where_somebody_looks(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    assert list(track("abc", "comparing", 3, console=console)) == ["a", "b", "c"]
    said = console.file.getvalue()
    assert ("comparing" in said and "3/3" in said and "images" in said) if terminal else not said.strip()


def test_a_bar_continues_where_the_run_stopped_and_shows_the_cursor_after_an_error() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with pytest.raises(KeyboardInterrupt), progress("demo", 9, done=4, text="first steps", console=console) as update:
        update(completed=7, text="loss 1.2")
        raise KeyboardInterrupt
    said = console.file.getvalue()
    assert "4/9" in said and "7/9" in said and "loss 1.2" in said
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")


def test_what_goes_to_standard_output_stays_there(capsys: pytest.CaptureFixture[str]) -> None:
    for item in track([1, 2], "predicting", 2):
        print(item)
    assert capsys.readouterr().out == "1\n2\n"
