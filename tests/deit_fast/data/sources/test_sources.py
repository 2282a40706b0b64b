"""Image folders: torchvision's order, and one sentence for everything that is not one."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from deit_fast.data import decode, open_dataset
from deit_fast.data.decode import FORMATS
from deit_fast.data.sources.folder import SUFFIXES, by_suffix


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_a_folder_opens_as_train_and_val(image_folder):
    train, val = open_dataset(str(image_folder))
    assert train.name == val.name == str(image_folder)
    assert train.classes == val.classes == ["ant", "bee"]
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert val.labels.tolist() == [0] * 2 + [1] * 2
    assert len(train) == 8
    assert train.path(5) == str(image_folder / "train/bee/1.jpg")
    assert train.read(5) == (image_folder / "train/bee/1.jpg").read_bytes()
    assert decode(train.read(5)).ndim == 3


def test_images_stand_in_the_order_of_torchvision(image_folder):
    """Nested folders, names that sort differently as paths, upper case, other suffixes, a link to a folder."""
    folder = pytest.importorskip("torchvision.datasets").ImageFolder
    train = image_folder / "train"
    for name in ("Zoo/10.PNG", "Zoo/9.png", "ant/sub/1.JPEG", "ant/sub-a/2.tif", "ant/sub/a/3.webp", "bee/notes.txt"):
        touch(train / name)
    (train / "cow").symlink_to(image_folder / "val" / "ant", target_is_directory=True)
    ours, _ = open_dataset(str(image_folder))
    theirs = folder(train)
    assert ours.classes == theirs.classes == ["Zoo", "ant", "bee", "cow"]
    assert [(ours.path(index), ours.labels[index]) for index in range(len(ours))] == theirs.samples


def test_every_suffix_of_a_format_that_is_read_is_an_images():
    """As Pillow calls them: JPEG includes MPO; .pfm is left out, since its numbers are no levels."""
    Image.init()
    registered = {suffix for suffix, kind in Image.registered_extensions().items() if kind in {*FORMATS, "MPO"}}
    assert {".gif", ".jfif", ".jp2"} < registered
    known = set(SUFFIXES) if "AVIF" in FORMATS else set(SUFFIXES) - {".avif", ".avifs"}
    assert known == registered - {".pfm"}


def test_files_of_every_format_are_read_under_their_suffixes(image_folder):
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    kinds = {"a.gif": "GIF", "b.jfif": "JPEG", "c.JP2": "JPEG2000", "d.GIF": "GIF", "e.jpe": "JPEG", "f.pnm": "PPM"}
    if "AVIF" in FORMATS:
        kinds["g.avif"] = "AVIF"
    for name, kind in kinds.items():
        pixels.save(image_folder / "train/ant" / name, kind)
    train, _ = open_dataset(str(image_folder))
    names = [os.path.basename(train.path(index)) for index in range(len(train))]
    assert names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", *sorted(kinds), "0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert all(decode(train.read(index)).shape == (20, 30, 3) for index in range(4, 4 + len(kinds)))
    assert list(train.left_out) == []


def test_what_is_not_read_is_listed(image_folder):
    left_out = ["ant/notes.txt", "ant/sub/a.HEIC", "bee/README", "loose.jpg"]
    for name in (*left_out, "classes.txt", "ant/.hidden", ".DS_Store"):
        touch(image_folder / "train" / name)
    train, val = open_dataset(str(image_folder))
    assert sorted(train.left_out) == [str(image_folder / "train" / name) for name in left_out]
    assert list(val.left_out) == [] and len(train) == 8
    assert by_suffix(train.left_out) == "1 .jpg, 1 .txt, 1 .heic, 1 without a suffix"


def test_hidden_files_and_folders_are_skipped(image_folder):
    """What editors, notebooks and macOS leave behind is neither a class nor an image."""
    for name in (".ipynb_checkpoints/0.jpg", "ant/._0.jpg", "ant/.thumbnails/0.jpg"):
        touch(image_folder / "train" / name)
    train, _ = open_dataset(str(image_folder))
    assert train.classes == ["ant", "bee"]
    assert len(train) == 8


def test_val_labels_are_those_of_train_even_where_val_lacks_a_class(image_folder):
    shutil.rmtree(image_folder / "val/ant")
    _, val = open_dataset(str(image_folder))
    assert val.classes == ["ant", "bee"]
    assert val.labels.tolist() == [1, 1]


def refused(spec) -> str:
    """The text of the error, which must be one sentence."""
    with pytest.raises(ValueError) as caught:
        open_dataset(str(spec))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_unknown_name_offers_the_nearest_built_in_set():
    assert refused("photo") == "--data photo is neither a folder nor a built-in set: did you mean photos?"
    assert "did you mean digits?" in refused("Digit")


def test_a_missing_folder_says_what_is_allowed():
    text = refused("/nowhere/imagenet")
    assert text.startswith("--data /nowhere/imagenet is neither a folder nor a built-in set: --data takes photos")
    assert "a folder with train/ and val/, each with one sub-folder per class" in text


def test_a_file_is_no_data_set(image_folder):
    assert "is a file: --data takes" in refused(image_folder / "train/ant/0.jpg")


def test_a_missing_split_says_what_was_found(image_folder, tmp_path):
    (image_folder / "val").rename(image_folder / "validation")
    assert f"{image_folder} has no val/ inside but only 2 folders (train, validation)" in refused(image_folder)
    (tmp_path / "empty").mkdir()
    assert "has no train/ and no val/ inside but no folder at all: --data takes" in refused(tmp_path / "empty")


def test_class_folders_instead_of_splits_are_recognised(image_folder, tmp_path):
    alone = tmp_path / "classes"
    shutil.copytree(image_folder / "train", alone)
    assert "its sub-folders look like classes: put them into a train/ folder" in refused(alone)


def test_the_train_folder_of_a_data_set_offers_the_data_set(image_folder):
    assert refused(image_folder / "train").endswith(f"type --data {image_folder}")


def test_a_flat_split_without_labels_is_refused(image_folder):
    """ILSVRC's validation images as they come out of the archive, and nothing beside them."""
    for file in list((image_folder / "val").rglob("*.jpg")):
        file.rename(image_folder / "val" / f"{file.parent.name}-{file.name}")
    for folder in ("ant", "bee"):
        (image_folder / "val" / folder).rmdir()
    assert refused(image_folder).startswith(
        f"{image_folder}/val holds images but no class folders: sort its images into one sub-folder per class, or put "
        "a file of their labels beside it (LOC_val_solution.csv, val.txt"
    )


def test_zero_images_are_refused(image_folder):
    for file in (image_folder / "val").rglob("*.jpg"):
        file.rename(file.with_suffix(".dat"))
    assert f"{image_folder}/val holds no image in its class folders: image files end in .jpg" in refused(image_folder)


def test_a_class_only_in_val_is_refused(image_folder):
    (image_folder / "val/ant").rename(image_folder / "val/zebra")
    assert f"{image_folder}/val has 1 class (zebra) that the training images lack" in refused(image_folder)


def test_a_training_class_without_an_image_is_refused(image_folder):
    """It would be a class of the model that no image ever teaches."""
    (image_folder / "train/cow").mkdir()
    assert f"{image_folder}/train has 1 class folder (cow) without an image" in refused(image_folder)


def test_many_wrong_classes_are_counted_and_three_are_named(image_folder):
    for name in "vwxyz":
        (image_folder / "val" / name).mkdir()
    assert "has 5 classes (v, w, x, …) that the training images lack" in refused(image_folder)


def test_an_unreadable_folder_is_named(image_folder, monkeypatch):
    """Never scanned as if it were empty."""
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("train/bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert refused(image_folder) == (
        f"cannot read the folder {image_folder}/train/bee (Permission denied): check its permissions"
    )


@pytest.mark.parametrize("target", ["train/ant", "train"])
def test_a_link_back_to_a_parent_is_refused_instead_of_followed_forever(image_folder, target):
    (image_folder / "train/ant/loop").symlink_to(image_folder / target, target_is_directory=True)
    assert "train/ant/loop is a link to a folder that contains it: remove the link" in refused(image_folder)


def test_the_home_folder_is_understood_where_the_shell_leaves_it(image_folder, monkeypatch):
    """--data=~/set reaches the program as it is typed."""
    monkeypatch.setenv("HOME", str(image_folder.parent))
    assert len(open_dataset("~/set")[0]) == 8
