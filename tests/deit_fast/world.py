"""Ranks as processes of this machine: forked from one that has imported everything, so that they start at once."""

import importlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_fast.config import Config
from deit_fast.ranks import heartbeat
from deit_fast.train.__main__ import main
from tests.deit_fast.command import command_line

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["deit_fast.train", "tests.deit_fast.world"])
# Beside these, a process of `world` is no rank.
NO_RANK = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK"), "")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@dataclass
class World:
    """Running ranks."""

    processes: list[Any]
    outputs: list[Path]

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes; a rank that has not ended by then is killed and counts as −9."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def printed(self, rank: int) -> str:
        return self.outputs[rank].read_text()


@contextmanager
def world(size: int, folder: Path, body: Callable[..., int], *arguments: Any, **environment: str):
    """`size` ranks that call body(rank, *arguments), each with its output in a file of `folder`.

    Args:
        body: a function of a module; what it returns is the exit code.
        environment: beside what torchrun would set; "{rank}" stands for the rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f"rank_{rank}.txt" for rank in range(size)]
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    processes = []
    for rank in range(size):
        variables = {**common, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, **environment}
        variables = {name: str(value).format(rank=rank) for name, value in variables.items()}
        process = _CONTEXT.Process(target=_rank, args=(outputs[rank], variables, sys.path, body, rank, arguments))
        process.start()
        processes.append(process)
    running = World(processes, outputs)
    try:
        yield running
    finally:
        for process in processes:
            process.kill()
            process.join()


def _rank(
    output: Path, variables: dict[str, str], path: list[str], body: Callable, rank: int, arguments: tuple
) -> None:
    import torch

    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update({name: value for name, value in variables.items() if value})
    for name in [name for name, value in variables.items() if not value]:
        os.environ.pop(name, None)
    sys.path[:] = path
    sys.exit(body(rank, *arguments))


def commanded(rank: int, config: Config, *others: Config) -> int:
    """Each rank's own command: those of `others` from rank 1 on."""
    return main(command_line((config, *others)[min(rank, len(others))]))


def called(rank: int, module: str, *arguments: object) -> int:
    """The same command on every rank."""
    return importlib.import_module(module).main([*map(str, arguments)])


def torchrun(number: int, *arguments: str) -> int:
    """The command of that name; its processes are new ones."""
    from torch.distributed import run

    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    run.main([*arguments])
    return 0


def seen(run: str, rank: int, step: int, ranks: int) -> heartbeat.Status:
    """The rank's status of life once it has come to `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for status in heartbeat.read(Path(run) / "logs", ranks):
            if status.rank == rank and status.step >= step:
                return status
        time.sleep(0.05)
    raise AssertionError(f"rank {rank} never came to step {step}")
