"""The built-in recipes reach the numbers that the README states."""

from pathlib import Path

import pytest

from deit_fast.recipes.named import recipe
from deit_fast.train import train


@pytest.mark.parametrize(
    ("name", "teacher", "student"),
    [pytest.param("demo", 85.0, 70.0, marks=pytest.mark.slow), ("digits", 95.0, 95.0)],
)
def test_the_recipe_reaches_its_accuracy(name: str, teacher: float, student: float, tmp_path: Path) -> None:
    scores = train(recipe(name).replace(out=str(tmp_path / "run"))).scores
    assert scores["teacher"]["top1"] >= teacher
    assert scores["student"]["fused"]["top1"] >= student
    assert scores["ema"]["fused"]["top1"] >= student
