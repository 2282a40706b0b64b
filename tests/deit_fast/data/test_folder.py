"""Reading single files: whatever lies under an image's name, reading it ends."""

import os

import pytest

from deit_fast.data import folder, open_dataset
from deit_fast.data.folder import read_file


def test_a_pipe_under_an_images_name_is_refused_and_not_waited_for(image_folder):
    os.mkfifo(image_folder / "train/ant/pipe.jpg")
    train, _ = open_dataset(str(image_folder))
    with pytest.raises(OSError, match="it is no regular file"):
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
