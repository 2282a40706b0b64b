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
from .dataset import Broken, Dataset, checked_names, counted, note
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


class ImageFolder(Dataset):
    """Images in class folders.

    Names that start with a dot are skipped (.ipynb_checkpoints, macOS's ._*.jpg); links to folders are followed. What
    else is not read, images beside the class folders and other files in them, is `left_out`. A name that is not UTF-8
    is as any other; where it is shown, and in the name of a class, its bytes are written out (`files.shown`).

    Labels are indices into `classes`, by default the sorted folders; a given class may lack a folder or images.

    Where `broken` is given, folders with a mistake are appended to it instead of raised, and the images are those of
    the others; a class that the training images lack has the label −1.
    """

    def __init__(self, root: Path, name: str, classes: list[str] | None = None, broken: Broken | None = None):
        self.name = name
        scan = _scan(root, broken)
        found = checked_names(list(map(shown, scan.classes)), root)
        if not found:
            what = "images but no class folders" if any(map(is_image, listing(root)[1])) else "no class folders"
            raise ValueError(f"{root} holds {what}: sort its images into one sub-folder per class")
        unknown = [] if classes is None else sorted(set(found) - set(classes))
        self.classes = found if classes is None else classes
        empty = [found[label] for label in np.flatnonzero(np.bincount(scan.labels, minlength=len(found)) == 0)]
        if broken is None:
            if unknown:
                raise ValueError(
                    f"{root} has {counted(unknown, 'class', 'classes')} that the training images lack: "
                    f"add images of each to train/ or remove its folder from {root}"
                )
            if not len(scan.files):
                raise ValueError(f"{root} holds no image in its class folders: {IMAGE_FILES}")
            if empty and classes is None:
                raise ValueError(
                    f"{root} has {counted(empty, 'class folder', 'class folders')} without an image ({IMAGE_FILES}): "
                    "add images or remove the folder"
                )
        else:
            advice = "is a class that the training images lack: add images of it to train/ or remove its folder"
            broken += [(str(root / name), advice) for name in unknown]
            unread = dict(broken)
            for path in [str(root / name) for name in empty] if classes is None else ():
                if path not in unread:
                    broken.append((path, f"has no image ({IMAGE_FILES}): add images or remove the folder"))
            if not len(scan.files) and classes is not None:
                broken.append((str(root), f"holds no image in its class folders ({IMAGE_FILES}): add images"))
        place = {name: label for label, name in enumerate(self.classes)}
        self.labels = np.array([place.get(name, -1) for name in found], np.int64)[scan.labels]
        self.left_out = scan.left_out
        self._scan = scan

    def read(self, index: int) -> bytes:
        return read_file(self._file(index))

    def path(self, index: int) -> str:
        return shown(self._file(index))

    def _file(self, index: int) -> str:
        return os.path.join(self._scan.folders[self._scan.folder_of[index]], self._scan.files[index])


class FlatFolder(ImageFolder):
    """Images side by side in one folder, `files`, with their labels from elsewhere."""

    def __init__(self, root: Path, name: str, classes: list[str], files: list[str], labels: NDArray[np.int64]):
        self.name, self.classes, self.labels = name, classes, labels
        self._root, self._files = root, Names.of(files)

    def _file(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])


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


def listing(folder: Path, broken: Broken | None = None) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the files in a folder, without those that start with a dot.

    A broken link whose name is no image's is a ValueError, or is appended to `broken`.
    """
    folders: list[str] = []
    files: list[str] = []
    with _readable(folder), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if _is_folder(entry, broken) else files).append(entry.name)
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str], broken: Broken | None = None) -> bool:
    """A broken link is a bad image if its name ends as an image's does, else a class folder that cannot be read."""
    try:
        return entry.is_dir()
    except OSError as error:
        if not is_image(entry.name):
            reason = f"cannot follow the link {entry.path} ({error.strerror}): mend or remove it"
            note(broken, entry.path, ValueError(reason))
        return False


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


class _Scan(NamedTuple):
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


def _scan(root: Path, broken: Broken | None = None) -> _Scan:
    """The images under a folder, from the cache where nothing has changed and `broken` asks for no mistakes."""
    if broken is not None:
        return _walk(root, broken)
    cache = index_path("folder", 2, str(root.absolute()))
    arrays = load_arrays(cache)
    if arrays is not None and (scan := from_arrays(_Scan, arrays)).is_current():
        return scan
    began = time.time_ns()
    scan = _walk(root)
    settled = scan.stamps.max(initial=0) < began - STAMP_SECONDS * 1e9
    if len(scan.files) >= CACHED_FROM and settled:
        cache_arrays(cache, to_arrays(scan))
    return scan


def _walk(root: Path, broken: Broken | None = None) -> _Scan:
    # A folder's stamp is read before its names: a change in between makes the scan look older than it is.
    with _readable(root):
        status = root.stat()
    classes, beside = listing(root, broken)
    tree = [(str(root), status.st_mtime_ns, [], list(filter(is_image, beside)), 0)]
    for label, name in enumerate(classes):
        tree += [(*each, label) for each in sorted(_tree(root / name, (_identity(status),), broken))]
    folders, stamps, files, others, labels = zip(*tree, strict=True)
    counts = [len(names) for names in files]
    return _Scan(
        Names.of(classes),
        Names.of(folders),
        Names.of(chain.from_iterable(files)),
        np.array(stamps, np.int64),
        np.repeat(np.arange(len(folders), dtype=np.int32), counts),
        np.repeat(np.array(labels, np.int32), counts),
        Names.of(os.path.join(folder, name) for folder, names in zip(folders, others, strict=True) for name in names),
    )


def _tree(
    folder: Path, parents: tuple[tuple[int, int], ...], broken: Broken | None
) -> Iterator[tuple[str, int, list[str], list[str]]]:
    """(folder, when it was modified, its images, its other files) of a folder and all below it; links are followed."""
    try:
        with _readable(folder):
            status = folder.stat()
        if _identity(status) in parents:
            raise ValueError(f"{folder} is a link to a folder that contains it: remove the link")
        folders, files = listing(folder, broken)
    except ValueError as error:
        note(broken, str(folder), error)
        return
    images = list(filter(is_image, files))
    yield str(folder), status.st_mtime_ns, images, [file for file in files if not is_image(file)]
    for name in folders:
        yield from _tree(folder / name, (*parents, _identity(status)), broken)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
