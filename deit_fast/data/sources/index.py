"""What a data set knows of its images, in arrays: a million names and offsets are 50 MB, and no Python objects.

A scan that took long is kept in the cache folder and read back until the files it describes have changed.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...files import write_file

CACHED_FROM = 10_000  # entries; listing fewer takes no time worth saving
Arrays = dict[str, NDArray]
Index = TypeVar("Index", bound=NamedTuple)


class Names:
    """N strings in one buffer: `text` uint8, as the file system encodes them, and `ends` (N,), where each ends."""

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
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


def locate(ends: NDArray[np.int64], index: int) -> tuple[int, int]:
    """(part, index inside the part) in a sequence whose parts end at `ends`."""
    part = int(np.searchsorted(ends, index, side="right"))
    return part, index - (int(ends[part - 1]) if part else 0)


def to_arrays(index: NamedTuple) -> Arrays:
    """The columns of an index, to be saved; a column of `Names` becomes two arrays."""
    arrays: Arrays = {}
    for key, column in index._asdict().items():
        names = isinstance(column, Names)
        arrays |= {f"{key}_text": column.text, f"{key}_ends": column.ends} if names else {key: column}
    return arrays


def from_arrays(kind: type[Index], arrays: Arrays) -> Index:
    """The index of this kind that `to_arrays` took apart."""

    def column(key: str) -> Any:
        return arrays[key] if key in arrays else Names(arrays[f"{key}_text"], arrays[f"{key}_ends"])

    return kind(*map(column, kind._fields))


def default_cache_dir() -> Path:
    """$DEIT_FAST_CACHE, else $XDG_CACHE_HOME/deit_fast, else ~/.cache/deit_fast."""
    if own := os.environ.get("DEIT_FAST_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deit_fast"


def index_path(*identity: object) -> Path:
    """Where the index of something is cached; `identity` names it and the version of the index."""
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:24]
    return default_cache_dir() / "index" / f"{digest}.npz"


def load_arrays(path: Path) -> Arrays | None:
    """What `save_arrays` wrote; None if there is no such file or it is damaged, so that it is made again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def save_arrays(path: Path, arrays: Arrays) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "xb") as file:  # given a path, savez appends .npz to it
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the stubs take a column for allow_pickle

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, write)


def cache_arrays(path: Path, arrays: Arrays) -> None:
    """`save_arrays` for an index that can be made again: if it cannot be written, a warning says so."""
    try:
        save_arrays(path, arrays)
    except OSError as error:
        warnings.warn(
            f"the list of images cannot be kept in {path.parent} ({error.strerror}) and is made again by every run: "
            "set DEIT_FAST_CACHE to a folder that you may write to",
            stacklevel=2,
        )
