"""What a data set is, how one of its images is read, and the checks that all of them share."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from itertools import islice
from math import inf
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..decode import BadImage, Part, Reserve, Wanted, copied, decode_wanted, new_array

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_NUMBERED = 10**6  # classes without a name: a head for more has a billion weights at the width of ViT-B


class Dataset(Protocol):
    """One split of a data set: N images with labels. `read` and `path` may be called from any thread."""

    name: str  # the spec as the user gave it
    classes: list[str]  # class names; the index is the label
    labels: NDArray[np.int64]  # (N,)
    left_out: Iterable[str] = ()  # files that lie among its images and are not read

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """The encoded image, or its pixels (H, W, 3) where the set is stored so; OSError if it is unreadable now."""
        ...

    def path(self, index: int) -> str:
        """The name of the image in messages."""
        ...


class ReadImage(NamedTuple):
    """One image, or what is wrong with it, and the seconds that reading and decoding took."""

    part: Part | BadImage
    read: float
    decode: float


def read_image(
    dataset: Dataset,
    index: int,
    *,
    wanted: Wanted | None = None,
    exif_orientation: bool = False,
    reserve: Reserve = new_array,
    ratio_limit: float = inf,
) -> ReadImage:
    """Read and decode an image, or the part that `decode_wanted` decodes; bad where longer than the `ratio_limit`."""
    began = time.perf_counter()
    try:
        data = dataset.read(index)
    except OSError as error:
        return ReadImage(BadImage(f"it cannot be read ({error.strerror or error})"), time.perf_counter() - began, 0.0)
    read = time.perf_counter()
    part: Part | BadImage
    try:
        if isinstance(data, bytes):
            part = decode_wanted(data, wanted, exif_orientation=exif_orientation, reserve=reserve)
        else:
            part = Part.whole(copied(data, reserve))
        part.refuse_elongated(ratio_limit)
    except BadImage as error:
        part = error
    return ReadImage(part, read - began, time.perf_counter() - read)


def ahead(pool: Executor, task: Callable[[Item], Result], items: Iterable[Item], most: int) -> Iterator[Result]:
    """`task` of each item, in order; the pool works on up to `most` of them ahead of the consumer."""
    coming = iter(items)
    waiting = deque(pool.submit(task, item) for item in islice(coming, most))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(task, item) for item in islice(coming, 1))
        yield result


def numbered(dataset: Dataset, advice: str) -> list[str]:
    """Class names where nothing names them: the numbers up to the largest label.

    Labels of MOST_NUMBERED and more raise ValueError, which ends in `advice`.
    """
    wrong = np.flatnonzero(dataset.labels >= MOST_NUMBERED)
    if len(wrong):
        raise ValueError(
            f"{dataset.path(int(wrong[0]))} has label {dataset.labels[wrong[0]]}, but classes without names are "
            f"numbers below {MOST_NUMBERED:,}; {len(wrong)} of {len(dataset.labels)} labels are not: {advice}"
        )
    return list(map(str, range(int(dataset.labels.max(initial=-1)) + 1)))


def wrong_labels(dataset: Dataset) -> list[tuple[int, str]]:
    """(index, what is wrong) of every label that is no index into the classes."""
    classes = len(dataset.classes)
    wrong = np.flatnonzero((dataset.labels < 0) | (dataset.labels >= classes)).tolist()
    outside = f"outside 0 … {classes - 1} of the {classes} classes"
    return [(index, f"label {dataset.labels[index]}, {outside}") for index in wrong]


def check_labels(dataset: Dataset) -> None:
    """Raise ValueError for the first of `wrong_labels`."""
    if wrong := wrong_labels(dataset):
        index, what = wrong[0]
        raise ValueError(f"{dataset.path(index)} has {what}; {len(wrong)} of {len(dataset.labels)} labels are")


def checked_names(names: list[str], origin: object) -> list[str]:
    """The class names; ValueError where one occurs twice."""
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        found = counted(twice, "class", "classes")
        raise ValueError(f"{origin} names {found} more than once: give every class its own name")
    return names


def counted(names: list[str], one: str, many: str) -> str:
    """'1 class (cat)', '5 classes (ant, bee, cat, …)'."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} {one if len(names) == 1 else many} ({shown})"
