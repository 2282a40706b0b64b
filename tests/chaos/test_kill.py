"""kill -9 at any moment, again and again: the run that is left in the end is the one that nobody killed."""

from pathlib import Path

import pytest

from deit_fast.config import Config
from tests.chaos.runs import assert_same_run, finished, killed_again_and_again
from tests.deit_fast.teacher.test_teacher_labels import table


def killed_and_whole(config: Config, folder: Path, ranks: int, kills: int, seconds: float) -> None:
    """Kill one run so many times and leave another alone, each with a label cache of its own; compare what is left."""
    whole, killed = (
        config.replace(out=str(folder / name), teacher_cache=str(folder / f"{name}_labels"))
        for name in ("whole", "killed")
    )
    finished(whole, ranks, folder / "output")
    assert killed_again_and_again(killed, ranks, folder / "attempts", kills, seconds, seed=ranks) == kills
    assert_same_run(killed.run.out, whole.run.out)
    steps = 3 * config.optim.epochs
    assert table(killed.distill.teacher_cache, steps) == table(whole.distill.teacher_cache, steps)


@pytest.mark.parametrize(("ranks", "kills"), [(1, 5), (2, 4)])
def test_killed_runs_end_with_the_same_bits(small: Config, tmp_path: Path, ranks: int, kills: int) -> None:
    killed_and_whole(small, tmp_path, ranks, kills, seconds=0.6)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "kills"), [(1, 30), (2, 30)])
def test_sixty_kills(small: Config, tmp_path: Path, ranks: int, kills: int) -> None:
    longer = small.replace(epochs=150, save_every=1, eval_every=5)
    killed_and_whole(longer, tmp_path, ranks, kills, seconds=1.5)
