"""Where images come from: a folder of class folders, or a small real set that ships inside other packages.

    train, val = open_dataset("/imagenet")      # /imagenet/train/<class>/…, /imagenet/val/<class>/…
    train, val = open_dataset("photos")         # built in: 16 photographs, see `builtin.py`
    pixels, label = decode(train.read(7)), train.labels[7]

A data set hands out encoded bytes; decoding, order and augmentation are done elsewhere. Labels live in one array.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .builtin import BUILTIN, write_builtin

# The suffixes of torchvision.datasets.ImageFolder. They only say which files are images; `decode` looks at the content.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LAYOUT = "a folder with train/ and val/, each with one sub-folder per class"
ALLOWED = f"--data takes {' or '.join(BUILTIN)} or {LAYOUT}"


class Dataset(Protocol):
    """One split of a data set: N encoded images with labels.

    Attributes:
        name: the spec as the user gave it.
        classes: class names; the index is the label.
        labels: int64 (N,).
    """

    name: str
    classes: list[str]
    labels: NDArray[np.int64]

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded image; OSError when the file has become unreadable."""
        ...

    def path(self, index: int) -> str:
        """What to call the image in messages."""
        ...


class ImageFolder:
    """Images in class folders, ordered as torchvision.datasets.ImageFolder does: by class, by folder, by name.

    Names that start with a dot are skipped (.ipynb_checkpoints, macOS's ._*.jpg); links to folders are followed.

    Args:
        root: the folder that holds the class folders.
        name: what the user called the data set.
        classes: labels are indices into this list; a class without a folder is left out. Default: the sorted folders.

    Raises:
        ValueError: a folder is unreadable, links to itself, holds no image or has a class outside `classes`; without
            `classes`, also when one of the class folders holds no image.
    """

    def __init__(self, root: Path, name: str, classes: list[str] | None = None):
        self.name = name
        found, loose = _listing(root)
        if not found:
            what = "images but no class folders" if any(map(_is_image, loose)) else "no class folders"
            raise ValueError(f"{root} holds {what}: sort its images into one sub-folder per class")
        if classes is not None and (unknown := sorted(set(found) - set(classes))):
            raise ValueError(
                f"{root} has {_counted(unknown, 'class', 'classes')} that the training images lack: "
                f"add images of each to train/ or remove its folder from {root}"
            )
        self.classes = found if classes is None else classes
        self._paths: list[str] = []
        labels: list[NDArray[np.int64]] = []
        empty = []
        for label, name_of_class in enumerate(self.classes):
            images = _images(root / name_of_class) if name_of_class in found else []
            if name_of_class in found and not images:
                empty.append(name_of_class)
            self._paths += images
            labels.append(np.full(len(images), label, dtype=np.int64))
        self.labels = np.concatenate(labels)
        if not self._paths:
            raise ValueError(f"{root} holds no image in its class folders: {_suffixes()}")
        if empty and classes is None:
            raise ValueError(
                f"{root} has {_counted(empty, 'class folder', 'class folders')} without an image ({_suffixes()}): "
                "add images or remove the folder"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> bytes:
        with open(self._paths[index], "rb") as file:
            return file.read()

    def path(self, index: int) -> str:
        return self._paths[index]


def open_dataset(spec: str, cache_dir: Path | None = None) -> tuple[Dataset, Dataset]:
    """The training and the validation images that a spec names.

    Args:
        spec: "photos", "digits", or a folder with train/ and val/, each with one sub-folder per class. A folder that is
            called like a built-in set is meant by ./photos.
        cache_dir: where built-in sets are written; default $DEIT_FAST_CACHE, else $XDG_CACHE_HOME/deit_fast, else
            ~/.cache/deit_fast.

    Returns:
        (train, val), with equal `classes`. A class may have no validation image.

    Raises:
        ValueError: nothing usable is there, or a built-in set needs a package that is not installed; the text says what
            was found and what to type instead.
    """
    root = write_builtin(spec, cache_dir) if spec in BUILTIN else _checked_root(spec)
    train = ImageFolder(root / "train", spec)
    return train, ImageFolder(root / "val", spec, train.classes)


def _checked_root(spec: str) -> Path:
    """The folder of a spec, if it has train/ and val/."""
    root = Path(spec).expanduser()
    if not root.exists():
        near = difflib.get_close_matches(spec.lower(), BUILTIN, n=1)
        hint = f"did you mean {near[0]}?" if near else ALLOWED
        raise ValueError(f"--data {spec} is neither a folder nor a built-in set: {hint}")
    if not root.is_dir():
        raise ValueError(f"--data {spec} is a file: {ALLOWED}")
    folders, _ = _listing(root)
    missing = [f"{split}/" for split in ("train", "val") if split not in folders]
    if not missing:
        return root
    # The usual slip: the class folders themselves, often the train/ of a complete data set.
    if any(_is_image(file) for folder in folders for file in _listing(root / folder)[1]):
        fix = "its sub-folders look like classes: put them into a train/ folder, and held-out images into val/"
        if root.name in ("train", "val") and {"train", "val"} <= set(_listing(root.resolve().parent)[0]):
            fix = f"type --data {root.resolve().parent}"
    else:
        fix = ALLOWED
    found = f"only {_counted(folders, 'folder', 'folders')}" if folders else "no folder at all"
    raise ValueError(f"--data {spec} has no {' and no '.join(missing)} inside but {found}: {fix}")


def _listing(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the files in a folder, without those that start with a dot."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise ValueError(f"cannot read the folder {folder} ({error.strerror}): check its permissions") from error
    return sorted(folders), sorted(files)


def _images(top: Path) -> list[str]:
    """Paths of the image files under a class folder, sorted by folder, then by name."""
    tree = sorted(_tree(top, ()))
    return [os.path.join(folder, file) for folder, files in tree for file in files if _is_image(file)]


def _tree(folder: Path, parents: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, list[str]]]:
    """(folder, its files) for a folder and all folders below it; links are followed."""
    folders, files = _listing(folder)
    yield str(folder), files
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        raise ValueError(f"{folder} is a link to a folder that contains it: remove the link")
    for name in folders:
        yield from _tree(folder / name, (*parents, identity))


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES)


def _suffixes() -> str:
    return f"image files end in {', '.join(SUFFIXES)}"


def _counted(names: list[str], one: str, many: str) -> str:
    """'1 class (cat)', '5 classes (ant, bee, cat, …)'."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} {one if len(names) == 1 else many} ({shown})"
