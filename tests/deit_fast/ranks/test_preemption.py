"""Signals that reach the ranks at different moments."""

import os
import signal

import pytest
import torch

from deit_fast import command
from deit_fast.ranks.group import Ranks
from deit_fast.ranks.heartbeat import RankLost, Sign
from deit_fast.ranks.preemption import Preempted, Preemption


@pytest.mark.parametrize("signalled", [True, False])
def test_a_rank_that_was_told_to_stop_is_not_lost_with_one_that_stopped_first(signalled: bool) -> None:
    with pytest.raises(Preempted if signalled else RankLost) as ended, Preemption() as preemption:
        with preemption.training(Ranks(1, 2, torch.device("cpu")), 0):
            if signalled:
                os.kill(os.getpid(), signal.SIGUSR1)
            raise RankLost(Sign(0, "node1", 7), 1)  # rank 0 was still setting up, where a signal ends it at once
    assert ended.value.code == (command.PREEMPTED if signalled else command.LOST)
