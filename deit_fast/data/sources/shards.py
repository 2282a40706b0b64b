"""Tar shards in WebDataset's layout, read in random order.

    shards/imagenet1k-train-0000.tar        n01440764_10026.jpg  n01440764_10026.cls  n01440764_18.jpg  …
    shards/imagenet1k-validation-00.tar

Members of one sample share the name up to the first dot of the file name. A sample has one image, by suffix, and a
label: a number in `.cls`, or the number "label" in `.json`. Class names are the lines of `classes.txt` beside the
shards if it is there, else the numbers.

A tar file is not compressed, so an image is read by its offset. One pass over the headers finds the offsets. They are
kept: by `pack` beside the shards (valid while names and sizes of the shards stay), else in the cache folder (valid
while their modification times stay as well).
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...files import check_readable, denied, shown
from .dataset import Broken, Dataset, check_labels, checked_names, note, numbered
from .folder import SUFFIXES, is_image
from .index import CACHED_FROM, Names, cache_arrays, from_arrays, index_path, load_arrays, to_arrays

VERSION = 2  # of the kept index; 1 accepted shards that ended too early
CLASSES_FILE = "classes.txt"
GZIP = b"\x1f\x8b"  # how a gzip file begins
BLOCK = 512  # bytes; tar's unit
# A tar file ends in two zero blocks, padded to a record of 20 blocks (`tar -b` changes that; POSIX allows 63). More
# zeros are what a broken download leaves where members should be.
MOST_ZEROS = (2 + 63 - 1) * BLOCK


class ShardIndex(NamedTuple):
    """Where the N images of a list of shards lie."""

    shard: NDArray[np.int32]  # (N,), index into the list of shards
    offset: NDArray[np.int64]  # (N,), bytes from the start of the shard
    size: NDArray[np.int64]  # (N,), bytes
    labels: NDArray[np.int64]  # (N,)
    names: Names  # (N,), of the member


class TarShards(Dataset):
    """One split: the samples of a list of shards, in their order.

    Args:
        classes: class names; None: the lines of classes.txt beside the first shard, else the numbers up to the largest.
        index_file: an index that `pack` wrote.
        broken: where given, unreadable shards and labels outside the classes are appended to it instead of raised, and
            headers are read anew.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        name: str,
        classes: list[str] | None = None,
        index_file: Path | None = None,
        broken: Broken | None = None,
    ):
        self.name = name
        self._shards = [str(shard) for shard in shards]
        self._index = _opened(self._shards, index_file, broken)
        self.labels = self._index.labels
        if not len(self.labels) and self._shards[0] not in dict(broken or ()):
            note(broken, self._shards[0], ValueError(f"{self._shards[0]} holds no sample"))
        names = shards[0].parent / CLASSES_FILE
        if classes is None and names.is_file():
            classes = checked_names(names.read_text(errors="backslashreplace").removesuffix("\n").split("\n"), names)
        self.classes = numbered(self, "mend or remove the sample", broken) if classes is None else classes
        check_labels(self, broken)

    def read(self, index: int) -> bytes:
        size = int(self._index.size[index])
        with open(self._shards[self._index.shard[index]], "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, int(self._index.offset[index]))
        if len(data) < size:
            raise OSError("the shard has become shorter since it was indexed")
        return data

    def path(self, index: int) -> str:
        return shown(f"{self._shards[self._index.shard[index]]}/{self._index.names[index]}")


def fingerprint(shards: Sequence[str], *, stamps: bool) -> NDArray[np.str_]:
    """What an index is valid for: names and sizes of the shards, with `stamps` also when they were modified."""
    try:
        status = [os.stat(shard) for shard in shards]
    except OSError as error:
        raise ValueError(f"cannot read the shard {error.filename} ({error.strerror})") from error
    return np.array([
        f"{os.path.basename(shard)} {each.st_size}" + (f" {each.st_mtime_ns}" if stamps else "")
        for shard, each in zip(shards, status, strict=True)
    ])  # fmt: skip


def scan(shards: Sequence[str], broken: Broken | None = None) -> ShardIndex:
    """The index of a list of shards, from their headers; unreadable ones are left out if `broken` takes their names."""
    columns: tuple[list, ...] = ([], [], [], [], [])
    for number, shard in enumerate(shards):
        try:
            rows = [(number, *sample) for sample in _samples(shard)]
        except ValueError as error:
            note(broken, shard, error)
            continue
        for column, values in zip(columns, zip(*rows, strict=True), strict=False):  # without rows, no values
            column += values
    shard_of, *numbers, names = columns
    return ShardIndex(np.array(shard_of, np.int32), *(np.array(each, np.int64) for each in numbers), Names.of(names))


def _opened(shards: list[str], index_file: Path | None, broken: Broken | None) -> ShardIndex:
    if index_file is not None:
        try:
            check_readable(index_file)
            arrays = load_arrays(index_file)
            if arrays is not None and np.array_equal(arrays["valid_for"], fingerprint(shards, stamps=False)):
                return from_arrays(ShardIndex, arrays)
            raise ValueError(
                f"the shards beside {index_file} are not those that it lists: restore the missing or damaged ones "
                "(deit_fast.data check names them), or remove those and run the same deit_fast.data pack command again"
            )
        except PermissionError as error:
            note(broken, str(index_file), ValueError(denied(error.filename)))
        except ValueError as error:
            note(broken, str(index_file), error)
    if broken is not None:
        return scan(shards, broken)
    kept, valid_for = index_path("shards", VERSION, shards), fingerprint(shards, stamps=True)
    arrays = load_arrays(kept)
    if arrays is not None and np.array_equal(arrays["valid_for"], valid_for):
        return from_arrays(ShardIndex, arrays)
    index = scan(shards)
    if len(index.labels) >= CACHED_FROM:
        cache_arrays(kept, {**to_arrays(index), "valid_for": valid_for})
    return index


def _samples(shard: str) -> Iterator[tuple[int, int, int, str]]:
    """(offset, size, label, name of the member) of each image in a shard."""
    key, image, label = "", None, None
    hint = "copy or download it again"
    try:
        with open(shard, "rb") as file:
            if file.read(2) == GZIP:
                hint = "it is compressed: unpack it"
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile() or os.path.basename(member.name).startswith("."):
                    continue
                folder, file = os.path.split(member.name)
                stem, _, suffix = file.partition(".")
                if (next_key := os.path.join(folder, stem)) != key:
                    if key:
                        yield _complete(shard, key, image, label)
                    key, image, label = next_key, None, None
                if "." not in suffix and is_image(f".{suffix}"):  # 0.seg.png is another field of sample 0
                    if image is not None:
                        raise ValueError(f"{shard}: sample {key} has two images ({image[2]}, {member.name})")
                    image = (member.offset_data, member.size, member.name)
                elif suffix in ("cls", "json"):
                    label = _label(shard, member.name, suffix, tar.extractfile(member).read(), label)
            _check_end(tar)
            if key:
                yield _complete(shard, key, image, label)
    except PermissionError as error:
        raise ValueError(denied(shard)) from error
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{shard} is not a readable tar file ({error}): {hint}") from error


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError if the members, all read by now, ended before the archive does, at damage or where it is cut off.

    `tarfile` takes any unreadable header but the first for the end.
    """
    size = os.fstat(tar.fileobj.fileno()).st_size
    if size - tar.offset < BLOCK:
        raise tarfile.ReadError(f"unexpected end of data at byte {size}")
    tar.fileobj.seek(tar.offset)
    if any(tar.fileobj.read(BLOCK)):
        raise tarfile.ReadError(f"damaged header at byte {tar.offset}")
    if size - tar.offset > MOST_ZEROS or any(tar.fileobj.read()):
        raise tarfile.ReadError(
            f"its members end at byte {tar.offset} of {size}: part of it is zeros, or it is joined with another, or "
            "written by tar -b above 63"
        )


def _complete(shard: str, key: str, image: tuple[int, int, str] | None, label: int | None) -> tuple[int, int, int, str]:
    if image is None:
        raise ValueError(f"{shard}: sample {key} has no image (suffixes {', '.join(SUFFIXES)})")
    if label is None:
        raise ValueError(f'{shard}: sample {key} has no label: neither {key}.cls nor "label" in {key}.json')
    return image[0], image[1], label, image[2]


def _label(shard: str, member: str, suffix: str, content: bytes, known: int | None) -> int | None:
    """The label in a member; `.cls` takes precedence over `.json`."""
    try:
        if suffix == "cls":
            return _int64(content)
        found = json.loads(content).get("label")
        return known if known is not None or found is None else _int64(found)
    except (ValueError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"{shard}/{member} holds no label ({error})") from error


def _int64(value: Any) -> int:
    number = int(value)
    if number.bit_length() > 63:
        raise ValueError("the number has more than 64 bits")
    return number
