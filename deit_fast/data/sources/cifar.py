"""CIFAR-10 and CIFAR-100 as they are distributed for Python, and as torchvision.datasets unpacks them.

    folder/cifar-10-batches-py/   data_batch_1 … data_batch_5, test_batch, batches.meta
    folder/cifar-100-python/      train, test, meta

The files are pickles. torchvision reads them with `pickle.load`, which runs code that a file contains; this reader's
unpickler makes NumPy arrays and nothing else.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...files import denied, shown
from .dataset import Dataset, checked_names
from .index import locate

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
# Folder → files of the training and of the test images, the key of their labels, the file and the key of class names.
LAYOUTS = {
    "cifar-10-batches-py": (BATCHES, ["test_batch"], "labels", "batches.meta", "label_names"),
    "cifar-100-python": (["train"], ["test"], "fine_labels", "meta", "fine_label_names"),
}
# What a pickled array names, in NumPy 1 and 2. None of it runs code of the file.
_ALLOWED = {"numpy.ndarray", "numpy.dtype", "_codecs.encode"} | {
    f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}


class Cifar(Dataset):
    """One split, "train" or "val" (the test images), decoded, in memory: 154 MB for the 50 000 training images."""

    def __init__(self, folder: Path, split: str, name: str):
        train, test, key, meta, names = LAYOUTS[folder.name]
        self.name = name
        self.classes = checked_names(list(_entries(folder / meta, names)[0]), folder / meta)
        self._files = [folder / file for file in (train if split == "train" else test)]
        images, labels = zip(*(_images(file, key) for file in self._files), strict=True)
        self._ends = np.cumsum([len(each) for each in labels])
        self._images, self.labels = np.concatenate(images), np.concatenate(labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._images[index]

    def path(self, index: int) -> str:
        file, place = locate(self._ends, index)
        return shown(f"{self._files[file]}[{place}]")


def _images(file: Path, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels (N, 32, 32, 3) and labels (N,)."""
    data, labels = map(np.asarray, _entries(file, "data", key))
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise ValueError(f"{file}: data is uint8 (N, 3072), got {data.dtype} {data.shape}")
    if len(data) != len(labels):
        raise ValueError(f"{file} holds {len(data)} images but {len(labels)} labels")
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels.astype(np.int64)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, as no CIFAR file does")
        return super().find_class(module, name)


def _entries(file: Path, *keys: str) -> list[Any]:
    try:
        with open(file, "rb") as opened:
            content = _Unpickler(opened, encoding="latin1").load()
        return [content[key] for key in keys]
    except PermissionError as error:
        raise ValueError(denied(file)) from error
    except OSError as error:
        raise ValueError(f"cannot read {file} ({error.strerror}): unpack the archive of CIFAR again") from error
    except Exception as error:  # an unpickler meets anything in a damaged file
        raise ValueError(f"{file} is not a CIFAR file ({type(error).__name__}: {error})") from error
