"""Signals that reach the ranks at different moments."""

import hashlib
import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from deit_fast import command
from deit_fast.ranks.group import Ranks
from deit_fast.ranks.heartbeat import RankLost, Status
from deit_fast.ranks.preemption import Preempted, Preemption
from tests.deit_fast.world import world


@pytest.mark.parametrize("signalled", [True, False])
def test_a_rank_that_was_told_to_stop_is_not_lost_with_one_that_stopped_first(signalled: bool) -> None:
    with pytest.raises(Preempted if signalled else RankLost) as ended, Preemption() as preemption:
        with preemption.training(Ranks(1, 2, torch.device("cpu")), 0):
            if signalled:
                os.kill(os.getpid(), signal.SIGUSR1)
            raise RankLost(Status(0, "node1", 7))  # rank 0 was still setting up, where a signal ends it at once
    assert ended.value.code == (command.PREEMPTED if signalled else command.LOST)


def in_a_long_call(_rank: int, training: bool) -> int:
    """Two Ctrl-C while the main thread is in a library, as in the backward pass of a large batch."""
    for seconds in (0.1, 0.6):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    with Preemption() as preemption, ExitStack() as stack:
        if training:
            stack.enter_context(preemption.training(Ranks(0, 1, torch.device("cpu")), 0))
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
    return 0


@pytest.mark.parametrize("training", [True, False])
def test_ctrl_c_is_answered_and_a_second_ends_a_long_call(training: bool, tmp_path: Path) -> None:
    with world(1, tmp_path, in_a_long_call, training) as running:
        assert running.wait(30) == [command.INTERRUPTED]
        after = " after a checkpoint" if training else ""
        assert f"stopping{after}; Ctrl-C again stops at once" in running.printed(0)
