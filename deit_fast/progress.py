"""A progress bar, where the console is a terminal; elsewhere nothing is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["text"], no_wrap=True, overflow="ellipsis")


@contextmanager
def progress(
    what: str, total: int, *, done: int = 0, text: str = "images", console: Console | None = None
) -> Iterator[Callable[..., None]]:
    """A bar while the body runs, which gets rich's `Progress.update` of it: update(advance=1), update(completed=5).

    It is drawn on standard error, so that what goes to standard output may go into a file, or on `console`.
    """
    on = console or Console(stderr=True)
    whole = Column(no_wrap=True)  # on a narrow terminal the text gives way, and is cut off
    bar = Progress(
        TextColumn("{task.description}", table_column=whole), BarColumn(16, table_column=whole),
        MofNCompleteColumn(table_column=whole), TextColumn("eta", table_column=whole),
        TimeRemainingColumn(table_column=whole), _Numbers(),
        console=on, disable=not on.is_terminal, transient=True, redirect_stdout=on is console,
    )  # fmt: skip
    with bar:  # shows the cursor again, also when the body raises
        yield partial(bar.update, bar.add_task(what, total=total, completed=done, text=text))


def track(items: Iterable[Any], what: str, total: int, **options: Any) -> Iterator[Any]:
    """The items behind a bar, which moves when the caller is done with one."""
    with progress(what, total, **options) as update:
        for item in items:
            yield item
            update(advance=1)
