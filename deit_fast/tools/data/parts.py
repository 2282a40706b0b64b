"""Opens a data set for `check`: each folder, shard and parquet file by itself, so that a broken one hides no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...data import Dataset
from ...data.sources import imagenet, parquet, shards
from ...data.sources.builtin import is_builtin
from ...data.sources.dataset import MOST_NUMBERED, checked_names, numbered, wrong_labels
from ...data.sources.folder import IMAGE_FILES, ImageFolder, folder_classes, listing, scan
from ...data.sources.open import Source, Splits, locate, missing_folders, open_unpacked
from ...data.sources.pack import index_file

Broken = list[tuple[str, str]]  # (name of a folder, file or image, what is wrong with it)


def open_parts(spec: str) -> tuple[Splits, Broken]:
    """The splits of a spec without what cannot be opened, and what that is; parquet files are not unpacked.

    An image whose label is no class is listed as broken and is still in its split.

    Raises:
        ValueError: there is nothing to check, or the mistake is in the spec.
    """
    if is_builtin(spec) or (source := locate(spec)).layout == "cifar":
        return open_unpacked(spec), []
    return _folders(source) if source.layout == "folders" else _archives(source)


def _note(broken: Broken, name: str | Path, error: ValueError) -> None:
    name, reason = str(name), str(error)
    broken.append((name, reason.removeprefix(name).lstrip(": /") if reason.startswith(name) else reason))


def _folders(source: Source) -> tuple[Splits, Broken]:
    splits: Splits = {}
    broken: Broken = []
    if missing := missing_folders(source):
        if not source.files:
            raise ValueError(missing)
        broken.append((str(source.root), missing))
    for split, (folder,) in source.files.items():
        try:
            if split == "train":
                splits[split] = _class_folders(folder, source.spec, None, broken)
            else:
                classes = splits["train"].classes if "train" in splits else listing(folder)[0]
                splits[split] = _validation(folder, source.spec, classes, broken)
        except ValueError as error:
            _note(broken, folder, error)
    return splits, broken


def _class_folders(root: Path, spec: str, classes: list[str] | None, broken: Broken) -> Dataset:
    found, mistakes = scan(root)
    for path, sentence in mistakes:
        _note(broken, path, ValueError(sentence))
    names = folder_classes(root, found)
    if classes is None:
        known = dict(broken)
        empty = [path for path in (str(root / names[label]) for label in found.empty()) if path not in known]
        broken += [(path, f"has no image ({IMAGE_FILES}): add images or remove the folder") for path in empty]
    else:
        advice = "is a class that the training images lack: add images of it to train/ or remove its folder"
        broken += [(str(root / name), advice) for name in sorted(set(names) - set(classes))]
        if not len(found.files):
            broken.append((str(root), f"holds no image in its class folders ({IMAGE_FILES}): add images"))
    return ImageFolder(found, spec, names if classes is None else classes)


def _validation(folder: Path, spec: str, classes: list[str], broken: Broken) -> Dataset:
    if imagenet.has_numbered_classes(folder, classes):
        return imagenet.numbered_classes(folder, spec, classes)
    if not imagenet.is_flat(folder):
        return _class_folders(folder, spec, classes, broken)
    known = imagenet.labels_beside(folder, classes)

    def label_of(file: str) -> int:
        try:
            return known(file)
        except ValueError as error:
            _note(broken, folder / file, error)
            return -1

    return imagenet.FlatFolder(folder, spec, classes, label_of)


def _archives(source: Source) -> tuple[Splits, Broken]:
    splits: Splits = {}
    broken: Broken = []
    for split, files in source.files.items():
        trained = splits["train"].classes if splits and not broken else None  # a broken file may hold a class alone
        images = (_shards if source.layout == "shards" else _parquet)(source, split, files, broken)
        if images is None:
            continue
        if not len(images.labels):
            broken.append((str(files[0]), "holds no sample"))
        images.classes = trained or _classes(images, files[0].parent)
        broken += [(images.path(index), what) for index, what in wrong_labels(images)]
        splits[split] = images
    return splits, broken


def _shards(source: Source, split: str, files: list[Path], broken: Broken) -> shards.TarShards | None:
    index = None
    if (file := index_file(files[0].parent, split)).is_file():
        try:
            index = shards.packed_index(file, files)
        except ValueError as error:
            _note(broken, file, error)
    if index is None:
        files = _sound(files, lambda shard: shards.scan([str(shard)]), broken)
        index = shards.scan(list(map(str, files)))
    return shards.TarShards(files, source.spec, [], index) if files else None


def _parquet(source: Source, split: str, files: list[Path], broken: Broken) -> parquet.ParquetRows | None:
    """The rows of the files that hold the columns of the first file in which they are found."""
    parquet.import_pyarrow()  # without it, no file is broken
    image, label = source.columns.get("image"), source.columns.get("label")
    readable = _sound(files, lambda file: parquet.opened(str(file)), broken)
    errors = []
    for file in readable:
        try:
            columns = parquet.columns_of(str(file), image, label)
            break
        except ValueError as error:
            errors.append(error)
    else:
        if errors:  # the mistake is in the spec, or in all files
            raise errors[0]
        return None

    def rows(files: list[Path]) -> parquet.ParquetRows:
        return parquet.ParquetRows(files, source.spec, *columns, classes=[])

    sound = _sound(readable, lambda file: rows([file]), broken)
    return rows(sound) if sound else None


def _sound(files: list[Path], opened: Callable[[Path], object], broken: Broken) -> list[Path]:
    """The files that can be opened by themselves."""
    sound = []
    for file in files:
        try:
            opened(file)
            sound.append(file)
        except ValueError as error:
            _note(broken, file, error)
    return sound


def _classes(images: shards.TarShards | parquet.ParquetRows, folder: Path) -> list[str]:
    """The names of the classes, or the numbers up to the largest that may be a label."""
    if isinstance(images, shards.TarShards):
        named, advice = shards.named_classes(folder), shards.ADVICE
    else:
        named, advice = images.named, parquet.ADVICE
    if named is not None:
        return checked_names(named, folder)
    labels = images.labels[images.labels < MOST_NUMBERED]
    if len(labels) < len(images.labels) and not len(labels):
        return numbered(images, advice)  # raises: not one is a label
    return list(map(str, range(int(labels.max(initial=-1)) + 1)))
