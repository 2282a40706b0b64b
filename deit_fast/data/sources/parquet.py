"""Hugging Face's parquet files: encoded images in one column, labels in another.

    folder/data/train-00000-of-00294.parquet   validation-00000-of-00014.parquet   …

The columns are found by the features that `datasets` writes into the file, else by their types; where several fit, the
spec names one: `--data 'folder?image=img&label=fine_label'`.

Parquet is read in groups of hundreds of rows, so reading single images in random order would decompress everything
hundreds of times. For training, `open_dataset` therefore packs a split once into shards in the cache folder (see
`pack.py`); `ParquetRows` itself is for reading front to back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files import denied, shown
from .dataset import Broken, Dataset, check_labels, checked_names, note, numbered
from .index import locate

if TYPE_CHECKING:
    import pyarrow

GROUPS_KEPT = 2  # row groups in memory: threads that read front to back are never further apart


class ParquetRows(Dataset):
    """One split: the rows of parquet files (`readable`), in their order.

    Args:
        image, label: columns; None: found as described above.
        classes: class names; None: those of the label's feature, else the numbers up to the largest label.
        broken: where given, files without readable columns and labels outside the classes are appended to it instead of
            raised.
    """

    def __init__(
        self,
        tables: dict[str, pyarrow.parquet.ParquetFile],
        name: str,
        image: str | None = None,
        label: str | None = None,
        classes: list[str] | None = None,
        broken: Broken | None = None,
    ):
        self.name = name
        first, self.image, self.label = _columns(tables, image, label, anywhere=broken is not None)
        features = _features(tables[first].schema_arrow)
        labels: dict[str, np.ndarray] = {}
        for file, table in tables.items():
            try:
                _check_columns(file, table.schema_arrow, (self.image, self.label))
                labels[file] = _integers(file, table, self.label)
            except ValueError as error:
                note(broken, file, error)
        self.files = list(labels)
        self.labels = np.concatenate([np.empty(0, np.int64), *labels.values()])
        self._file_ends = np.cumsum([len(each) for each in labels.values()], dtype=np.int64)
        metadata = [tables[file].metadata for file in self.files]
        self._groups = [(file, group) for file, each in enumerate(metadata) for group in range(each.num_row_groups)]
        sizes = [metadata[file].row_group(group).num_rows for file, group in self._groups]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        if classes is None:
            named = features.get(self.label, {}).get("names")
            advice = "name the column of labels, --data 'FOLDER?label=COLUMN'"
            classes = numbered(self, advice, broken) if named is None else list(named)
        self.classes = checked_names(classes, first)
        check_labels(self, broken)
        self._kept: dict[int, Any] = {}
        self._lock = threading.Lock()

    def read(self, index: int) -> bytes:
        group, row = locate(self._ends, index)
        value = self._group(group)[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise OSError("the row holds no bytes")
        return data

    def path(self, index: int) -> str:
        file, row = locate(self._file_ends, index)
        return f"{self.files[file]}[{row}]"

    def _group(self, group: int) -> Any:
        with self._lock:
            if group not in self._kept:
                while len(self._kept) >= GROUPS_KEPT:
                    self._kept.pop(next(iter(self._kept)))
                file, number = self._groups[group]
                try:
                    table = _opened(self.files[file]).read_row_group(number, columns=[self.image])
                    self._kept[group] = table.column(self.image).combine_chunks()
                except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are the first two
                    raise OSError(f"row group {number} is damaged ({error})") from error
            return self._kept[group]


def readable(files: Sequence[Path], broken: Broken | None = None) -> dict[str, pyarrow.parquet.ParquetFile]:
    """The readable parquet files among these, by path; the errors of the others are appended to `broken` or raised."""
    _pyarrow()
    tables = {}
    for file in map(str, files):
        try:
            tables[file] = _opened(file)
        except ValueError as error:
            note(broken, file, error)
    return tables


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet files need pyarrow: type pip install 'deit-fast[parquet]'") from error
    return pyarrow


def _opened(file: str) -> pyarrow.parquet.ParquetFile:
    pyarrow = _pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(file)
    except PermissionError as error:
        raise ValueError(denied(file)) from error
    except UnicodeEncodeError as error:
        raise ValueError(f"pyarrow reads no path that is not UTF-8: rename {shown(file)} or its folder") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{file} is not a readable parquet file ({error}): copy or download it again") from error


def _features(schema: pyarrow.Schema) -> dict[str, dict[str, Any]]:
    """What `datasets` wrote about columns: {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names"}}."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    types = _pyarrow().types
    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _column(schema: pyarrow.Schema, file: str, what: str, feature: str, fits: Callable[[Any], bool]) -> str:
    """The only column with this feature of `datasets`, else the only one whose type fits."""
    columns = [column for column, each in _features(schema).items() if each.get("_type") == feature]
    columns = columns or [field.name for field in schema if fits(field.type)]
    if len(columns) == 1:
        return columns[0]
    if what == "label" and what in columns:
        return what
    found = f"{len(columns)} columns ({', '.join(columns)}) could be" if columns else "no column looks like"
    example = (columns or schema.names)[0]
    raise ValueError(f"{file}: {found} the {what}: name it, --data 'FOLDER?{what}={example}'")


def _columns(
    tables: dict[str, pyarrow.parquet.ParquetFile], image: str | None, label: str | None, anywhere: bool
) -> tuple[str, str, str]:
    """The first file in which both columns are found, the column of images and that of labels.

    `anywhere`: files after the first are looked at too; if none has the columns, the first one's error is raised.
    """
    errors = []
    for file, table in tables.items():
        schema = table.schema_arrow
        try:
            found = (
                image or _column(schema, file, "image", "Image", _holds_bytes),
                label or _column(schema, file, "label", "ClassLabel", _pyarrow().types.is_integer),
            )
            _check_columns(file, schema, found)  # the spec may name one that no file has
            return file, *found
        except ValueError as error:
            errors.append(error)
            if not anywhere:
                break
    raise errors[0]


def _check_columns(file: str, schema: pyarrow.Schema, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in schema.names:
            raise ValueError(f"{file} has no column {column!r}, only {', '.join(schema.names)}")


def _integers(file: str, table: pyarrow.parquet.ParquetFile, column: str) -> np.ndarray:
    try:
        values = table.read(columns=[column]).column(column)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file} has no readable column {column!r} ({error})") from error
    if values.null_count:
        raise ValueError(f"{file} has {values.null_count} rows without a value of {column!r}")
    numbers = values.to_numpy()
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"{file}: the labels in {column!r} must be integers, got {values.type}")
    if len(numbers) and numbers.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{file}[{numbers.argmax()}] has label {numbers.max()}: labels are signed integers of 64 bits")
    return numbers.astype(np.int64)
