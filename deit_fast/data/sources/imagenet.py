"""What ImageNet has beside class folders: the flat validation folder, and ImageNet-V2.

The archive's `val/` holds 50 000 files side by side. Their labels are in another file, and any of these will do:
Kaggle's LOC_val_solution.csv, Caffe's val.txt, TensorFlow's list of synsets, the devkit's ground truth with its
meta.mat, torchvision's meta.bin.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from .dataset import counted
from .folder import ImageFolder, is_image, listing, open_folder
from .index import Names

SYNSETS = "imagenet_2012_validation_synset_labels.txt"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
LABEL_FILES = ("LOC_val_solution.csv", "val.txt", SYNSETS, GROUND_TRUTH, "meta.bin")
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\b")


def number_of(file: str) -> int:
    """The number in the name of a validation image, 1 to 50 000; 0 if there is none."""
    found = _NUMBER.search(file)
    return int(found[1]) if found else 0


def is_flat(folder: Path) -> bool:
    """Whether a folder has images and no folders."""
    folders, files = listing(folder)
    return not folders and any(map(is_image, files))


class FlatFolder(ImageFolder):
    """The validation images side by side in one folder, in the order of their names; `label_of` a name is its label."""

    def __init__(self, folder: Path, name: str, classes: list[str], label_of: Callable[[str], int]):
        every = listing(folder)[1]
        files = list(filter(is_image, every))
        self.name, self.classes, self._root, self._files = name, classes, folder, Names.of(files)
        self.labels = np.array(list(map(label_of, files)), np.int64)
        self.left_out = [str(folder / file) for file in every if not is_image(file) and file not in LABEL_FILES]

    def _file(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])


def labels_beside(folder: Path, classes: list[str]) -> Callable[[str], int]:
    """Name of an image → its label, from the label file of a flat folder.

    The file is there, in the folder above, in a devkit below that, or up to three folders above (as in Kaggle's
    archive). The classes of the training images are WordNet ids if the label file has those.

    Raises:
        ValueError: there is no readable label file; or, by the function, an image without a label of these classes.
    """
    above = folder.absolute().parent
    places = [folder, above, *sorted(above.glob("*devkit*/data")), *list(above.parents)[:3]]
    source = next((place / name for place in places for name in LABEL_FILES if (place / name).is_file()), None)
    if source is None:
        raise ValueError(
            f"{folder} holds images but no class folders: sort its images into one sub-folder per class, or put a file "
            f"of their labels beside it ({', '.join(LABEL_FILES)})"
        )
    known = _labels(source)
    place = {name: label for label, name in enumerate(classes)}

    def label_of(file: str) -> int:
        label = known.get(Path(file).stem, known.get(number_of(file)))
        if label is None:
            raise ValueError(f"{source} has no label for {folder / file}")
        index = label if isinstance(label, int) else place.get(label, -1)
        if not 0 <= index < len(classes):
            raise ValueError(f"{source} gives {folder / file} the label {label}, which the training images lack")
        return index

    return label_of


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
    images = open_folder(folder, name, list(map(str, range(len(classes)))))
    images.classes = classes
    return images


def _labels(file: Path) -> Mapping[str | int, str | int]:
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
        from scipy.io import loadmat  # type: ignore[import-untyped]  # its stubs are another package
    except ImportError as error:
        raise ValueError(f"reading {file.name} needs SciPy: type pip install scipy") from error
    table = file.with_name("meta.mat")
    if not table.is_file():
        raise ValueError(f"{table.name} of the devkit is missing: put it beside this file")
    synsets = loadmat(table, squeeze_me=True)["synsets"]
    names = {int(number): str(synset) for number, synset in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    return [names.get(number, f"ILSVRC2012_ID {number}") for number in ids]
