"""Counts of confusions, and precision and recall, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from deit_fast.scores import Predictions

CLASSES = 6


NAME = "model/cls"


@pytest.fixture
def predictions() -> Predictions:
    generator = np.random.default_rng(0)
    label = generator.integers(0, CLASSES - 1, 300)  # none of the last class
    answer = np.where(generator.random(300) < 0.6, label, generator.integers(0, CLASSES - 2, 300))
    top, probability = answer[:, None].astype(np.int32), generator.random(300).astype(np.float32)
    return Predictions(np.arange(300), label, CLASSES, {NAME: top}, {NAME: -np.log(probability)}, {NAME: probability})


def test_precision_recall_and_support_are_scikit_learns(predictions: Predictions) -> None:
    known = precision_recall_fscore_support(
        predictions.label, predictions.answer(NAME), labels=range(CLASSES), zero_division=np.nan
    )
    rows = predictions.per_class(NAME)
    for row, precision, recall, _, support in zip(rows, *known, strict=True):
        for value, expected in ((row["precision"], precision), (row["recall"], recall)):
            assert value is None if np.isnan(expected) else value == pytest.approx(100 * expected)
        assert row["support"] == support
    assert rows[-1] == {"class": 5, "precision": None, "recall": None, "f1": None, "support": 0, "answers": 0}


def test_every_pair_of_classes_has_its_images_the_surest_first(predictions: Predictions) -> None:
    matrix = confusion_matrix(predictions.label, predictions.answer(NAME), labels=range(CLASSES))
    confused = predictions.confused(NAME)
    assert confused.keys() == set(zip(*map(np.ndarray.tolist, np.nonzero(matrix)), strict=True))
    counts = [len(rows) for rows in confused.values()]
    assert counts == sorted(counts, reverse=True) and max(counts) == matrix.max()
    for (label, answer), rows in confused.items():
        assert len(rows) == matrix[label, answer]
        assert (predictions.label[rows] == label).all() and (predictions.answer(NAME)[rows] == answer).all()
        assert (np.diff(predictions.probability[NAME][rows]) <= 0).all()


def test_without_an_image_nothing_is_confused() -> None:
    none = np.zeros(0, np.int64)
    empty = Predictions(none, none, CLASSES, {NAME: none[:, None]}, {NAME: none}, {NAME: none})
    assert empty.confused(NAME) == {} and [row["recall"] for row in empty.per_class(NAME)] == [None] * CLASSES
