"""A training that hangs says in which stage, and its log where every thread is."""

import threading
import time
from pathlib import Path

import pytest

from deit_fast.ranks import heartbeat
from deit_fast.ranks.heartbeat import Heartbeat


def hang_here(until: threading.Event) -> None:
    until.wait(30)


def test_the_stuck_stage_is_named_once_and_the_threads_are_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "WAITED_FOR", 0.01)
    going_on = threading.Event()
    stuck = threading.Thread(target=hang_here, args=(going_on,), name="a decoder", daemon=True)
    stuck.start()
    with Heartbeat(0, 1) as status:
        status.begin(tmp_path)
        status.at("data", 57)
        log, deadline = tmp_path / "rank_0.log", time.monotonic() + 20
        while not (log.exists() and "hang_here" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
    going_on.set()
    assert "a decoder:" in log.read_text() and "hang_here" in log.read_text()
    assert capfd.readouterr().err.count("the training has been in the stage data of step 57 for ") == 1
