"""Continuing twice, at the borders of epochs, with micro-batches, and with another number of processes."""

from pathlib import Path

import pytest

from deit_fast.config import Config
from tests.chaos.runs import assert_same_run, finished, lines


def rewind(run: str, step: int) -> None:
    """Make the run one that was killed after the checkpoint of `step`."""
    (Path(run) / "summary.json").unlink()
    (Path(run) / "checkpoints" / "newest").write_text(f"step_{step:08d}\n")


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 2}], ids=["whole batches", "micro-batches"])
def test_the_second_continuation_at_the_border_of_an_epoch(small: Config, tmp_path: Path, changes: dict) -> None:
    config = small.replace(epochs=8, save_every=1, keep=99, **changes)
    whole = config.replace(out=str(tmp_path / "whole"))
    for each in (config, whole):
        finished(each, 1, tmp_path / "output")
    for step in (9, 14):  # the end of an evaluated epoch, the middle of another
        rewind(config.run.out, step)
        finished(config, 1, tmp_path / f"from_{step}")
        assert_same_run(config.run.out, whole.run.out)


def test_one_process_hands_over_to_two_and_two_to_one(small: Config, tmp_path: Path) -> None:
    config = small.replace(epochs=8, save_every=1, keep=99)
    whole = config.replace(out=str(tmp_path / "whole"))
    for each in (config, whole):
        finished(each, 1, tmp_path / "output")
    rewind(config.run.out, 8)
    finished(config, 2, tmp_path / "two")
    rewind(config.run.out, 16)
    finished(config, 1, tmp_path / "one")
    mine, theirs = ([row["loss"] for row in lines(run) if "loss" in row] for run in (config.run.out, whole.run.out))
    # The images and labels are the same; gradients are summed in another order.
    assert mine == pytest.approx(theirs, rel=1e-3) and mine[:8] == theirs[:8]
