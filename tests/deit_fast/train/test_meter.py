"""A line of metrics.jsonl: means over the rows, shares of the time, and what is unknown left out."""

import math
import time
from types import SimpleNamespace

import pytest
import torch

from deit_fast.data.batch import Seconds
from deit_fast.ranks.group import Ranks
from deit_fast.run.report import numbers_line, step_line
from deit_fast.train.meter import Clock, Losses, Meter, StepResult

CPU = torch.device("cpu")


class Two(Ranks):
    """Rank 1 of two: the other has seen the same and waited for `theirs` seconds."""

    theirs = 0.0

    def total(self, counts: torch.Tensor) -> torch.Tensor:
        other = counts.clone()
        other[-2], other[-1] = self.theirs, 0.0
        return counts + other


def meter(ranks: Ranks, peak: float | None = None) -> tuple[Meter, Clock, SimpleNamespace]:
    clock = Clock(CPU, "teacher", "forward")
    batches = SimpleNamespace(labelled=0, bad_images={"a.png": "no image"}, seconds=Seconds())
    return Meter(clock, batches, ranks, batch_size=8, total_steps=20, taught=True, peak=peak), clock, batches


def add(of: Meter, batches: SimpleNamespace, *losses: float) -> None:
    for loss in losses:
        values = [torch.tensor(value) for value in (loss, loss / 2, loss / 4, 0.25)]
        of.add(StepResult(Losses(*values), grad_norm=torch.tensor(loss * 2), finite=torch.tensor(True)))
        batches.labelled += 8


def test_a_row_has_the_mean_of_its_steps_and_no_others() -> None:
    own, _, batches = meter(Ranks(0, 1, CPU))
    add(own, batches, 9.0)
    own.row(1, 0.1, 0.5)
    add(own, batches, 1.0, 2.0)
    row = own.row(3, 0.3, 0.5)
    assert (row["loss"], row["label"], row["distillation"], row["top1"]) == (1.5, 0.75, 0.375, 25.0)
    assert (row["step"], row["epoch"], row["lr"], row["grad_norm"]) == (3, 0.3, 0.5, 3.0)
    assert row["memory"] > 2**20
    assert not row.keys() & {"mfu", "slowest_rank", "slowest_wait"}


def test_shares_are_of_the_time_without_pauses() -> None:
    own, clock, batches = meter(Ranks(0, 1, CPU))
    add(own, batches, 1.0)
    with clock("teacher"):
        time.sleep(0.1)
    batches.seconds.wait = 0.05
    with own.paused():
        time.sleep(0.3)
    row = own.row(1, 0.1, 0.5)
    seconds = 8 / row["images_per_second"]
    assert 0.1 <= seconds < 0.3
    assert row["data_wait"] == pytest.approx(0.05 / seconds)
    assert 0.1 / seconds <= row["teacher_share"] <= 1.0
    assert row["eta"] == pytest.approx(19 * seconds)


def test_mfu_is_what_the_images_need_over_what_all_cards_can() -> None:
    own, _, batches = meter(Ranks(0, 1, CPU), peak=1e3)
    add(own, batches, 1.0)
    row = own.row(1, 0.1, 0.5)
    assert row["mfu"] == pytest.approx(row["images_per_second"] * 1e-3)


def test_the_rank_that_waits_most_for_data_is_named() -> None:
    ranks = Two(1, 2, CPU)
    own, _, batches = meter(ranks)
    for theirs, named in ((0.0, None), (100.0, 0)):
        Two.theirs = theirs
        add(own, batches, 1.0)
        row = own.row(1, 0.1, 0.5)
        assert row.get("slowest_rank") == named
    assert (row["slowest_wait"], row["data_wait"]) == (1.0, 0.5)
    assert "data 50%, 100% at rank 0 · teacher" in numbers_line(row)


def test_without_one_readable_image_the_run_ends() -> None:
    own, _, batches = meter(Ranks(0, 1, CPU))
    add(own, batches, 0.0)
    batches.labelled = 0
    with pytest.raises(ValueError, match=r"no image of the steps up to 1 is readable; the first is a.png: no image"):
        own.row(1, 0.1, 0.5)


def test_the_line_that_people_read() -> None:
    row = {
        "step": 50, "loss": 3.4119, "top1": 31.25, "images_per_second": 58900.4, "data_wait": 0.012, "memory": 3 << 29,
        "teacher_share": None, "eta": 6361.4,
    }  # fmt: skip
    expected = "step 50/200 25.0% · loss 3.412 · top-1 31.2 % · 58,900 images/s · data 1% · 1.5 GiB · eta 1:46:01"
    assert step_line(row, 200) == expected
    row |= {"mfu": 0.44, "teacher_share": 0.3, "skipped": 2}
    assert "58,900 images/s · mfu 44% · data 1% · teacher 30% · skipped 2 · 1.5 GiB" in step_line(row, 200)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_interval_that_another_number_of_ranks_began_has_the_mean_of_all_its_steps(ranks: int) -> None:
    class Alike(Ranks):
        """Rank 0 of several that have all seen the same."""

        def total(self, counts: torch.Tensor) -> torch.Tensor:
            return counts * self.world_size

    before, _, seen = meter(Alike(0, 2, CPU))
    add(before, seen, 1.0, 1.0)
    state = before.state()
    ours, _, batches = meter(Alike(0, ranks, CPU))
    ours.load(state)
    loaded = ours._sums.clone()
    ours._sums /= ranks  # this test's ranks are alike, those of a run load nothing but rank 0
    add(ours, batches, 4.0)
    assert ours.row(3, 0.3, 0.5)["loss"] == 2.0
    assert ranks != 2 or loaded.tolist() == state["sums"]  # the same ranks: the same bits


def test_the_gradients_norm_is_unknown_in_an_interval_that_an_older_version_began() -> None:
    before, _, seen = meter(Ranks(0, 1, CPU))
    add(before, seen, 1.0)
    state = before.state()
    for sums, first in ((state["sums"], 5.0), (state["sums"][:4], None)):
        own, _, batches = meter(Ranks(0, 1, CPU))
        own.load({**state, "sums": sums})
        add(own, batches, 4.0)
        row = own.row(2, 0.2, 0.5)
        assert (row["loss"], row["grad_norm"]) == (2.5, first)
        add(own, batches, 4.0)
        assert own.row(3, 0.3, 0.5)["grad_norm"] == 8.0


def test_the_seconds_of_every_part_and_of_what_stood_aside() -> None:
    own, clock, batches = meter(Ranks(0, 1, CPU))
    batches.seconds.add(read=1.0)
    add(own, batches, 1.0)
    with clock("forward"):
        time.sleep(0.05)
    batches.seconds.add(read=2.0, wait=0.5)
    with own.paused("checkpoint"):
        time.sleep(0.05)
    seconds = own.row(1, 0.1, 0.5)["seconds"]
    assert seconds.keys() == {"teacher", "forward", "read", "decode", "copy", "augment", "wait", "checkpoint"}
    assert (seconds["read"], seconds["wait"]) == (3.0, 0.5)
    assert seconds["forward"] >= 0.05 and seconds["checkpoint"] >= 0.05
    add(own, batches, 1.0)
    again = own.row(2, 0.2, 0.5)["seconds"]
    assert "checkpoint" not in again and again["read"] == again["forward"] == 0.0


def test_skipped_steps_are_counted_and_their_losses_are_not() -> None:
    own, _, batches = meter(Ranks(0, 1, CPU))
    steps = [(1.0, True), (math.nan, False), (3.0, True), (math.nan, False), (math.nan, False)]
    for loss, finite in steps:
        values = [torch.tensor(loss)] * 4
        own.add(StepResult(Losses(*values), grad_norm=torch.tensor(loss), finite=torch.tensor(finite)))
        batches.labelled += 8
    row = own.row(5, 0.5, 0.5)
    assert (row["loss"], row["grad_norm"], row["skipped"], own.skipped_in_a_row) == (2.0, 2.0, 3, 2)
    restarted, _, others = meter(Ranks(0, 1, CPU))
    restarted.load(own.state())  # the series goes on across intervals and restarts
    nothing = [torch.tensor(math.inf)] * 4
    restarted.add(StepResult(Losses(*nothing), grad_norm=torch.tensor(math.inf), finite=torch.tensor(False)))
    others.labelled += 8
    row = restarted.row(6, 0.6, 0.5)
    assert (row["loss"], row["top1"], row["skipped"], restarted.skipped_in_a_row) == (None, None, 1, 3)
