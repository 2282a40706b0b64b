"""Who this process is among the others, and how a plain command becomes one process for each GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size`; `rank` 0 prints and writes, everyone reads."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    def total(self, counts: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(counts)
        return counts

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; anything that pickles, e.g. a dict of strings."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def same_buffers(self, model: nn.Module) -> None:
        """Give every rank rank 0's buffers: batch norm's statistics, which each rank takes from its own images."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def main_first(self, body: Callable[[], T]) -> T:
        """Run `body` on rank 0, then on the others: it may download, or fill a cache.

        Raises:
            ValueError: rank 0's, on every rank alike, so that all end together and with the same words.
        """
        if self.world_size == 1:
            return body()
        message: list[str | None] = [None]
        if not self.main:
            dist.broadcast_object_list(message, src=0)
            if message[0] is not None:
                raise ValueError(message[0])
            return body()
        try:
            result = body()
        except ValueError as error:
            message[0] = str(error)
            raise
        finally:
            dist.broadcast_object_list(message, src=0)
        return result


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the group that torchrun describes in the environment; alone without one.

    A process group that the caller set up is used and left standing.
    """
    world_size, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    ours = world_size > 1 and not dist.is_initialized()
    if ours:
        # An hour: the others wait while rank 0 fetches a teacher or writes a data set.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(hours=1))
    try:
        yield Ranks(dist.get_rank() if world_size > 1 else 0, world_size, device)
    finally:
        if ours:
            dist.destroy_process_group()


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m deit_fast.train arguments` once for each GPU, with torch's elastic launcher.

    Returns:
        0, the exit code of the process that failed first, or 130 when interrupted.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "deit_fast.train", *arguments)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
