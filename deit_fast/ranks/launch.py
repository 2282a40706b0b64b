"""One process for each GPU, by torch's elastic launcher inside this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..command import INTERRUPTED, LOST, PREEMPTED
from . import heartbeat
from .heartbeat import LAUNCHED
from .slurm import adopt_slurm


def one_process_per_gpu(
    gpus: int, check: Callable[[], None], arguments: Sequence[str], logs: Path, module: str
) -> int | None:
    """`launch`, after `check`, where several GPUs (0: all) are to be used and nothing has started a process for each;
    None elsewhere."""
    if "RANK" in os.environ or adopt_slurm(os.environ):
        return None
    check()
    visible = torch.cuda.device_count()
    if gpus > visible:
        raise ValueError(f"--gpus {gpus}: {visible} visible here; leave --gpus out to use what there is")
    processes = gpus or visible
    return launch(arguments, processes, logs, module) if processes > 1 else None


def launch(arguments: Sequence[str], processes: int, logs: Path, module: str = "deit_fast.train") -> int:
    """Run `python -m module arguments` as `processes` processes of one group.

    When one fails, the others get SIGTERM, and SIGKILL 25 s later. A signal to this process goes to all of them; each
    has 25 s to save. The ranks' status files in `logs` tell in which stage one was killed.

    Returns:
        0; the exit code of the process that failed first; LOST if it was killed; after a signal to this process
        INTERRUPTED (Ctrl-C) or PREEMPTED.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "25")
    os.environ[LAUNCHED] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        return _exit_code({rank: failure.exitcode for rank, failure in error.failures.items()}, logs, processes)
    except SignalException as error:
        return INTERRUPTED if error.sigval == signal.SIGINT else PREEMPTED
    finally:
        del os.environ[LAUNCHED]
    return 0


def _exit_code(codes: dict[int, int], logs: Path, processes: int) -> int:
    """The code of the rank that failed by itself; a killed one is named with its last stage."""
    # The launcher itself sends SIGTERM to the others, which then end as preempted or lost.
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    if not killed:
        own = [code for code in codes.values() if code > 0 and code not in (LOST, PREEMPTED)]
        return next(iter(own), PREEMPTED if PREEMPTED in codes.values() else LOST)
    last = {status.rank: status for status in heartbeat.read(logs, processes)}
    for rank, number in killed.items():
        doing = f"in the stage {last[rank].stage} of step {last[rank].step}" if rank in last else "while setting up"
        hint = ": out of memory?" if number == signal.SIGKILL else ""
        print(
            f"error: rank {rank} was killed by {signal.Signals(number).name} {doing}{hint}; the same command continues "
            f"from the last checkpoint",
            file=sys.stderr,
        )
    return LOST
