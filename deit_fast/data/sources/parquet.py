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
from numpy.typing import NDArray

from ...files import denied, shown
from .dataset import Dataset, checked_names, numbered
from .index import locate

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped]  # it has no stubs

ADVICE = "name the column of labels, --data 'FOLDER?label=COLUMN'"
GROUPS_KEPT = 2  # row groups in memory: threads that read front to back are never further apart


class ParquetRows(Dataset):
    """One split: the rows of parquet files, in their order.

    Args:
        image, label: columns; None: found in the first file as described above.
        classes: class names; None: those of the label's feature, else the numbers up to the largest label.
    """

    def __init__(
        self,
        files: Sequence[Path],
        name: str,
        image: str | None = None,
        label: str | None = None,
        classes: list[str] | None = None,
    ):
        self.name = name
        self.files = [str(file) for file in files]
        self.image, self.label = columns_of(self.files[0], image, label)
        tables = [opened(file) for file in self.files]
        labels = [
            _labels(file, table, (self.image, self.label)) for file, table in zip(self.files, tables, strict=True)
        ]
        self.labels = np.concatenate(labels)
        self._file_ends = np.cumsum([len(each) for each in labels], dtype=np.int64)
        groups = [(file, group) for file, table in enumerate(tables) for group in range(table.num_row_groups)]
        sizes = [tables[file].metadata.row_group(group).num_rows for file, group in groups]
        self._groups, self._ends = groups, np.cumsum(sizes, dtype=np.int64)
        self.named: list[str] | None = _features(tables[0].schema_arrow).get(self.label, {}).get("names")
        if classes is None:
            classes = numbered(self, ADVICE) if self.named is None else checked_names(self.named, self.files[0])
        self.classes = classes
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
                    table = opened(self.files[file]).read_row_group(number, columns=[self.image])
                    self._kept[group] = table.column(self.image).combine_chunks()
                except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are the first two
                    raise OSError(f"row group {number} is damaged ({error})") from error
            return self._kept[group]


def import_pyarrow() -> Any:
    """pyarrow with its parquet module; ValueError where it is not installed."""
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]  # it has no stubs
    except ImportError as error:
        raise ValueError("parquet files need pyarrow: type pip install 'deit-fast[parquet]'") from error
    return pyarrow


def columns_of(file: str, image: str | None, label: str | None) -> tuple[str, str]:
    """The columns of images and of labels in a file: those named, else those found.

    ValueError: a named column is not there, or several columns or none could be one.
    """
    schema = opened(file).schema_arrow
    found = (
        image or _column(schema, file, "image", "Image", _holds_bytes),
        label or _column(schema, file, "label", "ClassLabel", import_pyarrow().types.is_integer),
    )
    _check_columns(file, schema, found)
    return found


def opened(file: str) -> pyarrow.parquet.ParquetFile:
    pyarrow = import_pyarrow()
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
    types = import_pyarrow().types
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


def _check_columns(file: str, schema: pyarrow.Schema, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in schema.names:
            raise ValueError(f"{file} has no column {column!r}, only {', '.join(schema.names)}")


def _labels(file: str, table: pyarrow.parquet.ParquetFile, columns: tuple[str, str]) -> NDArray[np.int64]:
    _check_columns(file, table.schema_arrow, columns)
    column = columns[1]
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
