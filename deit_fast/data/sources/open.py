"""Where images come from: one spec, `--data`, opens every layout that is in use.

    train, val = open_dataset("/imagenet")              # train/<class>/…, val/<class>/… or a flat val/ with labels
    train, val = open_dataset("/shards")                # train-0000.tar …, val-0000.tar … (WebDataset)
    train, val = open_dataset("/imagenet-1k")           # data/train-00000-of-00294.parquet … (Hugging Face)
    train, val = open_dataset("/cifar")                 # cifar-10-batches-py/ or cifar-100-python/
    train, val = open_dataset("photos")                 # built in: 16 photographs, see `builtin.py`
    v2 = open_evaluation("/imagenetv2", train.classes)  # other images of the same classes
    pixels, label = decode(train.read(7)), train.labels[7]

The layout of a folder is seen from what is in it. A data set gives encoded bytes (or pixels if it stores those) and
holds its labels in one array; decoding, order and augmentation are done elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import parse_qsl

from ...files import Lock
from ...names import did_you_mean
from . import cifar, imagenet
from .builtin import BUILTIN, VALIDATION, is_builtin, write_builtin
from .dataset import Dataset, check_labels, counted
from .folder import is_image, listing, open_folder
from .index import default_cache_dir
from .pack import PACK_FILE, index_file, is_begun, is_complete, write_pack
from .parquet import ParquetRows
from .shards import TarShards, fingerprint, packed_index

LAYOUT = "a folder with train/ and val/, each with one sub-folder per class"
ALLOWED = f"--data takes {', '.join(BUILTIN)} or {LAYOUT}, or one of tar shards, parquet files or CIFAR"
# What a split is called in the names of files and folders; the first name that is there is used.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
FOLDERS = ("data", *SPLITS["train"], *SPLITS["val"])  # where shards and parquet files may lie

Files = dict[str, list[Path]]  # split → its files or its folder
Splits = dict[str, Dataset]  # of "train", "val" or both


class Source(NamedTuple):
    """A folder of images, its layout seen from what is in it."""

    spec: str  # as the user gave it
    root: Path
    columns: dict[str, str]  # of parquet files, as far as the spec names them
    layout: str  # a key of LAYOUTS
    files: Files


def open_dataset(spec: str, cache_dir: Path | None = None) -> tuple[Dataset, Dataset]:
    """The training and the validation images that a spec names.

    Args:
        spec: a built-in set, or a folder as shown above; ./photos is a folder of the same name as a built-in set.
            Ambiguous parquet columns are named as in a URL: folder?image=img&label=fine_label.
        cache_dir: where built-in sets are written; default $DEIT_FAST_CACHE, else $XDG_CACHE_HOME/deit_fast, else
            ~/.cache/deit_fast.

    Returns:
        (train, val), with equal `classes`. A class may have no validation image.

    Raises:
        ValueError: nothing usable is there, or a package for it is not installed; the text says what was found and what
            to type instead.
    """
    if is_builtin(spec):
        root = write_builtin(spec, cache_dir)
        train = open_folder(root / "train", spec)
        return train, open_folder(root / VALIDATION.get(spec, "val"), spec, train.classes)
    source = locate(spec)
    splits = open_splits(source)
    for missing, only in (("val", "training"), ("train", "validation")):
        if missing not in splits:
            names = " or ".join(SPLITS[missing])
            raise ValueError(f"--data {spec} has {only} images only: add files with {names} in their names")
    if source.layout == "parquet":
        splits = _unpacked(source, splits)
    return splits["train"], splits["val"]


def open_unpacked(spec: str) -> Splits:
    """The splits that are there, "train", "val" or both, to be read in order: parquet files are not unpacked."""
    if is_builtin(spec):
        return dict(zip(SPLITS, open_dataset(spec), strict=True))
    return open_splits(locate(spec))


def open_evaluation(spec: str, classes: list[str]) -> Dataset:
    """Images to evaluate a model on that was trained on other images of the same classes.

    Args:
        spec: a folder of class folders, or of folders 0 … C − 1 (ImageNet-V2), or a flat folder with a label file
            beside it, or a folder with one of these as val/, or any spec of `open_dataset`, for its validation images.
            A folder may lack some of the classes.
        classes: of the training images; ValueError if the images have others.
    """
    if not is_builtin(spec):
        source = locate(spec)
        splits = {"train", "val"} & set(listing(source.root)[0])
        if source.layout == "folders" and splits != {"train"}:
            return class_folders(source.root / "val" if splits else source.root, spec, classes)
    _, val = open_dataset(spec)
    if val.classes != classes:
        raise ValueError(f"the {len(val.classes)} classes of {spec} are not the {len(classes)} of the training images")
    return val


def class_folders(folder: Path, spec: str, classes: list[str]) -> Dataset:
    """Evaluation images of known classes: flat, in numbered folders, or in class folders."""
    if imagenet.is_flat(folder):
        return imagenet.FlatFolder(folder, spec, classes, imagenet.labels_beside(folder, classes))
    if imagenet.has_numbered_classes(folder, classes):
        return imagenet.numbered_classes(folder, spec, classes)
    return open_folder(folder, spec, classes)


def locate(spec: str) -> Source:
    """The folder of a spec, the layout and the files in it; ValueError says what a spec may be."""
    path, _, query = spec.partition("?")
    columns = dict(parse_qsl(query))
    if unknown := set(columns) - {"image", "label"}:
        raise ValueError(f"--data {spec}: a spec names the columns image and label, not {', '.join(sorted(unknown))}")
    root = Path(path).expanduser()
    if not root.exists():
        hint = did_you_mean(spec.lower(), BUILTIN, most=1, cutoff=0.6) or ALLOWED
        raise ValueError(f"--data {spec} is neither a folder nor a built-in set: {hint}")
    if not root.is_dir():
        raise ValueError(f"--data {spec} is a file: {ALLOWED}")
    for layout, (find, _) in LAYOUTS.items():
        if files := find(root, spec):
            return Source(spec, root, columns, layout, files)
    return Source(
        spec, root, columns, "folders", {split: [root / split] for split in SPLITS if split in listing(root)[0]}
    )


def open_splits(source: Source) -> Splits:
    """The splits of a source; ValueError for what training cannot use."""
    if source.layout == "folders" and (missing := missing_folders(source)):
        raise ValueError(missing)
    splits: Splits = {}
    for split, files in source.files.items():
        classes = splits["train"].classes if splits else None
        splits[split] = dataset = LAYOUTS[source.layout].open(source, split, files, classes)
        if not len(dataset.labels):
            raise ValueError(f"{files[0]} holds no sample")
        check_labels(dataset)
    return splits


def missing_folders(source: Source) -> str:
    """What is wrong with a folder that lacks train/ or val/, and what to type instead; "" where it has both."""
    root, (folders, _) = source.root, listing(source.root)
    missing = [f"{split}/" for split in SPLITS if split not in folders]
    if not missing:
        return ""
    # The usual slip: the class folders themselves, often the train/ of a complete data set.
    if any(is_image(file) for folder in folders for file in listing(root / folder)[1]):
        fix = "its sub-folders look like classes: put them into a train/ folder, and held-out images into val/"
        if root.name in ("train", "val") and {"train", "val"} <= set(listing(root.resolve().parent)[0]):
            fix = f"type --data {root.resolve().parent}"
    else:
        fix = ALLOWED
    found = f"only {counted(folders, 'folder', 'folders')}" if folders else "no folder at all"
    return f"--data {source.spec} has no {' and no '.join(missing)} inside but {found}: {fix}"


def _find_cifar(root: Path, spec: str) -> Files:
    for folder in (root, *(root / name for name in cifar.LAYOUTS)):
        if folder.name in cifar.LAYOUTS and folder.is_dir():
            return {split: [folder] for split in SPLITS}
    return {}


def _open_cifar(source: Source, split: str, files: list[Path], classes: list[str] | None) -> Dataset:
    return cifar.Cifar(files[0], split, source.spec)


def _find_folders(root: Path, spec: str) -> Files:
    if {"train", "val"} <= set(listing(root)[0]) and listing(root / "train")[0]:
        return {split: [root / split] for split in SPLITS}
    return {}


def _open_folders(source: Source, split: str, files: list[Path], classes: list[str] | None) -> Dataset:
    return open_folder(files[0], source.spec) if classes is None else class_folders(files[0], source.spec, classes)


def _find_shards(root: Path, spec: str) -> Files:
    if (root / PACK_FILE).is_file() and not is_complete(root):
        raise ValueError(f"{root} is only packed in part: run the same deit-fast data pack command again")
    return _split_files(root, (".tar",))


def _open_shards(source: Source, split: str, files: list[Path], classes: list[str] | None) -> Dataset:
    index = index_file(files[0].parent, split)
    return TarShards(files, source.spec, classes, packed_index(index, files) if index.is_file() else None)


def _find_parquet(root: Path, spec: str) -> Files:
    if _split_files(root, (".tar.gz", ".tgz")):
        raise ValueError(
            f"--data {spec} holds compressed shards, which cannot be read in random order: unpack them (gunzip)"
        )
    return _split_files(root, (".parquet",))


def _open_parquet(source: Source, split: str, files: list[Path], classes: list[str] | None) -> Dataset:
    return ParquetRows(files, source.spec, **source.columns, classes=classes)


class Layout(NamedTuple):
    find: Callable[[Path, str], Files]  # split → its files or folder; {} where the folder has another layout
    open: Callable[[Source, str, list[Path], list[str] | None], Dataset]  # one split, of the classes of training


# The first that finds something is taken: archives beside class folders are what these were often unpacked from.
LAYOUTS = {
    "cifar": Layout(_find_cifar, _open_cifar),
    "folders": Layout(_find_folders, _open_folders),
    "shards": Layout(_find_shards, _open_shards),
    "parquet": Layout(_find_parquet, _open_parquet),
}


def _split_files(root: Path, suffixes: tuple[str, ...]) -> Files:
    """Files by split, in the folder or in FOLDERS below it."""
    found: dict[str, dict[str, list[Path]]] = {split: {} for split in SPLITS}
    for folder in (root, *(root / name for name in listing(root)[0] if name in FOLDERS)):
        for file in listing(folder)[1]:
            if not file.endswith(suffixes):
                continue
            # The file's own name decides, then that of its folder: data/test-0.tar, train/000.tar
            words = (*re.split(r"[^a-z]+", file.lower()), *((folder.name.lower(),) if folder != root else ()))
            for split, names in SPLITS.items():
                if named := [word for word in words if word in names][:1]:
                    found[split].setdefault(named[0], []).append(folder / file)
                    break
    return {
        split: next(by_name[name] for name in SPLITS[split] if name in by_name)
        for split, by_name in found.items()
        if by_name
    }


def _unpacked(source: Source, rows: Splits) -> Splits:
    """Shards in the cache folder with the bytes of parquet files, written on the first call."""
    root = source.root
    files = [str(file) for split in source.files.values() for file in split]
    version = hashlib.sha256("\n".join(fingerprint(files, stamps=True)).encode()).hexdigest()[:16]
    columns = cast(ParquetRows, rows["train"])
    name = hashlib.sha256(f"{root.absolute()} {columns.image} {columns.label}".encode()).hexdigest()[:16]
    cache = default_cache_dir() / f"parquet-{name}"
    for each in rows.values():
        each.name = str(root.absolute())  # unpacked once, however the folder is spelled

    def is_written() -> bool:
        return is_begun(cache, rows, version) and is_complete(cache)

    if not is_written():
        with Lock(cache.with_name(f"{cache.name}.lock")) as lock:
            lock.wait(f"unpacks {root}")
            if not is_written():
                _unpack(root, files, rows, cache, version)
    shards = {split: sorted(cache.glob(f"{split}-*.tar")) for split in rows}
    return open_splits(Source(source.spec, cache, {}, "shards", shards))


def _unpack(root: Path, files: list[str], rows: Splits, cache: Path, version: str) -> None:
    """Write the shards, or those that are missing."""
    if cache.exists() and not is_begun(cache, rows, version):
        shutil.rmtree(cache)  # of files that have changed
    need = sum(Path(file).stat().st_size for file in files)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free + sum(file.stat().st_size for file in cache.iterdir())
    if free < need * 1.05:
        raise ValueError(
            f"parquet files are unpacked once, which takes {need / 1e9:.0f} GB, but the disk of {cache} has "
            f"{free / 1e9:.0f} GB: set DEIT_FAST_CACHE to a folder on another disk"
        )
    print(f"unpacking {root} once, {need / 1e9:.1f} GB, to {cache}", file=sys.stderr)
    write_pack(rows, cache, version=version)
