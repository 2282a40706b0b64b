"""The group of processes that train or evaluate together: which rank this one is, and what ranks do in common.

with join() as ranks:               # torchrun's or Slurm's environment; alone without one
    ranks.rank, ranks.world_size, ranks.device, ranks.cores
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..command import sentence
from . import meeting
from .cores import bind, share_of_cores
from .slurm import adopt_slurm

T = TypeVar("T")

# While setting up, rank 0 may download a teacher or unpack a data set; later it writes checkpoints at most.
_SETTING_UP, _TRAINING = timedelta(hours=1), timedelta(minutes=15)


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size`; rank 0 prints and writes."""

    rank: int
    world_size: int
    device: torch.device
    cores: int = 1  # that this process may keep busy
    binding: str = ""  # the cores that its threads are bound to, in words
    warnings: tuple[str, ...] = ()  # of the meeting, e.g. about unequal GPUs

    @property
    def main(self) -> bool:
        return self.rank == 0

    def decisions(self) -> list[tuple[str, str, str]]:
        """(what, value, reason) of what follows from the machines, to be printed."""
        decided = [("cores", f"{self.cores} for each process", self.binding)]
        if self.world_size > 1 and self.device.type == "cuda":
            chosen = {name: value for name, value in sorted(os.environ.items()) if name.startswith("NCCL_")}
            listed = " ".join(f"{name}={value}" for name, value in chosen.items()) or "no NCCL_ variable is set"
            decided.append(("nccl", ".".join(map(str, torch.cuda.nccl.version())), listed))
        return decided + [("warning", text, "") for text in self.warnings]

    def wait(self) -> None:
        """A barrier."""
        if self.world_size > 1:
            dist.barrier()

    def total(self, counts: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(counts)
        return counts

    def begin_total(self, counts: Tensor) -> Callable[[], Tensor]:
        """Begin the sum over ranks, in place, and return what waits for it: until then, no rank waits for another."""
        work = dist.all_reduce(counts, async_op=True) if self.world_size > 1 else None

        def total() -> Tensor:
            if work:
                work.wait()
            return counts

        return total

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; anything that pickles."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def agree(self, what: str, value: object, advice: str) -> None:
        """Raise ValueError on every rank, naming the first that differs, unless all have rank 0's value."""
        if self.world_size == 1:
            return
        everyone = self.gather((value, socket.gethostname()))
        for rank, (theirs, host) in enumerate(everyone):
            if theirs != everyone[0][0]:
                raise ValueError(f"rank {rank} on {host} has {what} {theirs}, rank 0 has {everyone[0][0]}: {advice}")

    def same_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's buffers to every rank: batch norm's statistics come from each rank's own images."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def on_main(self, body: Callable[[], T]) -> T:
        """Run `body` on rank 0 only; every rank gets its result, which has to pickle.

        Raises:
            ValueError: rank 0's ValueError or OSError, on every rank with the same words.
            RuntimeError: on the other ranks, when rank 0 ends by an error of another kind.
        """
        if self.world_size == 1:
            return body()
        outcome: list[Any] = [None, None]  # result, and the error to raise instead
        defect: Exception | None = None
        if self.main:
            try:
                outcome[0] = body()
            except (ValueError, OSError) as error:
                outcome[1] = ValueError(sentence(error))
            except Exception as error:  # sent before it is raised, or the others would wait for rank 0
                outcome[1], defect = RuntimeError(f"rank 0 has ended by {type(error).__name__}: {error}"), error
        dist.broadcast_object_list(outcome, src=0)
        if failure := defect or outcome[1]:
            raise failure
        return outcome[0]

    def main_first(self, body: Callable[[], T]) -> T:
        """Run `body` on rank 0, then on the others: it may download, or fill a cache.

        Raises:
            ValueError: the first rank's that failed, on every rank with the same words.
        """
        if self.world_size == 1:
            return body()
        own: list[T] = []
        self.on_main(lambda: own.append(body()))
        message = None
        if not self.main:
            try:
                own.append(body())
            except (ValueError, OSError) as error:
                message = f"{sentence(error)} (rank {self.rank} on {socket.gethostname()})"
        if failed := next(filter(None, self.gather(message)), None):
            raise ValueError(failed)
        return own[0]

    def training_begins(self) -> None:
        """From now on a collective that hangs is an error after 15 minutes, not after the hour of setting up."""
        if self.world_size > 1 and hasattr(dist, "set_timeout"):  # public since torch 2.12
            dist.set_timeout(_TRAINING)


def has_bf16(device: torch.device) -> bool:
    """Whether this is a GPU with bfloat16 arithmetic: what --teacher-precision auto asks."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def compiles(choice: str, device: torch.device) -> bool:
    """Whether --compile `choice` compiles; "auto" does on a GPU, since on a CPU it takes longer than it saves."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


@contextmanager
def join(agreed: dict[str, Any] | None = None, check: Callable[[], None] = lambda: None) -> Iterator[Ranks]:
    """Join the group that the environment describes; alone without one.

    Before any device is touched, all ranks meet at rank 0's store. They go on with equal flags and code, each with a
    GPU of its own or all without. A process group that the caller has made is used and left open. `agreed` are JSON
    values that all ranks must have alike, by flag; `check` raises ValueError for a mistake.

    Raises:
        ValueError: on every rank, with the same words.
    """
    adopt_slurm(os.environ)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    device, problem = _device()
    binding = "" if problem else bind(device)
    own = meeting.introduce(agreed or {}, check, device, problem)
    everyone, ours = [own], world_size > 1 and not dist.is_initialized()
    if world_size > 1:
        store = meeting.open_store(rank, world_size) if ours else dist.distributed_c10d._get_default_store()
        everyone, fresh = meeting.meet(store, rank, world_size, own)
    elif own.problem:
        raise ValueError(own.problem)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ours:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=world_size, timeout=_SETTING_UP)
    cores = share_of_cores(own.cores, [other.cores for other in everyone if other.host == own.host])
    try:
        yield Ranks(rank, world_size, device, cores, binding, tuple(meeting.warnings(everyone)))
    except BaseException:
        # Destroying NCCL's group would wait for a rank that is gone, and this process is about to end.
        ours = ours and device.type == "cpu"
        raise
    finally:
        if ours:
            dist.destroy_process_group()


def _device() -> tuple[torch.device, str | None]:
    """This rank's device, and why it cannot take part, if it cannot."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not visible:
        return torch.device("cpu"), None
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_nccl_available():
        return torch.device("cpu"), (
            "this torch has no NCCL, by which GPUs exchange gradients: install a build that has it, or type --gpus 1"
        )
    if local_rank < visible:
        return torch.device("cuda", local_rank), None
    # Slurm's --gpus-per-task=1 shows each task its own as the first.
    if visible == 1 and "SLURM_STEP_ID" in os.environ and not dist.is_torchelastic_launched():
        return torch.device("cuda", 0), None
    return torch.device("cpu"), (
        f"process {local_rank} of this machine has no GPU of its own, {visible} "
        f"{'is' if visible == 1 else 'are'} visible: type --nproc-per-node {visible}"
    )
