"""kill -9 at any moment, again and again: the run that is left in the end is the one that nobody killed."""

import dataclasses
from pathlib import Path

import pytest

from deit_fast.config import Config
from tests.chaos.runs import assert_same_run, finished, killed_again_and_again


@pytest.mark.parametrize(("ranks", "kills"), [(1, 5), (2, 4)])
def test_killed_runs_end_with_the_same_bits(small: Config, tmp_path: Path, ranks: int, kills: int) -> None:
    whole = dataclasses.replace(small, out=str(tmp_path / "whole"))
    finished(whole, ranks, tmp_path / "output")
    assert killed_again_and_again(small, ranks, tmp_path / "killed", kills, seconds=0.6, seed=ranks) == kills
    assert_same_run(small.out, whole.out)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "kills"), [(1, 30), (2, 30)])
def test_sixty_kills(small: Config, tmp_path: Path, ranks: int, kills: int) -> None:
    longer = dataclasses.replace(small, epochs=150, save_every=1, eval_every=5)
    whole = dataclasses.replace(longer, out=str(tmp_path / "whole"))
    finished(whole, ranks, tmp_path / "output")
    assert killed_again_and_again(longer, ranks, tmp_path / "killed", kills, seconds=1.5, seed=10 + ranks) == kills
    assert_same_run(longer.out, whole.out)
