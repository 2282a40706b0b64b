"""Names in one buffer, and lists of files that are kept until the files change."""

import os
import time
from typing import NamedTuple

import numpy as np
import pytest

from deit_fast.data import open_dataset
from deit_fast.data.sources import folder
from deit_fast.data.sources.index import Names, from_arrays, index_path, load_arrays, save_arrays, to_arrays


def test_names_are_a_sequence_of_any_strings():
    strings = ["", "a", "Zürich/ß.jpg", os.fsdecode(b"not utf-8 \xff"), "b"]
    names = Names.of(strings)
    assert list(names) == strings
    assert len(names) == 5
    with pytest.raises(IndexError):
        names[5]


class Files(NamedTuple):
    files: Names
    labels: np.ndarray


def test_arrays_are_read_back_and_a_damaged_file_counts_as_none(tmp_path):
    path = tmp_path / "new" / "index.npz"
    assert load_arrays(path) is None
    save_arrays(path, to_arrays(Files(Names.of(["x", "yy"]), np.arange(3))))
    read = from_arrays(Files, load_arrays(path))
    assert list(read.files) == ["x", "yy"]
    assert read.labels.tolist() == [0, 1, 2]
    assert [file.name for file in path.parent.iterdir()] == ["index.npz"]
    path.write_bytes(path.read_bytes()[:-30])
    assert load_arrays(path) is None


@pytest.fixture
def kept(image_folder, monkeypatch):
    """An image folder whose list is kept although it is short; its folders were modified a minute ago."""
    monkeypatch.setattr(folder, "CACHED_FROM", 1)
    age(image_folder)
    return image_folder


def age(root):
    for each in (root, *root.rglob("*")):
        if each.is_dir():
            os.utime(each, (time.time() - 60,) * 2)


def scanned(monkeypatch, root) -> int:
    """How many folders `open_dataset` lists below the splits."""
    listed = []
    listing = folder._listing
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_listing", lambda path: listed.append(path) or listing(path))
        open_dataset(str(root))
    return sum(root in path.parent.parents for path in listed)


def test_a_list_is_read_back_instead_of_scanned_again(kept, monkeypatch):
    (kept / "train" / "ant" / "notes.txt").touch()
    age(kept)
    first = open_dataset(str(kept))
    assert scanned(monkeypatch, kept) == 0
    for fresh, again in zip(first, open_dataset(str(kept)), strict=True):
        assert [fresh.path(index) for index in range(len(fresh))] == [again.path(index) for index in range(len(again))]
        assert np.array_equal(fresh.labels, again.labels)
        assert fresh.classes == again.classes
        assert list(fresh.left_out) == list(again.left_out)
    assert list(again.left_out) == [] and len(list(first[0].left_out)) == 1


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new class", "nested"])
def test_any_change_of_names_is_noticed(kept, change):
    nested = kept / "train/ant/sub"
    nested.mkdir()
    (nested / "9.jpg").write_bytes(b"x")
    age(kept)
    before = [open_dataset(str(kept))[0].path(index) for index in range(9)]
    if change == "add":
        (kept / "train/ant/new.jpg").write_bytes(b"x")
    elif change == "remove":
        (kept / "train/bee/0.jpg").unlink()
    elif change == "rename":
        (kept / "train/bee/0.jpg").rename(kept / "train/bee/7.jpg")
    elif change == "new class":
        (kept / "train/bee").rename(kept / "train/cow")
        (kept / "val/bee").rename(kept / "val/cow")
    else:
        (nested / "9.jpg").rename(nested / "8.jpg")
    train, _ = open_dataset(str(kept))
    assert [train.path(index) for index in range(len(train))] != before
    assert all(os.path.exists(train.path(index)) for index in range(len(train)))


def test_a_folder_modified_just_now_is_not_kept(image_folder, monkeypatch):
    """Its stamp might not change again with the next file."""
    monkeypatch.setattr(folder, "CACHED_FROM", 1)
    open_dataset(str(image_folder))
    assert scanned(monkeypatch, image_folder) > 0


def test_where_the_cache_is_not_writable_a_warning_says_so_and_the_run_goes_on(kept, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEIT_FAST_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="made again by every run: set DEIT_FAST_CACHE"):
        assert len(open_dataset(str(kept))[0]) == 8


def test_other_things_have_other_indices():
    assert index_path("folder", 1, "/a") == index_path("folder", 1, "/a")
    assert len({index_path("folder", 1, "/a"), index_path("folder", 2, "/a"), index_path("folder", 1, "/b")}) == 3
