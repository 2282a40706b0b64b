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
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

from ...files import Lock, shown
from ...names import did_you_mean
from . import cifar, imagenet, parquet
from .builtin import BUILTIN, VALIDATION, write_builtin
from .dataset import Broken, Dataset, counted, note
from .folder import ImageFolder, is_image, listing
from .index import default_cache_dir
from .pack import PACK_FILE, Settings, index_file, is_begun, is_complete, pack
from .shards import TarShards, fingerprint

LAYOUT = "a folder with train/ and val/, each with one sub-folder per class"
ALLOWED = f"--data takes {', '.join(BUILTIN)} or {LAYOUT}, or one of tar shards, parquet files or CIFAR"
# What a split is called in the names of files and folders; the first name that is there is used.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
FOLDERS = ("data", *SPLITS["train"], *SPLITS["val"])  # where shards and parquet files may lie


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
    if spec in BUILTIN:
        root = write_builtin(spec, cache_dir)
        train = ImageFolder(root / "train", spec)
        return train, ImageFolder(root / VALIDATION.get(spec, "val"), spec, train.classes)
    root, columns = _root(spec)
    opened = _open_files(root, spec, columns)
    if "train" in opened and "val" in opened:
        return opened["train"], opened["val"]
    if opened:
        missing = "val" if "train" in opened else "train"
        raise ValueError(
            f"--data {spec} has {'training' if missing == 'val' else 'validation'} images only: "
            f"add files with {' or '.join(SPLITS[missing])} in their names"
        )
    splits = _folders(root, spec)
    return splits["train"], splits["val"]


def open_unpacked(spec: str, broken: Broken | None = None) -> dict[str, Dataset]:
    """The splits that are there, "train", "val" or both, to be read in order: parquet files are not unpacked.

    Unreadable shards, parquet files and folders and labels outside the classes are raised, or appended to `broken`; the
    splits are then of the rest.
    """
    if spec not in BUILTIN:
        root, columns = _root(spec)
        opened = _open_files(root, spec, columns, unpack=False, broken=broken)
        return opened if opened or broken else _folders(root, spec, broken)
    train, val = open_dataset(spec)
    return {"train": train, "val": val}


def open_evaluation(spec: str, classes: list[str]) -> Dataset:
    """Images to evaluate a model on that was trained on other images of the same classes.

    Args:
        spec: a folder of class folders, or of folders 0 … C − 1 (ImageNet-V2), or a flat folder with a label file
            beside it, or a folder with one of these as val/, or any spec of `open_dataset`, for its validation images.
            A folder may lack some of the classes.
        classes: of the training images; ValueError if the images have others.
    """
    if spec not in BUILTIN:
        root, columns = _root(spec)
        splits = {"train", "val"} & set(listing(root)[0])
        if splits != {"train"} and not _open_files(root, spec, columns):
            return _class_folders(root / "val" if splits else root, spec, classes)
    _, val = open_dataset(spec)
    if val.classes != classes:
        raise ValueError(f"the {len(val.classes)} classes of {spec} are not the {len(classes)} of the training images")
    return val


def classes_of_data(spec: str, count: int) -> list[str]:
    """The class names of a model with `count` outputs, taken from the data that it is evaluated on.

    ImageNet's synsets for 1000 outputs and any folder of ImageNet: some of its classes, ImageNet-V2, or flat. Else the
    classes of the training images that lie beside these, or the class folders themselves; where their names are
    numbers, the number is the label.
    """
    from timm.data import ImageNetInfo  # which reading images does not wait for

    root = Path(spec).expanduser()
    classes: list[str] = []
    if spec not in BUILTIN and root.is_dir():
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


def _root(spec: str) -> tuple[Path, dict[str, str]]:
    """The folder of a spec and the columns it names."""
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
    return root, columns


def _open_files(
    root: Path, spec: str, columns: dict[str, str], unpack: bool = True, broken: Broken | None = None
) -> dict[str, Dataset]:
    """The splits of a folder of CIFAR, shards or parquet files; empty if it is something else."""
    for folder in (root, *(root / name for name in cifar.LAYOUTS)):
        if folder.name in cifar.LAYOUTS and folder.is_dir():
            return {split: cifar.Cifar(folder, split, spec) for split in SPLITS}
    folders = listing(root)[0]
    if {"train", "val"} <= set(folders) and listing(root / "train")[0]:
        return {}  # archives beside class folders are ignored: the folders were often unpacked from them
    if (root / PACK_FILE).is_file() and not is_complete(root):
        raise ValueError(f"{root} is only packed in part: run the same deit_fast.data pack command again")
    if shards := _split_files(root, (".tar",)):
        return _open_shards(shards, spec, broken)
    if any(_split_files(root, (".tar.gz", ".tgz")).values()):
        raise ValueError(
            f"--data {spec} holds compressed shards, which cannot be read in random order: unpack them (gunzip)"
        )
    if files := _split_files(root, (".parquet",)):
        name = str(root.absolute()) if unpack else spec  # unpacked once, however the folder is spelled
        rows: dict[str, Dataset] = {}
        for split, paths in files.items():
            classes = rows["train"].classes if rows and not broken else None  # `broken`: a class may have no file left
            if tables := parquet.readable(paths, broken):
                rows[split] = parquet.ParquetRows(tables, name, **columns, classes=classes, broken=broken)
        return _unpacked(root, spec, rows) if unpack else rows
    return {}


def _split_files(root: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
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


def _open_shards(shards: dict[str, list[Path]], spec: str, broken: Broken | None = None) -> dict[str, Dataset]:
    opened: dict[str, Dataset] = {}
    for split, paths in shards.items():
        index = index_file(paths[0].parent, split)
        classes = opened["train"].classes if opened and not broken else None  # `broken`: a class may have no shard left
        opened[split] = TarShards(paths, spec, classes, index if index.is_file() else None, broken)
    return opened


def _unpacked(root: Path, spec: str, rows: dict[str, parquet.ParquetRows]) -> dict[str, Dataset]:
    """Shards in the cache folder with the bytes of parquet files, written on the first call."""
    files = [file for each in rows.values() for file in each.files]
    version = hashlib.sha256("\n".join(fingerprint(files, stamps=True)).encode()).hexdigest()[:16]
    columns = next(iter(rows.values()))
    name = hashlib.sha256(f"{root.absolute()} {columns.image} {columns.label}".encode()).hexdigest()[:16]
    cache = default_cache_dir() / f"parquet-{name}"
    begun = partial(is_begun, cache, rows, Settings(), version)
    if not (begun() and is_complete(cache)):
        with Lock(cache.with_name(f"{cache.name}.lock")) as lock:
            lock.wait(f"unpacks {root}")
            if not (begun() and is_complete(cache)):
                _unpack(root, rows, cache, version)
    return _open_shards({split: sorted(cache.glob(f"{split}-*.tar")) for split in rows}, spec)


def _unpack(root: Path, rows: dict[str, parquet.ParquetRows], cache: Path, version: str) -> None:
    """Write the shards, or those that are missing."""
    if cache.exists() and not is_begun(cache, rows, Settings(), version):
        shutil.rmtree(cache)  # of files that have changed
    need = sum(Path(file).stat().st_size for each in rows.values() for file in each.files)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free + sum(file.stat().st_size for file in cache.iterdir())
    if free < need * 1.05:
        raise ValueError(
            f"parquet files are unpacked once, which takes {need / 1e9:.0f} GB, but the disk of {cache} has "
            f"{free / 1e9:.0f} GB: set DEIT_FAST_CACHE to a folder on another disk"
        )
    print(f"unpacking {root} once, {need / 1e9:.1f} GB, to {cache}", file=sys.stderr)
    pack(rows, cache, Settings(), version=version)


def _folders(root: Path, spec: str, broken: Broken | None = None) -> dict[str, Dataset]:
    """train/ and val/ of class folders; where `broken` is given, without a split that cannot be opened."""
    opened: dict[str, Dataset] = {}
    for split in _splits(root, spec, broken):
        try:
            if split == "train":
                opened[split] = ImageFolder(root / split, spec, broken=broken)
            else:
                classes = opened["train"].classes if "train" in opened else listing(root / split)[0]
                opened[split] = _class_folders(root / split, spec, classes, broken)
        except ValueError as error:
            note(broken, str(root / split), error)
    return opened


def _class_folders(folder: Path, spec: str, classes: list[str], broken: Broken | None = None) -> Dataset:
    """Evaluation images of known classes: flat, in numbered folders, or in class folders."""
    if imagenet.is_flat(folder):
        return imagenet.flat_validation(folder, spec, classes, broken)
    if imagenet.has_numbered_classes(folder, classes):
        return imagenet.numbered_classes(folder, spec, classes)
    return ImageFolder(folder, spec, classes, broken)


def _splits(root: Path, spec: str, broken: Broken | None) -> list[str]:
    """The splits that a folder has; a missing one is a ValueError, or is appended to `broken` if the other is there."""
    folders, _ = listing(root)
    there = [split for split in SPLITS if split in folders]
    missing = [f"{split}/" for split in SPLITS if split not in folders]
    if not missing:
        return there
    # The usual slip: the class folders themselves, often the train/ of a complete data set.
    if any(is_image(file) for folder in folders for file in listing(root / folder)[1]):
        fix = "its sub-folders look like classes: put them into a train/ folder, and held-out images into val/"
        if root.name in ("train", "val") and {"train", "val"} <= set(listing(root.resolve().parent)[0]):
            fix = f"type --data {root.resolve().parent}"
    else:
        fix = ALLOWED
    found = f"only {counted(folders, 'folder', 'folders')}" if folders else "no folder at all"
    reason = f"--data {spec} has no {' and no '.join(missing)} inside but {found}: {fix}"
    note(broken if there else None, str(root), ValueError(reason))
    return there
