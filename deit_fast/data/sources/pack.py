"""Pack a data set into tar shards: few large files instead of a million small ones, in WebDataset's layout.

    packed/train-00000.tar … val-00000.tar …     one image and one .cls a sample, in the order of the source
    packed/train.index.npz  val.index.npz        where each image is, so that opening takes no scan
    packed/classes.txt  pack.json                class names; settings and source

The images keep their order, their labels and their bytes (or are re-encoded to a maximum side). So a run on the packed
set sees the same images in the same order as a run on the source, bit for bit when nothing was re-encoded. Any
WebDataset reader reads the shards; one that streams should shuffle, since a folder is sorted by class.

Shard k holds the images k·n … (k + 1)·n − 1. A shard gets its name when it is complete, compared with what was written,
and on disk; so the same command continues an interrupted one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...files import write_file
from ..decode import BadImage
from .dataset import Dataset, ahead
from .folder import SUFFIXES
from .index import save_arrays, to_arrays
from .shards import CLASSES_FILE, fingerprint, scan

PACK_FILE = "pack.json"
FORMATS = {  # first bytes → suffix; a file of another format keeps its own suffix
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}

AS_STORED: Mapping[str, int | None] = {"max_side": 0, "quality": None, "shard_images": 5000}


def stored(image: bytes | NDArray[np.uint8]) -> bytes:
    """The bytes of an image's file; of an image in a decoded set, a PNG, which loses nothing."""
    return image if isinstance(image, bytes) else encoded(Image.fromarray(image), "PNG")


def encoded(image: Image.Image, format: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write_pack(
    splits: Mapping[str, Dataset],
    folder: Path,
    form: Mapping[str, int | None] = AS_STORED,
    *,
    encode: Callable[[bytes | NDArray[np.uint8]], bytes] = stored,
    threads: int = 4,
    version: str = "",
    advance: Callable[[int], None] = lambda images: None,
) -> None:
    """Write or continue a packed data set of "train", "val" or both.

    Args:
        form: what pack.json says of the images that `encode` gives, and of the shards.
        version: of the source; a folder begun from another version is refused. "": a digest of the images' names.
        advance: called with the number of images done since the last call, those of shards found complete included.

    Raises:
        BadImage: an image cannot be packed; the text names it.
        ValueError: the folder holds something else, or cannot be written to.
    """
    description = _describe(splits, form, version)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _begin(folder, description)
        names = "".join(f"{name}\n" for name in next(iter(splits.values())).classes)
        write_file(folder / CLASSES_FILE, lambda temporary: temporary.write_text(names))
        with ThreadPoolExecutor(threads, "deit_fast-pack") as pool:
            for split, dataset in splits.items():
                read = partial(_read, dataset, encode)
                coming = partial(ahead, pool, read, most=4 * threads)
                _write_split(split, dataset, folder, description["shard_images"], coming, advance)
    except BadImage as error:
        raise BadImage(
            f"{error}: repair it and run the same command again, or remove it and {folder}, which was begun with it "
            "(deit-fast data check lists all)"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write to {folder} ({reason}): check its space and permissions") from error


def _read(dataset: Dataset, encode: Callable[[bytes | NDArray[np.uint8]], bytes], index: int) -> bytes:
    try:
        return encode(dataset.read(index))
    except (BadImage, OSError) as error:
        raise BadImage(f"{dataset.path(index)}: {error}") from error


def index_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.index.npz"


def is_begun(folder: Path, splits: Mapping[str, Dataset], version: str) -> bool:
    """Whether `write_pack` was called here with these arguments and the bytes as they are stored."""
    return _same(_read_description(folder), _describe(splits, AS_STORED, version))


def _same(found: dict[str, Any] | None, description: dict[str, Any]) -> bool:
    """Whether a folder was begun with this description; older ones have no version."""
    return found is not None and {**found, "version": found.get("version") or description["version"]} == description


def is_complete(folder: Path) -> bool:
    """Whether `write_pack` was called here and has written all splits that it was given."""
    found = _read_description(folder)
    return found is not None and all(index_file(folder, split).is_file() for split in found["source"])


def _describe(splits: Mapping[str, Dataset], form: Mapping[str, int | None], version: str) -> dict[str, Any]:
    if not version:  # the names of all images in their order: a pack is continued only with the list it began with
        digest = hashlib.sha256()
        for split, dataset in splits.items():
            for index in range(len(dataset)):
                digest.update(os.fsencode(f"{split} {dataset.path(index)}\n"))
        version = digest.hexdigest()[:16]
    source = {split: f"{dataset.name}: {len(dataset)} images" for split, dataset in splits.items()}
    return {"source": source, **form, "version": version}


def _read_description(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / PACK_FILE).read_text())
        if not isinstance(found, dict) or not isinstance(found.get("source"), dict):
            raise ValueError("it names no source")
        return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / PACK_FILE} cannot be read ({error}): remove {folder} and pack again") from error


def _begin(folder: Path, description: dict[str, Any]) -> None:
    """Write pack.json into an empty folder, or find the same there."""
    found = _read_description(folder)
    if found is not None and not _same(found, description):
        raise ValueError(
            f"{folder} was packed from another source or list of images, or with other settings ({json.dumps(found)}, "
            f"now {json.dumps(description)}): choose another folder or remove it"
        )
    if found is None:
        if strangers := sorted(os.listdir(folder)):
            raise ValueError(f"{folder} is not empty (it holds {strangers[0]}): choose another folder")
        write_file(folder / PACK_FILE, lambda temporary: temporary.write_text(json.dumps(description, indent=1)))


def _write_split(
    split: str,
    dataset: Dataset,
    folder: Path,
    shard_images: int,
    coming: Callable[[range], Iterator[bytes]],
    advance: Callable[[int], None],
) -> None:
    """Write the shards that are missing, then the index of all."""
    shards: list[str] = []
    for number, first in enumerate(range(0, len(dataset), shard_images)):
        shard = folder / f"{split}-{number:05}.tar"
        shards.append(str(shard))
        images = range(first, min(first + shard_images, len(dataset)))
        if shard.exists():
            advance(len(images))
        else:
            write_file(shard, partial(_write_shard, dataset, zip(images, coming(images), strict=True), advance))
    try:
        index = scan(shards)
    except ValueError as error:
        raise ValueError(f"{error}; or remove it, and the same command writes it anew") from error
    if not np.array_equal(index.labels, dataset.labels):
        raise ValueError(f"the images of {dataset.name} have changed since {folder} was begun: remove it")
    save_arrays(index_file(folder, split), {**to_arrays(index), "valid_for": fingerprint(shards, stamps=False)})


def _write_shard(
    dataset: Dataset, encoded: Iterable[tuple[int, bytes]], advance: Callable[[int], None], shard: Path
) -> None:
    """Write (index, bytes) of images into a file, read it back and compare."""
    written: list[tuple[str, int]] = []
    with tarfile.open(shard, "x", format=tarfile.USTAR_FORMAT) as tar:
        for index, data in encoded:
            key, suffix = _member(dataset.path(index), index, data)
            for name, content in ((key + suffix, data), (f"{key}.cls", str(dataset.labels[index]).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            written.append((key + suffix, zlib.crc32(data)))
            advance(1)
    again = scan([str(shard)])
    with open(shard, "rb", buffering=0) as file:
        found = [
            (name, zlib.crc32(os.pread(file.fileno(), int(size), int(offset))))
            for name, size, offset in zip(again.names, again.size, again.offset, strict=True)
        ]
    if found != written:
        raise OSError("a shard read back differs from what was written: is the disk sound?")


def _member(path: str, index: int, data: bytes) -> tuple[str, str]:
    """(key, suffix) of a sample: its number, which is unique, with its file's name for people; the format's suffix.

    A key has no dot, as WebDataset splits there.
    """
    stem, suffix = os.path.splitext(os.path.basename(path))
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:48]
    webp = ".webp" if data[8:12] == b"WEBP" else None
    found = next((kind for start, kind in FORMATS.items() if data.startswith(start)), webp)
    return f"{index:08}-{readable}", found or (suffix.lower() if suffix.lower() in SUFFIXES else ".jpg")
