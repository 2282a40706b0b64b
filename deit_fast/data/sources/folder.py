"""Images in class folders, as torchvision.datasets.ImageFolder orders them: by class, by folder, by name.

Listing ImageNet's 1.3 million files takes seconds from a local disk and minutes from a network share, so a large list
is kept in the cache folder. It is valid while no folder in it has been modified: a file that comes, goes or changes its
name modifies its folder.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...files import shown
from .dataset import Dataset, checked_names, counted
from .index import CACHED_FROM, Names, cache_arrays, from_arrays, index_path, load_arrays, to_arrays

# They only say which files are images; `decode` looks at the content. First those of torchvision.datasets.ImageFolder,
# then what else Pillow calls the formats that `decode` reads, but .pfm, whose numbers are no levels.
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
    ".gif", ".avif", ".avifs", ".jfif", ".jpe", ".mpo", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".apng", ".pbm",
    ".pnm",
)  # fmt: skip
IMAGE_FILES = f"image files end in {', '.join(SUFFIXES)}"
MAX_FILE_BYTES = 2**30  # a larger "image" is refused instead of filling the memory
# A file system stamps folders by its own clock, some in whole seconds: a folder modified at the moment of its scan may
# get no newer stamp from a change right after it.
STAMP_SECONDS = 2.0
Mistake = tuple[str, str]  # the path of a folder or link, and a sentence that says what is wrong with it


class ImageFolder(Dataset):
    """The images of class folders that a scan has found; `open_folder` scans, and refuses what training cannot use.

    Names that start with a dot are skipped (.ipynb_checkpoints, macOS's ._*.jpg); links to folders are followed. What
    else is not read, images beside the class folders and other files in them, is `left_out`. A name that is not UTF-8
    is as any other; where it is shown, and in the name of a class, its bytes are written out (`files.shown`).

    Labels are indices into `classes`; a class may lack a folder or images. A folder of no class has the label −1.
    """

    def __init__(self, scan: Scan, name: str, classes: list[str]):
        self.name, self.classes, self.left_out = name, classes, scan.left_out
        place = {name: label for label, name in enumerate(classes)}
        self.labels = np.array([place.get(shown(folder), -1) for folder in scan.classes], np.int64)[scan.labels]
        self._scan = scan

    def read(self, index: int) -> bytes:
        return read_file(self._file(index))

    def path(self, index: int) -> str:
        return shown(self._file(index))

    def _file(self, index: int) -> str:
        return os.path.join(self._scan.folders[self._scan.folder_of[index]], self._scan.files[index])


def open_folder(root: Path, name: str, classes: list[str] | None = None) -> ImageFolder:
    """The images in the class folders of `root`; its sorted folders are the classes, unless others are given.

    Raises:
        ValueError: a folder cannot be read; there is no class, no image, a class without an image, or, of given
            classes, a folder of another.
    """
    scan = _kept_scan(root)
    found = folder_classes(root, scan)
    if unknown := sorted(set(found) - set(found if classes is None else classes)):
        raise ValueError(
            f"{root} has {counted(unknown, 'class', 'classes')} that the training images lack: "
            f"add images of each to train/ or remove its folder from {root}"
        )
    if not len(scan.files):
        raise ValueError(f"{root} holds no image in its class folders: {IMAGE_FILES}")
    if classes is None and (empty := [found[label] for label in scan.empty()]):
        raise ValueError(
            f"{root} has {counted(empty, 'class folder', 'class folders')} without an image ({IMAGE_FILES}): "
            "add images or remove the folder"
        )
    return ImageFolder(scan, name, found if classes is None else classes)


def folder_classes(root: Path, scan: Scan) -> list[str]:
    """The names of the class folders; ValueError where there is none, or two are shown alike."""
    if not len(scan.classes):
        what = "images but no class folders" if any(map(is_image, listing(root)[1])) else "no class folders"
        raise ValueError(f"{root} holds {what}: sort its images into one sub-folder per class")
    return checked_names(list(map(shown, scan.classes)), root)


def read_file(path: str) -> bytes:
    """The bytes of a file; OSError for a device or a pipe (whose end may never come) and above MAX_FILE_BYTES."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise OSError(f"it has {status.st_size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
        # Python's own file objects take a third longer for a photograph: six system calls, not four.
        data = os.read(descriptor, status.st_size)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def listing(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the files in a folder, without those that start with a dot.

    A broken link counts as a file if its name is an image's; any other is a ValueError.
    """
    folders, files, mistakes = _listing(folder)
    _refuse(mistakes)
    return folders, files


def _listing(folder: Path) -> tuple[list[str], list[str], list[Mistake]]:
    folders: list[str] = []
    files: list[str] = []
    mistakes: list[Mistake] = []
    with _readable(folder), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                try:
                    (folders if entry.is_dir() else files).append(entry.name)
                except OSError as error:
                    files.append(entry.name)
                    if not is_image(entry.name):
                        reason = f"cannot follow the link {entry.path} ({error.strerror}): mend or remove it"
                        mistakes.append((entry.path, reason))
    return sorted(folders), sorted(files), mistakes


def _refuse(mistakes: list[Mistake]) -> None:
    if mistakes:
        raise ValueError(mistakes[0][1])


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot read the folder {folder} ({error.strerror}): check its permissions") from error


def is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES)


def by_suffix(files: Iterable[str]) -> str:
    """How many files end in what, such as "2 .heic, 1 .txt", the most frequent first."""
    counts = Counter(shown(os.path.splitext(file)[1]).lower() or "without a suffix" for file in files)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())


class Scan(NamedTuple):
    """The images under a folder of class folders: F folders, N files, C classes."""

    classes: Names  # C
    folders: Names  # F, every folder below and including the root
    files: Names  # N, without their folder
    stamps: NDArray[np.int64]  # (F,), when each folder was modified, ns
    folder_of: NDArray[np.int32]  # (N,)
    labels: NDArray[np.int32]  # (N,), indices into classes
    left_out: Names  # with their folders

    def is_current(self) -> bool:
        try:
            return np.array_equal([os.stat(folder).st_mtime_ns for folder in self.folders], self.stamps)
        except OSError:
            return False

    def empty(self) -> list[int]:
        """The classes without an image."""
        return np.flatnonzero(np.bincount(self.labels, minlength=len(self.classes)) == 0).tolist()


def _kept_scan(root: Path) -> Scan:
    """The images under a folder, from the cache where nothing has changed."""
    cache = index_path("folder", 2, str(root.absolute()))
    arrays = load_arrays(cache)
    if arrays is not None and (kept := from_arrays(Scan, arrays)).is_current():
        return kept
    began = time.time_ns()
    found, mistakes = scan(root)
    _refuse(mistakes)
    settled = found.stamps.max(initial=0) < began - STAMP_SECONDS * 1e9
    if len(found.files) >= CACHED_FROM and settled:
        cache_arrays(cache, to_arrays(found))
    return found


def scan(root: Path) -> tuple[Scan, list[Mistake]]:
    """The images under a folder, and what is wrong below it, such as a folder that cannot be read."""
    # A folder's stamp is read before its names: a change in between makes the scan look older than it is.
    with _readable(root):
        status = root.stat()
    classes, beside, mistakes = _listing(root)
    tree = [(_Folder(str(root), status.st_mtime_ns, [], list(filter(is_image, beside))), 0)]
    for label, name in enumerate(classes):
        tree += [(folder, label) for folder in sorted(_tree(root / name, (_identity(status),), mistakes))]
    folders, labels = zip(*tree, strict=True)
    counts = [len(folder.images) for folder in folders]
    found = Scan(
        Names.of(classes),
        Names.of(folder.path for folder in folders),
        Names.of(chain.from_iterable(folder.images for folder in folders)),
        np.array([folder.stamp for folder in folders], np.int64),
        np.repeat(np.arange(len(folders), dtype=np.int32), counts),
        np.repeat(np.array(labels, np.int32), counts),
        Names.of(os.path.join(folder.path, name) for folder in folders for name in folder.others),
    )
    return found, mistakes


class _Folder(NamedTuple):
    path: str
    stamp: int  # when it was modified, ns
    images: list[str]
    others: list[str]  # its files that are no images


def _tree(folder: Path, parents: tuple[tuple[int, int], ...], mistakes: list[Mistake]) -> Iterator[_Folder]:
    """A folder and all below it; links are followed."""
    try:
        with _readable(folder):
            status = folder.stat()
        if _identity(status) in parents:
            raise ValueError(f"{folder} is a link to a folder that contains it: remove the link")
        folders, files, wrong = _listing(folder)
    except ValueError as error:
        mistakes.append((str(folder), str(error)))
        return
    mistakes += wrong
    images = list(filter(is_image, files))
    yield _Folder(str(folder), status.st_mtime_ns, images, [file for file in files if not is_image(file)])
    for name in folders:
        yield from _tree(folder / name, (*parents, _identity(status)), mistakes)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
