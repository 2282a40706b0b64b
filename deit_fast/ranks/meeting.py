"""What ranks tell each other before they begin, and the reasons why they may not begin."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import deit_fast
import deit_kernels

from ..config import changes
from ..names import flag

_MEETING = timedelta(minutes=5)  # between the first rank that comes and the last


@dataclass
class Introduction:
    """What one rank tells the others; JSON values only."""

    host: str
    problem: str | None  # why it cannot take part
    gpu: str  # its name; "" on a CPU
    gpu_id: str  # UUID
    gpu_memory: int  # bytes
    cores: list[int]  # that its threads may run on
    code: str  # see `code_version`
    config: dict[str, Any]  # flag -> value, those that all ranks must have alike


def introduce(
    agreed: dict[str, Any], check: Callable[[], None], device: torch.device, problem: str | None
) -> Introduction:
    """This rank's introduction; its problem is `problem`, or the ValueError of `check`."""
    if problem is None:
        try:
            check()
        except ValueError as error:
            problem = str(error)
    gpu, gpu_id, memory = "", "", 0
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu, gpu_id, memory = properties.name, str(properties.uuid), properties.total_memory
    cores = sorted(os.sched_getaffinity(0))
    return Introduction(socket.gethostname(), problem, gpu, gpu_id, memory, cores, code_version(), agreed)


@lru_cache(maxsize=1)
def code_version() -> str:
    """Versions of torch and of every Python file of ours, such as "torch 2.14.1, deit_fast 3f9a01c2"."""
    digest = hashlib.sha256()
    for package in (Path(deit_fast.__file__).parent, Path(deit_kernels.__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return f"torch {torch.__version__}, deit_fast {digest.hexdigest()[:8]}"


def find_problem(everyone: Sequence[Introduction]) -> str | None:
    """The first reason why these ranks cannot train together, in one sentence; None if they can."""
    first = everyone[0]
    for rank, other in enumerate(everyone):
        who = f"rank {rank} on {other.host}"
        if other.problem:
            return other.problem if rank == 0 else f"{other.problem} ({who})"
        if bool(other.gpu) != bool(first.gpu):
            without, having = (who, "rank 0 has one") if first.gpu else (f"rank 0 on {first.host}", f"{who} has one")
            return f"{without} has no GPU, {having}: start fewer processes, or hide all with CUDA_VISIBLE_DEVICES="
        if other.code != first.code:
            return f"{who} runs {other.code}, rank 0 {first.code}: install the same version on all machines"
        pairs = changes(first.config, other.config)
        if unlike := "; ".join(f"{flag(name)} {theirs!r}, rank 0 {ours!r}" for name, ours, theirs in pairs):
            return f"{who} has {unlike}: type the same command on all machines"
    shared = [gpu for gpu, count in Counter(other.gpu_id for other in everyone if other.gpu_id).items() if count > 1]
    if shared:
        owners = [f"{rank} on {other.host}" for rank, other in enumerate(everyone) if other.gpu_id == shared[0]]
        return f"ranks {' and '.join(owners)} have the same GPU: start one process for each GPU, no more"
    return None


def warnings(everyone: Sequence[Introduction]) -> list[str]:
    """Differences that cost speed only."""
    said = []
    kinds = Counter((other.gpu, other.gpu_memory >> 30) for other in everyone if other.gpu)
    if len(kinds) > 1:
        listed = ", ".join(f"{count} x {name} ({memory} GiB)" for (name, memory), count in kinds.most_common())
        said.append(f"the GPUs differ: {listed}; every step takes as long as the slowest")
    loads = Counter(other.host for other in everyone)
    if len(set(loads.values())) > 1:
        said.append(f"the machines run different numbers of processes: {dict(loads)}")
    return said


def open_store(rank: int, world_size: int) -> dist.Store:
    """Rank 0's store at MASTER_ADDR:MASTER_PORT."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ValueError(f"WORLD_SIZE is {world_size} but {' and '.join(missing)} is not set: start it by torchrun")
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=_MEETING))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            raise ValueError(f"the port of {where} is in use on this machine: set MASTER_PORT to another") from error
        raise ValueError(f"rank {rank} does not reach rank 0 at {where}: check MASTER_ADDR, MASTER_PORT") from error
    except dist.DistStoreError as error:
        raise ValueError(
            f"not all of the {world_size} ranks came to {where} within {_MEETING.seconds} s: see what the others "
            f"printed, or start fewer processes"
        ) from error
    return store


def meet(store: dist.Store, rank: int, world_size: int, own: Introduction) -> tuple[list[Introduction], dist.Store]:
    """Every rank's introduction, in their order, and the store under a prefix that only the ranks of this start know.

    After a restart by torchrun the store still holds the addresses of processes that are gone, and a rank that reads
    one waits for it. So each rank draws a number, and rank 0 publishes its own, which is the prefix, together with the
    numbers that it has seen, until every rank has found its own there and introduced itself under the prefix. What an
    earlier start left has other numbers. (torchrun's restart count would not do: it differs among agents.)

    Raises:
        ValueError: a rank did not come, or rank 0 found a problem; on every rank with the same words.
    """
    number, described = uuid.uuid4().hex, json.dumps(asdict(own))
    if rank == 0:
        names = [str(other) for other in range(world_size)]
        fresh = dist.PrefixStore(number, store)
        fresh.set("0", described)
        deadline = time.monotonic() + _MEETING.total_seconds()
        while (absent := [name for name in names if not fresh.check([name])]) and time.monotonic() < deadline:
            came = [name for name in absent if store.check([f"deit_fast/{name}"])]
            drawn = {name: store.get(f"deit_fast/{name}").decode() for name in came}
            store.set("deit_fast/start", json.dumps([number, drawn]))
            time.sleep(0.02)
        present = [name for name in names if name not in absent]
        everyone = [json.loads(fresh.get(name)) for name in present]
        finding = find_problem([Introduction(**one) for one in everyone])
        if absent:
            finding = (
                f"rank {', '.join(absent)} of {world_size} did not come within {_MEETING.seconds} s: see what it "
                f"printed, or start fewer processes"
            )
        fresh.set("finding", json.dumps([finding, everyone]))
        fresh.wait([f"{name} has read" for name in present[1:]], _MEETING)  # the store may end with this process
    else:
        store.set(f"deit_fast/{rank}", number)
        deadline = time.monotonic() + 2 * _MEETING.total_seconds()  # rank 0 may have begun to wait later
        prefix, drawn = "", {}
        while drawn.get(str(rank)) != number:
            if time.monotonic() > deadline:
                raise ValueError(f"rank 0 of {world_size} did not come: see what it printed, or start it")
            time.sleep(0.02)
            if store.check(["deit_fast/start"]):
                prefix, drawn = json.loads(store.get("deit_fast/start"))
        fresh = dist.PrefixStore(prefix, store)
        fresh.set(str(rank), described)
        fresh.wait(["finding"], 2 * _MEETING)
        finding, everyone = json.loads(fresh.get("finding"))
        fresh.set(f"{rank} has read", "")
    if finding:
        raise ValueError(finding)
    return [Introduction(**one) for one in everyone], fresh
