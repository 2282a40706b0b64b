"""Counts of confusions, and precision and recall, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from deit_fast.tools.confusion import Confusion

CLASSES = 6


@pytest.fixture
def confusion() -> Confusion:
    generator = np.random.default_rng(0)
    label = generator.integers(0, CLASSES - 1, 300)  # none of the last class
    answer = np.where(generator.random(300) < 0.6, label, generator.integers(0, CLASSES - 2, 300))
    return Confusion(label, answer, CLASSES, generator.random(300).astype(np.float32))


def test_precision_recall_and_support_are_scikit_learns(confusion: Confusion) -> None:
    known = precision_recall_fscore_support(
        confusion.label, confusion.answer, labels=range(CLASSES), zero_division=np.nan
    )
    for row, precision, recall, _, support in zip(confusion.per_class(), *known, strict=True):
        for value, expected in ((row["precision"], precision), (row["recall"], recall)):
            assert value is None if np.isnan(expected) else value == pytest.approx(100 * expected)
        assert row["support"] == support
    assert confusion.per_class()[-1] == {
        "class": 5, "precision": None, "recall": None, "f1": None, "support": 0, "answers": 0,
    }  # fmt: skip


def test_matrix_and_pairs_count_the_same(confusion: Confusion) -> None:
    matrix = confusion.matrix()
    assert (matrix == confusion_matrix(confusion.label, confusion.answer, labels=range(CLASSES))).all()
    pairs = confusion.pairs()
    assert sum(count for *_, count in pairs) == matrix.sum() - matrix.trace()
    assert all(matrix[true, taken] == count and true != taken for true, taken, count in pairs)
    assert [count for *_, count in pairs] == sorted((count for *_, count in pairs), reverse=True)


def test_the_images_of_a_count_are_those_of_which_the_model_is_surest(confusion: Confusion) -> None:
    true, taken, count = confusion.pairs(1)[0]
    places = confusion.of(true, taken, 3)
    certain = confusion.probability[(confusion.label == true) & (confusion.answer == taken)]
    assert confusion.probability[places].tolist() == sorted(certain.tolist(), reverse=True)[:3]
    assert len(confusion.of(true, taken, count + 5)) == count
