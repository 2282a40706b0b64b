"""A figure that becomes a PNG file, on machines without a screen as well.

with picture(target, 2, 2, figsize=(11, 7)) as (figure, axes):
    axes[0, 0].plot(steps, losses)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import write_file


@contextmanager
def picture(
    target: Path, rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any
) -> Iterator[tuple[Any, Any]]:
    """(figure, axes) as `plt.subplots` gives them; `target` is written, whole or not at all, when the body ends.

    `figsize` is width and height in inches, of 110 pixels each; `options` are those of `Figure.subplots`.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, and the caller's backend stays

    figure = Figure(figsize=figsize, layout="constrained")
    yield figure, figure.subplots(rows, columns, **options)
    write_file(target, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
