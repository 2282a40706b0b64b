"""A picture is a whole PNG or absent, and its maker's own matplotlib stays as it was."""

from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from deit_fast.picture import picture


def test_the_figure_is_there_when_the_body_ends(tmp_path: Path) -> None:
    backend = matplotlib.get_backend()
    with picture(tmp_path / "a", 1, 2, figsize=(4, 2)) as (figure, axes):
        figure.suptitle("two panels")
        axes[1].plot([1, 2])
        assert not list(tmp_path.iterdir())
    with Image.open(tmp_path / "a") as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (440, 220))
    assert matplotlib.get_backend() == backend


def test_an_error_leaves_the_old_picture_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"the old one")
    with pytest.raises(ZeroDivisionError), picture(tmp_path / "a.png", figsize=(2, 2)) as (_, axes):
        axes.plot([1 / 0])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the old one"]
