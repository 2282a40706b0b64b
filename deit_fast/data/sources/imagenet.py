"""What ImageNet has beside class folders: the flat validation folder, ImageNet-V2, ReaL labels.

The archive's `val/` holds 50 000 files side by side. Their labels are in another file, and any of these will do:
Kaggle's LOC_val_solution.csv, Caffe's val.txt, TensorFlow's list of synsets, the devkit's ground truth with its
meta.mat, torchvision's meta.bin.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .dataset import Broken, counted, note
from .folder import FlatFolder, ImageFolder, is_image, listing

SYNSETS = "imagenet_2012_validation_synset_labels.txt"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
LABEL_FILES = ("LOC_val_solution.csv", "val.txt", SYNSETS, GROUND_TRUTH, "meta.bin")
VALIDATION_IMAGES = 50_000
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\b")


def number_of(file: str) -> int:
    """The number in the name of a validation image, 1 to 50 000; 0 if there is none."""
    found = _NUMBER.search(file)
    return int(found[1]) if found else 0


def is_flat(folder: Path) -> bool:
    """Whether a folder has images and no folders."""
    folders, files = listing(folder)
    return not folders and any(map(is_image, files))


def flat_validation(folder: Path, name: str, classes: list[str], broken: Broken | None = None) -> FlatFolder:
    """The validation images side by side in one folder, in the order of their names.

    The label file is there, in the folder above, in a devkit below that, or up to three folders above (as in Kaggle's
    archive). The classes of the training images are WordNet ids if the label file has those. An image without a label
    of theirs is a ValueError, or is appended to `broken` and has the label −1.
    """
    every = listing(folder)[1]
    files = list(filter(is_image, every))
    above = folder.absolute().parent
    places = [folder, above, *sorted(above.glob("*devkit*/data")), *list(above.parents)[:3]]
    source = next((place / name for place in places for name in LABEL_FILES if (place / name).is_file()), None)
    if source is None:
        raise ValueError(
            f"{folder} holds images but no class folders: sort its images into one sub-folder per class, or put a file "
            f"of their labels beside it ({', '.join(LABEL_FILES)})"
        )
    known = _labels(source)
    labels = []
    place = {name: label for label, name in enumerate(classes)}
    for file in files:
        label = known.get(Path(file).stem, known.get(number_of(file)))
        index = label if isinstance(label, int) else place.get(label, -1)
        if not 0 <= index < len(classes):
            path, index = str(folder / file), -1
            given = f"gives {path} the label {label}, which the training images lack"
            note(broken, path, ValueError(f"{source} {f'has no label for {path}' if label is None else given}"))
        labels.append(index)
    images = FlatFolder(folder, name, classes, files, np.array(labels, np.int64))
    images.left_out = [str(folder / file) for file in every if not is_image(file) and file not in LABEL_FILES]
    return images


def has_numbered_classes(folder: Path, classes: Sequence[str]) -> bool:
    """Whether the sub-folders are numbers that are not class names: ImageNet-V2's 0 … 999."""
    folders = listing(folder)[0]
    return bool(folders) and all(map(str.isdecimal, folders)) and not set(folders) & set(classes)


def numbered_classes(folder: Path, name: str, classes: list[str]) -> ImageFolder:
    """ImageNet-V2, whose sub-folder k holds the images of class k, sorted as numbers (2 before 10)."""
    beyond = [number for number in listing(folder)[0] if int(number) >= len(classes)]
    if beyond:
        found = counted(beyond, "class", "classes")
        raise ValueError(f"{folder} has {found} outside the {len(classes)} of the training images")
    images = ImageFolder(folder, name, list(map(str, range(len(classes)))))
    images.classes = classes
    return images


def real_labels(file: Path, files: Sequence[str]) -> NDArray[np.int64]:
    """The reassessed labels of ImageNet's validation images (Beyer et al. 2020, "Are we done with ImageNet?").

    Args:
        file: real.json of github.com/google-research/reassessed-imagenet: a list of 50 000 lists of labels.
        files: paths of N validation images, in the order of the data set.

    Returns:
        int64 (N, K), every label an image may have, padded with −1. A prediction is right if it equals one of its row;
        an image without labels is not counted.
    """
    numbers = [number_of(path) for path in files]
    if 0 in numbers:
        raise ValueError(
            f"{file} labels ImageNet's validation images, named ILSVRC2012_val_00000001.JPEG and so on: "
            f"{files[numbers.index(0)]} is not one of them"
        )
    try:
        lists = [np.asarray(labels, np.int64).reshape(-1) for labels in json.loads(Path(file).read_text())]
    except OSError as error:
        raise ValueError(f"cannot read {file} ({error.strerror})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is not real.json, a list of lists of labels ({error})") from error
    if len(lists) not in (VALIDATION_IMAGES, len(files)) or len(lists) < max(numbers):
        raise ValueError(
            f"{file} has {len(lists)} lists of labels: expected {VALIDATION_IMAGES}, one for each of ImageNet's "
            f"validation images, or {len(files)}, one for each image here up to number {max(numbers)}"
        )
    rows = [lists[number - 1] for number in numbers]
    table = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int64)
    for row, labels in zip(table, rows, strict=True):
        row[: len(labels)] = labels
    return table


def _labels(file: Path) -> dict[str, str | int] | dict[int, str]:
    """Labels by the name of the image or by its number."""
    if file.name == "meta.bin":
        try:
            _, synsets = torch.load(file, weights_only=True)
        except PermissionError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{file} is not the meta.bin of torchvision.datasets.ImageNet ({error})") from error
        return dict(enumerate(synsets, 1))
    try:
        lines = [line for line in file.read_text(errors="surrogateescape").splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"cannot read {file} ({error.strerror})") from error
    try:
        if file.name == "LOC_val_solution.csv":
            pairs = (line.split(",", 1) for line in lines[1:])
            return {image: boxes.split()[0] for image, boxes in pairs}
        if file.name == "val.txt":
            return {Path(image).stem: int(label) for image, label in map(str.split, lines)}
        if file.name == SYNSETS:
            return dict(enumerate(map(str.strip, lines), 1))
        return dict(enumerate(_synsets_of_ids(file, list(map(int, lines))), 1))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{file} does not list labels as its name promises ({error})") from error


def _synsets_of_ids(file: Path, ids: list[int]) -> list[str]:
    """WordNet ids of the devkit's own class numbers, which meta.mat beside the labels explains."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(f"reading {file.name} needs SciPy: type pip install scipy") from error
    table = file.with_name("meta.mat")
    if not table.is_file():
        raise ValueError(f"{table.name} of the devkit is missing: put it beside this file")
    synsets = loadmat(table, squeeze_me=True)["synsets"]
    names = {int(number): str(synset) for number, synset in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    return [names.get(number, f"ILSVRC2012_ID {number}") for number in ids]
