"""What an evaluation asks of its data beyond labels: class names for a model that has none, and the ReaL labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...data import open_dataset
from ...data.sources import imagenet
from ...data.sources.builtin import is_builtin
from ...data.sources.folder import is_image, listing
from ...files import shown

VALIDATION_IMAGES = 50_000


def classes_of_data(spec: str, count: int) -> list[str]:
    """The class names of a model with `count` outputs, taken from the data that it is evaluated on.

    ImageNet's synsets for 1000 outputs and any folder of ImageNet: some of its classes, ImageNet-V2, or flat. Else the
    classes of the training images that lie beside these, or the class folders themselves; where their names are
    numbers, the number is the label.
    """
    from timm.data import ImageNetInfo  # which the other functions do not wait for

    root = Path(spec).expanduser()
    classes: list[str] = []
    if not is_builtin(spec) and root.is_dir():
        inside = root / "val" if "val" in listing(root)[0] else root
        folders = listing(inside)[0]
        synsets = ImageNetInfo().label_names() if count == 1000 else []
        known = bool(folders) and set(folders) <= set(synsets)
        if synsets and (known or imagenet.is_flat(inside) or imagenet.has_numbered_classes(inside, synsets)):
            return synsets
        if inside == root and any(is_image(file) for folder in folders for file in listing(root / folder)[1]):
            classes = sorted(folders, key=int) if all(map(str.isdecimal, folders)) else list(map(shown, folders))
    classes = classes or open_dataset(spec)[1].classes
    if len(classes) != count:
        raise ValueError(
            f"the model knows {count} classes, {spec} has {len(classes)}: evaluate it on data of its own classes, or "
            f"fine-tune it on these first, python -m deit_fast.train --weights … --data {spec}"
        )
    return classes


def real_labels(file: Path, files: Sequence[str]) -> NDArray[np.int64]:
    """The reassessed labels of ImageNet's validation images (Beyer et al. 2020, "Are we done with ImageNet?").

    Args:
        file: real.json of github.com/google-research/reassessed-imagenet: a list of 50 000 lists of labels.
        files: paths of N validation images, in the order of the data set.

    Returns:
        int64 (N, K), every label an image may have, padded with −1. A prediction is right if it equals one of its row;
        an image without labels is not counted.
    """
    numbers = [imagenet.number_of(path) for path in files]
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
