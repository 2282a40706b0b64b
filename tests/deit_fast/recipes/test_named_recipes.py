"""The built-in recipes reach the numbers that are stated; `make test` takes the digits and a third of their epochs.

The teacher is trained whole. A student of 10 epochs has 75 %, one that learns nothing 10 %.
"""

from pathlib import Path

import pytest

from deit_fast.recipes.named import recipe
from deit_fast.train import train


@pytest.mark.parametrize(
    ("name", "changes", "teacher", "student"),
    [
        ("digits", {"epochs": 10, "warmup_epochs": 1, "report": False}, 95.0, 60.0),
        pytest.param("digits", {}, 95.0, 95.0, marks=pytest.mark.slow),
        pytest.param("demo", {}, 85.0, 70.0, marks=pytest.mark.slow),
    ],
)
def test_the_recipe_reaches_its_accuracy(
    name: str, changes: dict, teacher: float, student: float, tmp_path: Path
) -> None:
    scores = train(recipe(name).replace(out=str(tmp_path / "run"), **changes)).scores
    assert scores["teacher"]["top1"] >= teacher
    assert scores["student"]["fused"]["top1"] >= student
    assert scores["ema"]["fused"]["top1"] >= student
