"""Reading single files: whatever lies under an image's name, reading it ends."""

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from deit_fast.data import open_dataset
from deit_fast.data.decode import BadImage
from deit_fast.data.sources import folder
from deit_fast.data.sources.dataset import read_image
from deit_fast.data.sources.folder import read_file


def test_a_pipe_under_an_images_name_is_refused_and_not_waited_for(image_folder):
    os.mkfifo(image_folder / "train/ant/pipe.jpg")
    train, _ = open_dataset(str(image_folder))
    with pytest.raises(OSError, match="it is not a regular file"):
        train.read(4)


def test_a_file_larger_than_the_limit_is_refused(image_folder, monkeypatch):
    path = str(image_folder / "train/ant/0.jpg")
    size = os.path.getsize(path)
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", size)
    assert len(read_file(path)) == size
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(OSError, match="more than the limit"):
        read_file(path)


def test_links_to_files_are_followed_and_dead_links_are_read_errors(image_folder):
    (image_folder / "train/ant/good.jpg").symlink_to(image_folder / "train/bee/0.jpg")
    (image_folder / "train/ant/dead.jpg").symlink_to(image_folder / "nowhere.jpg")
    train, _ = open_dataset(str(image_folder))
    assert [os.path.basename(train.path(index)) for index in (4, 5)] == ["dead.jpg", "good.jpg"]
    assert train.read(5) == train.read(6)
    with pytest.raises(FileNotFoundError):
        train.read(4)


def test_an_image_that_links_to_itself_is_one_bad_image(image_folder):
    loop = image_folder / "train/ant/loop.jpg"
    loop.symlink_to("loop.jpg")
    train, _ = open_dataset(str(image_folder))
    assert train.path(4) == str(loop)
    bad = read_image(train, 4).part
    assert isinstance(bad, BadImage)
    assert str(bad).startswith("it cannot be read (Too many")
    assert train.read(5)


@pytest.mark.parametrize(("name", "refused"), [("far.jpg", False), ("cow", True), ("train-0.tar", True)])
def test_what_links_into_a_forbidden_folder_is_a_bad_image_or_refused_by_its_own_name(name, refused, monkeypatch):
    """A class that cannot be seen is not left out."""

    def is_dir():
        raise PermissionError(13, "Permission denied")

    entry = SimpleNamespace(name=name, path=f"/set/train/{name}", is_dir=is_dir)
    monkeypatch.setattr(os, "scandir", lambda path: nullcontext([entry]))
    if not refused:
        assert folder.listing(Path("/set/train")) == ([], [name])
        return
    with pytest.raises(ValueError, match=rf"cannot follow the link /set/train/{name} \(Permission denied\): mend or"):
        folder.listing(Path("/set/train"))
