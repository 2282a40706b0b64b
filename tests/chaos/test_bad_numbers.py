"""A batch whose loss is NaN: every rank skips the step, to the bit, and many in a row end the run."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import load_file

from deit_fast import command
from deit_fast.config import Config
from tests.chaos.runs import Fault, assert_same_tensors, finished, lines, start

BAD = (7, 8, 20)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_nan_on_one_rank_leaves_weights_moments_and_average_of_all_untouched(
    small: Config, tmp_path: Path, ranks: int
) -> None:
    config = small.replace(epochs=10, save_every=1, keep=99)
    running = finished(config, ranks, tmp_path / "output", Fault(bad_steps=BAD, rank=ranks - 1), str(tmp_path))
    folders = sorted((Path(config.run.out) / "checkpoints").glob("step_*"))
    for before, after in pairwise(folders):
        states = [
            [load_file(folder / f"{name}.safetensors") for name in ("model", "ema", "optimizer")]
            for folder in (before, after)
        ]
        if int(before.name.removeprefix("step_")) in BAD:
            for mine, theirs in zip(*states, strict=True):
                assert_same_tensors(mine, theirs)
        else:
            assert any(not value.equal(states[1][0][name]) for name, value in states[0][0].items())
    rows = [row for row in lines(config.run.out) if "loss" in row]
    assert sum(row["skipped"] for row in rows) == len(BAD)
    assert all(row["loss"] is None if row["skipped"] else row["loss"] < 100 for row in rows)
    assert "1 steps up to step 8 were skipped: loss or gradient is NaN or infinite" in running.printed(0)
    digests = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(ranks)]
    assert all(digest == digests[0] for digest in digests), "the ranks' weights are the same"


def test_a_run_that_left_steps_out_continues_to_the_same_bits(small: Config, tmp_path: Path) -> None:
    fault = Fault(bad_steps=BAD)
    config = small.replace(epochs=10, keep=99)
    whole = config.replace(out=str(tmp_path / "whole"))
    finished(whole, 1, tmp_path / "output", fault)
    finished(config, 1, tmp_path / "first", fault)
    run = Path(config.run.out)
    (run / "summary.json").unlink()
    (run / "checkpoints" / "newest").write_text("step_00000008\n")  # between two bad steps in a row
    finished(config, 1, tmp_path / "second", fault)
    for name in ("model", "ema", "optimizer"):
        file = f"checkpoints/step_00000030/{name}.safetensors"
        pair = [load_file(Path(each) / file) for each in (run, whole.run.out)]
        assert_same_tensors(*pair)
    assert lines(run) == lines(whole.run.out)


def test_batch_norms_statistics_are_left_alone_too(small: Config, tmp_path: Path) -> None:
    timm_sizes = {"patch_size": 0, "width": 0, "depth": 0, "heads": 0, "drop_path": 0.0}
    config = small.replace(
        model="test_efficientnet", distill="none", teacher="", epochs=4, save_every=1, keep=99, **timm_sizes
    )
    finished(config, 1, tmp_path / "output", Fault(bad_steps=BAD))
    folders = [Path(config.run.out) / "checkpoints" / f"step_{step:08d}" for step in (7, 8, 9)]
    states = [load_file(folder / "model.safetensors") for folder in folders]
    assert any("running_mean" in name for name in states[0])
    assert_same_tensors(states[0], states[1])
    assert_same_tensors(states[0], states[2])


@pytest.mark.parametrize("ranks", [1, 2])
def test_twenty_in_a_row_stop_the_run_and_leave_the_last_good_checkpoint(
    small: Config, tmp_path: Path, ranks: int
) -> None:
    config = small.replace(epochs=20, save_every=10, log_every=10)
    with start(config, ranks, tmp_path / "output", Fault(bad_steps=range(15, 99), rank=ranks - 1)) as running:
        codes = running.wait(120)
    printed = running.printed(0)
    assert codes == [command.DIVERGED] * ranks, printed
    assert (
        "of 21 steps in a row is NaN or infinite" in printed.replace("\n", " ")
        and "--lr 0.01" in printed
        and "step 30" in printed
    )
    rows = [row for row in lines(config.run.out) if "loss" in row]
    assert sum(row["skipped"] for row in rows) == 21, "seen at the first line after the twentieth"
    finished(config, ranks, tmp_path / "again")  # the images are sound now: it goes on from the last checkpoint
