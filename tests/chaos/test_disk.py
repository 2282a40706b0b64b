"""A disk that is full for a whole training, and Ctrl-C twice: what was saved is whole, and the rest comes again."""

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from deit_fast import command
from deit_fast.config import Config
from deit_fast.run import checkpoint
from tests.chaos.runs import Fault, assert_same_run, finished, start, training, until_it_speaks
from tests.deit_fast.world import world


def with_small_files(rank: int, config: Config, size: int) -> int:
    """A training whose files cannot grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return training(rank, config, Fault(), "")


@pytest.fixture
def whole(small: Config, tmp_path: Path) -> Config:
    config = small.replace(epochs=4, out=str(tmp_path / "whole"))
    finished(config, 1, tmp_path / "output")
    return config


def test_a_training_that_can_write_no_checkpoint_ends_with_the_way_to_go_on(whole: Config, tmp_path: Path) -> None:
    config = whole.replace(out=str(tmp_path / "run"))
    with world(1, tmp_path / "full", with_small_files, config, 40_000) as running:
        codes = running.wait(120)
    printed = running.printed(0).replace("\n", " ")
    assert codes == [command.USAGE], printed
    assert "the checkpoint of step 2 is not written" in printed and "the training goes on" in printed
    assert "the weights of step 12 are not on disk" in printed and "make room" in printed
    assert not (tmp_path / "run" / "summary.json").exists()
    finished(config, 1, tmp_path / "room")
    assert_same_run(config.run.out, whole.run.out)


def test_a_tiny_full_file_system_never_holds_an_unreadable_run(whole: Config, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a file system here; the test before this one limits the size of files instead")
    try:
        config = whole.replace(out=str(disk / "run"))
        (disk / "ballast").write_bytes(bytes(2_500_000))
        with start(config, 1, tmp_path / "full") as running:
            assert running.wait(120) == [command.USAGE], running.printed(0)
        checkpoint.newest(disk / "run")
        (disk / "ballast").unlink()
        finished(config, 1, tmp_path / "room")
        assert_same_run(config.run.out, whole.run.out)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_is_whole(small: Config, tmp_path: Path) -> None:
    config = small.replace(epochs=200, save_every=2)
    with start(config, 1, tmp_path / "output") as running:
        until_it_speaks(running)
        while not (Path(config.run.out) / "checkpoints" / "newest").exists():
            time.sleep(0.01)
        process = running.processes[0]
        while process.is_alive():  # the first asks for a checkpoint, the second ends it, whichever comes through first
            os.kill(process.pid, signal.SIGINT)
            time.sleep(0.002)
        codes = running.wait(10)
    assert codes in ([-signal.SIGINT], [command.INTERRUPTED]), running.printed(0)
    assert checkpoint.newest(Path(config.run.out)) is not None
