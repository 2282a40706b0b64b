"""SIGTERM, SIGUSR1 and Ctrl-C: one checkpoint, the documented exit code, and the same bits after all."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from deit_fast import command
from deit_fast.config import Config
from deit_fast.data.loader import TrainLoader
from deit_fast.run import checkpoint
from deit_fast.train import __main__ as train
from tests.chaos.runs import assert_same_run, finished, start, until_it_speaks
from tests.deit_fast.command import command_line
from tests.deit_fast.world import world


def stopped_again_and_again(config: Config, ranks: int, folder: Path, number: int, moments: list[float]) -> int:
    """Send a signal to every rank, so many seconds after the start of each attempt; returns how many it ended."""
    ended = 0
    for attempt, moment in enumerate(moments):
        with start(config, ranks, folder / f"attempt_{attempt}") as running:
            until_it_speaks(running)
            time.sleep(moment)
            for process in running.processes:
                if process.is_alive():
                    os.kill(process.pid, number)
            codes = running.wait(60)
        if codes == [0] * ranks:
            break
        expected = command.INTERRUPTED if number == signal.SIGINT else command.PREEMPTED
        assert codes == [expected] * ranks, [running.printed(rank) for rank in range(ranks)]
        ended += 1
    finished(config, ranks, folder / "last")
    return ended


@pytest.mark.parametrize(("ranks", "number"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGUSR1)])
def test_stopped_runs_end_with_the_same_bits(small: Config, tmp_path: Path, ranks: int, number: int) -> None:
    rarely = small.replace(save_every=0, log_every=7)  # the signal's own checkpoint is what counts
    whole = rarely.replace(out=str(tmp_path / "whole"))
    finished(whole, ranks, tmp_path / "output")
    assert stopped_again_and_again(rarely, ranks, tmp_path / "stopped", number, [0.0, 0.25, 0.4, 0.3]) >= 3
    assert_same_run(rarely.run.out, whole.run.out)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_at_twenty_moments(small: Config, tmp_path: Path, ranks: int) -> None:
    config = small.replace(epochs=200, save_every=0, log_every=7, eval_every=5)
    whole = config.replace(out=str(tmp_path / "whole"))
    finished(whole, ranks, tmp_path / "output")
    moments = [random.Random(ranks).uniform(0, 1.2) for _ in range(20)]
    assert stopped_again_and_again(config, ranks, tmp_path / "stopped", signal.SIGTERM, moments) == 20
    assert_same_run(config.run.out, whole.run.out)


def leaves_when_it_is_written(rank: int, config: Config) -> int:
    """The exit code of a run that is told to stop while the disk is slow; 99 where it left before the checkpoint."""
    save, batches = checkpoint.save, TrainLoader.__iter__

    def slow(*arguments):
        time.sleep(1.0)
        return save(*arguments)

    def stopped(loader):
        for batch in batches(loader):
            if batch.step == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch

    checkpoint.save, TrainLoader.__iter__ = slow, stopped
    code = train.main(command_line(config))
    return code if (Path(config.run.out) / "checkpoints" / "newest").exists() else 99


def test_no_rank_leaves_before_the_checkpoint_is_on_disk(small: Config, tmp_path: Path) -> None:
    """srun --kill-on-bad-exit and torchrun stop the others within seconds of the first that ends."""
    config = small.replace(save_every=0)
    with world(2, tmp_path / "output", leaves_when_it_is_written, config) as running:
        assert running.wait(60) == [command.PREEMPTED] * 2, running.printed(0)
