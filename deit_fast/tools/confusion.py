"""Which classes are taken for which: counts, precision and recall, and the images behind a count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

WHOLE_MATRIX = 24  # classes up to which all of it is shown, else its largest pairs
MOST_PAIRS = 60


@dataclass(frozen=True)
class Confusion:
    """The answers of one head for N images.

    Attributes:
        label, answer: (N,).
        classes: how many there are.
        probability: (N,) of the answer, which `of` needs.
    """

    label: NDArray[np.int64]
    answer: NDArray[np.integer]
    classes: int
    probability: NDArray[np.float32] | None = None

    def pairs(self, most: int | None = None) -> list[tuple[int, int, int]]:
        """(true class, taken for, images) of mistakes, the most frequent first."""
        wrong = self.label != self.answer
        keys, counts = np.unique(self.label[wrong] * self.classes + self.answer[wrong], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        return [(*divmod(int(keys[at]), self.classes), int(counts[at])) for at in order]

    def matrix(self) -> NDArray[np.int64]:
        """(classes, classes) images of each class (row) that are taken for each class (column)."""
        keys = self.label * self.classes + self.answer
        return np.bincount(keys, minlength=self.classes**2).reshape(self.classes, self.classes)

    def of(self, true: int, taken: int, most: int) -> list[int]:
        """Places of the images behind a count, the most confident first."""
        keys, order = self._sorted
        first, last = np.searchsorted(keys, true * self.classes + taken + np.arange(2))
        return order[first : min(last, first + most)].tolist()

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The keys of all images in ascending order, and their places; of one key the most confident first."""
        keys = self.label * self.classes + self.answer
        assert self.probability is not None
        order = np.lexsort((-self.probability, keys))
        return keys[order], order

    def per_class(self) -> list[dict[str, float | int | None]]:
        """Precision, recall and F1 in per cent (None where nothing is counted), support and answers of each class."""
        right = np.bincount(self.label[self.label == self.answer], minlength=self.classes)
        support = np.bincount(self.label, minlength=self.classes)
        answers = np.bincount(self.answer, minlength=self.classes)
        return [
            {
                "class": number,
                "precision": 100 * hits / taken if taken else None,
                "recall": 100 * hits / there if there else None,
                "f1": 200 * hits / (taken + there) if taken + there else None,
                "support": there,
                "answers": taken,
            }
            for number, (hits, there, taken) in enumerate(
                zip(right.tolist(), support.tolist(), answers.tolist(), strict=True)
            )
        ]
