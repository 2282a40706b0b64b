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
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ...files import check_readable, denied, shown
from .dataset import Dataset, checked_names, numbered
from .folder import SUFFIXES, is_image
from .index import CACHED_FROM, Names, cache_arrays, from_arrays, index_path, load_arrays, to_arrays

ADVICE = "mend or remove the sample"
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
        classes: class names; None: those of `named_classes`, else the numbers up to the largest label.
        index: of these shards; None: the one in the cache folder, else a scan.
    """

    def __init__(
        self, shards: Sequence[Path], name: str, classes: list[str] | None = None, index: ShardIndex | None = None
    ):
        self.name = name
        self._shards = [str(shard) for shard in shards]
        self._index = _kept_scan(self._shards) if index is None else index
        self.labels = self._index.labels
        if classes is None:
            classes = named_classes(shards[0].parent)
        self.classes = numbered(self, ADVICE) if classes is None else classes

    def read(self, index: int) -> bytes:
        size = int(self._index.size[index])
        with open(self._shards[self._index.shard[index]], "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, int(self._index.offset[index]))
        if len(data) < size:
            raise OSError("the shard has become shorter since it was indexed")
        return data

    def path(self, index: int) -> str:
        return shown(f"{self._shards[self._index.shard[index]]}/{self._index.names[index]}")


def fingerprint(shards: Sequence[str | Path], *, stamps: bool) -> NDArray[np.str_]:
    """What an index is valid for: names and sizes of the shards, with `stamps` also when they were modified."""
    try:
        status = [os.stat(shard) for shard in shards]
    except OSError as error:
        raise ValueError(f"cannot read the shard {error.filename} ({error.strerror})") from error
    return np.array([
        f"{os.path.basename(shard)} {each.st_size}" + (f" {each.st_mtime_ns}" if stamps else "")
        for shard, each in zip(shards, status, strict=True)
    ])  # fmt: skip


def named_classes(folder: Path) -> list[str] | None:
    """The class names in the classes.txt of a folder of shards; None where there is no such file."""
    file = folder / CLASSES_FILE
    if not file.is_file():
        return None
    return checked_names(file.read_text(errors="backslashreplace").removesuffix("\n").split("\n"), file)


def scan(shards: Sequence[str]) -> ShardIndex:
    """The index of a list of shards, from their headers."""
    columns: tuple[list, ...] = ([], [], [], [], [])
    for number, shard in enumerate(shards):
        for sample in _samples(shard):
            for column, value in zip(columns, (number, *sample), strict=True):
                column.append(value)
    shard_of, *numbers, names = columns
    offset, size, labels = (np.array(each, np.int64) for each in numbers)
    return ShardIndex(np.array(shard_of, np.int32), offset, size, labels, Names.of(names))


def packed_index(file: Path, shards: Sequence[Path]) -> ShardIndex:
    """The index that `pack` wrote; ValueError where it cannot be read or is that of other shards."""
    try:
        check_readable(file)
    except PermissionError as error:
        raise ValueError(denied(file)) from error
    arrays = load_arrays(file)
    if arrays is None or not np.array_equal(arrays["valid_for"], fingerprint(shards, stamps=False)):
        raise ValueError(
            f"the shards beside {file} are not those that it lists: restore the missing or damaged ones "
            "(deit-fast data check names them), or remove those and run the same deit-fast data pack command again"
        )
    return from_arrays(ShardIndex, arrays)


def _kept_scan(shards: list[str]) -> ShardIndex:
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
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not member.isfile() or os.path.basename(member.name).startswith("."):
                        continue
                    folder, base = os.path.split(member.name)
                    stem, _, suffix = base.partition(".")
                    if (next_key := os.path.join(folder, stem)) != key:
                        if key:
                            yield _complete(shard, key, image, label)
                        key, image, label = next_key, None, None
                    if "." not in suffix and is_image(f".{suffix}"):  # 0.seg.png is another field of sample 0
                        if image is not None:
                            raise ValueError(f"{shard}: sample {key} has two images ({image[2]}, {member.name})")
                        image = (member.offset_data, member.size, member.name)
                    elif suffix in ("cls", "json"):
                        content = cast(IO[bytes], tar.extractfile(member)).read()  # of a file, so never None
                        label = _label(shard, member.name, suffix, content, label)
                _check_end(file, tar.offset)
            if key:
                yield _complete(shard, key, image, label)
    except PermissionError as error:
        raise ValueError(denied(shard)) from error
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{shard} is not a readable tar file ({error}): {hint}") from error


def _check_end(file: BinaryIO, end: int) -> None:
    """Raise ReadError if the members ended, at byte `end`, before the archive does: at damage or where it is cut off.

    `tarfile` takes any unreadable header but the first for the end.
    """
    size = os.fstat(file.fileno()).st_size
    if size - end < BLOCK:
        raise tarfile.ReadError(f"unexpected end of data at byte {size}")
    file.seek(end)
    if any(file.read(BLOCK)):
        raise tarfile.ReadError(f"damaged header at byte {end}")
    if size - end > MOST_ZEROS or any(file.read()):
        raise tarfile.ReadError(
            f"its members end at byte {end} of {size}: part of it is zeros, or it is joined with another, or "
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
