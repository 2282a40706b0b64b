"""Slurm's environment variables, turned into torchrun's."""

from __future__ import annotations

import re
from collections.abc import MutableMapping

_PORTS = range(20000, 30000)  # below the ports that Linux gives to outgoing connections


def adopt_slurm(environment: MutableMapping[str, str]) -> bool:
    """Write torchrun's variables for a process that `srun` started without torchrun; returns whether it is one.

    RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE come from SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID and
    SLURM_STEP_TASKS_PER_NODE. Unless they are set, MASTER_ADDR is the first host of the step and MASTER_PORT follows
    from the job's number. A batch script, which is not a step of its job, and a single task stay alone.

    Raises:
        ValueError: Slurm's variables contradict each other.
    """
    if "RANK" in environment or "SLURM_STEP_ID" not in environment:
        return False
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1)
    if tasks == 1:
        return False
    rank = int(environment["SLURM_PROCID"])
    if not 0 <= rank < tasks:
        raise ValueError(f"SLURM_PROCID is {rank} of SLURM_NTASKS {tasks}: start the command by srun, or by torchrun")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    if not nodes and "MASTER_ADDR" not in environment:
        raise ValueError("Slurm names no hosts (SLURM_JOB_NODELIST is missing): set MASTER_ADDR to the first one")
    on_each = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or str(tasks)
    job = int(environment.get("SLURM_JOB_ID", 0)) + int(environment["SLURM_STEP_ID"])
    environment.update(
        RANK=str(rank),
        WORLD_SIZE=str(tasks),
        LOCAL_RANK=environment["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(_tasks_of(on_each, int(environment.get("SLURM_NODEID", 0)))),
    )
    environment.setdefault("MASTER_ADDR", first_host(nodes) if nodes else "")
    environment.setdefault("MASTER_PORT", str(_PORTS[job % len(_PORTS)]))
    return True


def first_host(nodes: str) -> str:
    """The first host of Slurm's compressed list: "gpu[07-09,12],fat1" begins with gpu07."""
    first = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    assert first is not None  # every part may be empty
    return first[1] + (first[2] or "") + first[3]


def _tasks_of(on_each: str, node: int) -> int:
    """The tasks of a node from Slurm's compressed counts: "8(x2),4" are 8, 8 and 4."""
    counts: list[int] = []
    for part in on_each.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[node] if node < len(counts) else counts[-1]
