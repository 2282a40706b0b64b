"""What ranks leave behind, and who is named when the others wait."""

import dataclasses
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch

from deit_fast.command import LOST, NOBODY
from deit_fast.ranks import heartbeat
from deit_fast.ranks.heartbeat import Heartbeat, RankLost, Status, read, waited_for, warning

HERE = socket.gethostname()


def leave(folder: Path, status: Status) -> None:
    """A status of another rank."""
    beat = Heartbeat(status.rank, 3)
    beat._status = status
    beat._folder = folder
    beat._write()


def test_a_rank_leaves_its_stage(tmp_path: Path) -> None:
    with Heartbeat(1, 2) as beat:
        beat.at("step", 57)
        beat.begin(tmp_path)
        (status,) = read(tmp_path, 2)
        assert (status.rank, status.stage, status.step, status.pid, status.host) == (1, "step", 57, os.getpid(), HERE)
        assert not status.gone and status.code is None
        beat.at("checkpoint")
    assert read(tmp_path, 2)[0].stage == "checkpoint"


def test_a_file_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    heartbeat.path(tmp_path, 0).write_text('{"rank": 0, "host"')
    heartbeat.path(tmp_path, 1).write_text("[]")
    assert read(tmp_path, 3) == []


@pytest.mark.parametrize(("error", "code"), [(ValueError, 2), (OSError, 2), (ZeroDivisionError, 1)])
def test_an_error_of_its_own_leaves_its_exit_code(tmp_path: Path, error: type[Exception], code: int) -> None:
    with pytest.raises(error), Heartbeat(0, 1) as beat:
        beat.begin(tmp_path)
        raise error
    assert read(tmp_path, 1)[0].code == code


def test_an_interruption_is_no_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Heartbeat(0, 1) as beat:
        beat.begin(tmp_path)
        raise KeyboardInterrupt
    assert read(tmp_path, 1)[0].code is None


def test_a_signal_before_the_thread_is_started_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Heartbeat) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Heartbeat(0, 1) as beat:
        monkeypatch.setattr(Heartbeat, "_write", interrupted)
        try:
            beat.begin(tmp_path)
        finally:
            monkeypatch.undo()


def broken_collective(folder: Path) -> RankLost:
    with pytest.raises(RankLost) as raised, Heartbeat(0, 3) as beat:
        beat.begin(folder)
        raise RuntimeError("Connection closed by peer")
    return raised.value


def test_a_rank_that_was_killed_is_named_with_its_last_stage(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    time.sleep(0.2)  # it has ended and nobody has asked for its exit code: a zombie
    leave(tmp_path, Status(1, HERE, process.pid, "data", 7))
    leave(tmp_path, Status(2, HERE, os.getpid(), "step", 7))
    lost = broken_collective(tmp_path)
    process.wait()
    assert f"rank 1 (process {process.pid} on {HERE}) is gone" in str(lost)
    assert "in the stage data of step 7" in str(lost) and "The same command continues" in str(lost)
    assert (lost.code, lost.printed_by) == (LOST, 0)
    assert "rank 1" in str(broken_collective(tmp_path))  # the process table has forgotten it


def test_a_silent_rank_of_another_machine_is_taken_for_gone(tmp_path: Path) -> None:
    status = Status(1, "elsewhere", 1, "step", 7, written=time.time())
    assert not status.gone
    assert dataclasses.replace(status, written=time.time() - 60).gone


def test_the_others_end_with_the_code_of_the_rank_that_failed(tmp_path: Path) -> None:
    leave(tmp_path, Status(2, HERE, os.getpid(), "data", 7))
    leave(tmp_path, Status(1, HERE, os.getpid(), "data", 7, code=2))
    lost = broken_collective(tmp_path)
    assert (lost.code, lost.printed_by) == (2, NOBODY)


def test_an_error_stays_itself_while_everyone_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heartbeat._culprit, "__defaults__", (0.1,))
    leave(tmp_path, Status(1, HERE, os.getpid(), "step", 7))
    for error in (RuntimeError("of another kind"), torch.OutOfMemoryError("")):
        with pytest.raises(type(error)), Heartbeat(0, 2) as beat:
            beat.begin(tmp_path)
            raise error


def test_the_rank_that_the_others_wait_for(tmp_path: Path) -> None:
    now = 1000.0
    statuses = [Status(0, "a", 1, "step", 9, now - 70, now), Status(1, "b", 2, "data", 9, now - 70, now)]
    assert waited_for(statuses, now) == [statuses[1]]
    assert (
        warning([statuses[1]], now, 2)
        == "rank 1 (process 2 on b) has been in the stage data of step 9 for 70 s; others wait"
    )
    statuses[1].written = now - 69
    assert "for 70 s and gives no sign of life; others wait" in warning([statuses[1]], now, 2)
    statuses[1].since = now - 5
    assert waited_for(statuses, now) == []


def test_a_stage_that_all_are_in_may_take_its_time() -> None:
    now = 1000.0
    statuses = [Status(rank, "a", 1, "evaluation", 9, now - 120, now) for rank in range(2)]
    assert waited_for(statuses, now) == []
    assert waited_for(statuses, now + 600) == statuses
    assert warning(statuses, now + 600, 2) == "every rank has been in the stage evaluation of step 9 for 720 s"


def test_rank_0_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.05)
    leave(tmp_path, Status(1, HERE, os.getpid(), "data", 2, since=time.time() - 100))
    with Heartbeat(0, 2) as beat:
        beat.at("step", 2)
        beat.begin(tmp_path)
        deadline = time.monotonic() + 20
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
    (said,) = caplog.messages
    assert said.startswith("rank 1 ") and "others wait" in said
