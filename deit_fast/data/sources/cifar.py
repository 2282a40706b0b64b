"""CIFAR-10 and CIFAR-100 as they are distributed for Python, and as torchvision.datasets unpacks them.

    folder/cifar-10-batches-py/   data_batch_1 … data_batch_5, test_batch, batches.meta
    folder/cifar-100-python/      train, test, meta

The files are pickles. They are read by an unpickler that knows NumPy's arrays and nothing else, so that code in a file
that only looks like CIFAR is never run.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import check_labels, checked_names

# Folder → files of the training and of the test images, the key of their labels, the file and the key of class names.
LAYOUTS = {
    "cifar-10-batches-py": (
        [f"data_batch_{number}" for number in range(1, 6)],
        ["test_batch"],
        "labels",
        ("batches.meta", "label_names"),
    ),
    "cifar-100-python": (["train"], ["test"], "fine_labels", ("meta", "fine_label_names")),
}
# What a pickled array names, in NumPy 1 and 2. None of it runs code of the file.
_ALLOWED = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class Cifar:
    """One split, decoded, in memory: 154 MB for the 50 000 training images.

    Args:
        folder: one of LAYOUTS.
        split: "train" or "val" (the test images).
        name: what the user called the data set.

    Raises:
        ValueError: a file is missing or is not what it should be.
    """

    def __init__(self, folder: Path, split: str, name: str):
        train, test, key, (meta, names) = LAYOUTS[folder.name]
        self.name = name
        self.classes = checked_names(list(_entry(folder / meta, names)), folder / meta)
        files = train if split == "train" else test
        self._origin = [str(folder / file) for file in files]
        parts = [_pixels(folder / file) for file in files]
        labels = [np.asarray(_entry(folder / file, key), np.int64) for file in files]
        for file, pixels, label in zip(files, parts, labels, strict=True):
            if len(pixels) != len(label):
                raise ValueError(f"{folder / file} holds {len(pixels)} images but {len(label)} labels")
        self._ends = np.cumsum([len(pixels) for pixels in parts])
        self._images = np.concatenate(parts)
        self.labels = np.concatenate(labels)
        check_labels(self)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._images[index]

    def path(self, index: int) -> str:
        file = int(np.searchsorted(self._ends, index, side="right"))
        return f"{self._origin[file]}[{index - (self._ends[file - 1] if file else 0)}]"


def _pixels(file: Path) -> NDArray[np.uint8]:
    """uint8 (N, 32, 32, 3)."""
    data = np.asarray(_entry(file, "data"))
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise ValueError(f"{file}: data is uint8 (N, 3072), got {data.dtype} {data.shape}")
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no file of CIFAR does")
        return super().find_class(module, name)


def _entry(file: Path, key: str) -> Any:
    try:
        with open(file, "rb") as opened:
            content = _Unpickler(opened, encoding="latin1").load()
        return content[key]
    except OSError as error:
        raise ValueError(f"cannot read {file} ({error.strerror}): unpack the archive of CIFAR again") from error
    except Exception as error:  # an unpickler meets anything in a damaged file
        raise ValueError(f"{file} is no file of CIFAR ({type(error).__name__}: {error})") from error
