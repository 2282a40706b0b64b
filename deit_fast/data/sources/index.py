"""What a data set knows of its images, in arrays: a million names and offsets are 50 MB, and no Python objects.

A scan that took long is kept in the cache folder and read back until the files it describes have changed.
"""

from __future__ import annotations

import hashlib
import os
import uuid
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...files import sync_folder
from .builtin import default_cache_dir

CACHED_FROM = 10_000  # entries; listing fewer takes less time than to think about it
Arrays = dict[str, NDArray]


class Names:
    """A sequence of strings in one buffer.

    Args:
        text: uint8, all of them one after the other, as the file system encodes them.
        ends: int64 (N,), where each ends in `text`.
    """

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]):
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self.ends):
            raise IndexError(index)
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())


def pack_names(**names: Iterable[str]) -> Arrays:
    """Arrays of several `Names`, to be saved; `unpack_names` reads one back."""
    packed = {key: Names.of(strings) for key, strings in names.items()}
    return {f"{key}_{part}": getattr(each, part) for key, each in packed.items() for part in ("text", "ends")}


def unpack_names(arrays: Arrays, key: str) -> Names:
    return Names(arrays[f"{key}_text"], arrays[f"{key}_ends"])


def index_path(*identity: object) -> Path:
    """Where the index of something is cached; the identity names it and the version of the index."""
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:24]
    return default_cache_dir() / "index" / f"{digest}.npz"


def load_arrays(path: Path) -> Arrays | None:
    """What `save_arrays` wrote; None where there is no such file or it is damaged, so that it is made again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays so that a reader sees all of them or none.

    Raises:
        OSError: the folder is not writable or full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def cache_arrays(path: Path, arrays: Arrays) -> None:
    """`save_arrays`, for an index that can be made again: where it cannot be kept, a warning says so."""
    try:
        save_arrays(path, arrays)
    except OSError as error:
        warnings.warn(
            f"the list of images cannot be kept in {path.parent} ({error.strerror}) and is made again by every run: "
            "set DEIT_FAST_CACHE to a folder that you may write to",
            stacklevel=2,
        )
