"""Which image is where in training: pure functions of (data seed, step), so a run can continue at any step.

Training is an endless stream of positions. Step s takes the slice [s·B, (s+1)·B) of it; no step spans two epochs.

    share = Share(images=len(dataset), batch_size=256, repeats=3, data_seed=0, rank=1, world_size=8)
    rows = share.samples(step)
    rows.epoch, rows.sample, rows.copy, rows.position       # the arguments of the augmentation's plan

Two orders:

`grouped`: an epoch has ⌊N/B⌋ steps. Each rank takes a contiguous part of the slice, so the global batch is the same for
any number of ranks. With repeated augmentation (Hoffer et al. 2020; DeiT uses R = 3) position p of an epoch shows image
order[p // R], copy p % R. An epoch keeps its number of steps and so sees 1/R of the images, as in the official code.
The copies are neighbours: if the rows of a rank are a multiple of R, all copies are on one rank and the image is
decoded once. Otherwise some copies belong to the next rank or step: the batches are the same, but the image is decoded
once more.

`official`: the index lists of the official code, element by element: its `RASampler` (deit/samplers.py) with repeats,
torch's `DistributedSampler` without, with `drop_last`. Rank r takes every W-th position, so the copies of an image lie
on different ranks and are decoded there. The permutation depends on the epoch only, not on the data seed; the number of
steps, and in the last step of an epoch the images, depend on the number of ranks. (Without torch.distributed the
official code shuffles without a seed, which nobody can repeat; one rank here has the lists of world size 1.)

Mixing (mixup, CutMix) happens inside mix groups: g consecutive positions of the global batch, in which position p is
mixed with position (p + g/2) mod g. With g/2 ≥ R no image is mixed with a copy of itself. Because g divides the rows of
every rank, no group is split between ranks, so the mixed batch is the same for any number of ranks too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from deit_kernels.philox import Stream, philox

from ..config import Order

OFFICIAL_BLOCK = 256  # RASampler shows a multiple of this many images an epoch


class Samples(NamedTuple):
    """The b rows of one rank in one step."""

    epoch: int  # counted from 0
    sample: NDArray[np.int64]  # (b,), indices into the dataset
    copy: NDArray[np.int64]  # (b,), which of the R augmented copies of the image, 0 … R − 1
    position: NDArray[np.int64]  # (b,), places in the global batch, 0 … B − 1


@lru_cache(maxsize=2)  # a step reads one epoch, prefetching reads the next; 10 MB each on ImageNet
def epoch_order(data_seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    """The permutation of one epoch: indices sorted by a 64-bit Philox key each, ties by index.

    Epoch and images N are below 2**32. Returns int64 (N,), read-only because it is shared between calls.
    """
    words = philox(data_seed, Stream.ORDER, epoch, np.arange(images), 0, 0)
    keys = words[:, 0].astype(np.uint64) << np.uint64(32) | words[:, 1]
    order = np.argsort(keys, kind="stable")
    order.flags.writeable = False
    return order


@lru_cache(maxsize=2)
def official_order(epoch: int, images: int) -> NDArray[np.int64]:
    """The permutation of the official code's samplers: torch's, seeded with the epoch. As `epoch_order` otherwise."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(epoch)).numpy()
    order.flags.writeable = False
    return order


@dataclass(frozen=True)
class Share:
    """The rows of one rank in every global batch.

    Raises:
        ValueError: a number outside its range, or a batch that is larger than the data set or does not divide among
            the ranks.
    """

    images: int  # N, the size of the training set
    batch_size: int  # B, over all ranks; the share is B / world_size rows
    repeats: int = 1  # R, augmented copies of every image
    order: Order = "grouped"  # or "official", see the module
    data_seed: int = 0  # 64 bits, of order, augmentation and mixing
    rank: int = 0  # this process's number
    world_size: int = 1  # how many processes there are

    def __post_init__(self) -> None:
        batch_size, ranks = self.batch_size, self.world_size
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} holds no image: type --batch-size 1 or more")
        if self.order not in get_args(Order):
            raise ValueError(f"order {self.order!r}: type --order grouped or --order official")
        if self.repeats < 1:
            raise ValueError(f"repeats {self.repeats} shows no image: type --repeats 1 (each image once) or more")
        if batch_size > (most := self.epoch_images):
            official = f"{most} of {self.images} images of an official epoch"
            what = official if most < self.images else f"{self.images} training images"
            way = f"type --batch-size {most} or less" if most else "type --order grouped"
            raise ValueError(f"batch size {batch_size} is larger than the {what}: {way}")
        if not 0 <= self.rank < ranks:
            raise ValueError(f"rank {self.rank} is outside 0 … {ranks - 1}, the ranks of {ranks} processes")
        if batch_size % ranks:
            below = batch_size // ranks * ranks
            sizes = " or ".join(str(size) for size in (below, below + ranks) if size)
            raise ValueError(
                f"global batch size {batch_size} does not divide among {ranks} processes: type --batch-size {sizes}"
            )

    @property
    def epoch_images(self) -> int:
        """Rows of an epoch before it is cut into whole batches: N, or what the official sampler gives all ranks."""
        if self.order == "grouped":
            return self.images
        if self.repeats > 1:
            return self.images // OFFICIAL_BLOCK * OFFICIAL_BLOCK // self.world_size * self.world_size
        return -(-self.images // self.world_size) * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the remainder, less than a batch and other images in every epoch, is not shown.

        grouped: ⌊N/B⌋. official: whole batches of what its sampler gives a rank, ⌊⌊N/256⌋·256/W⌋ images with repeats
        and ⌈N/W⌉ without.
        """
        return self.epoch_images // self.batch_size

    @property
    def rows(self) -> int:
        """b, the rows of a step."""
        return self.batch_size // self.world_size

    @property
    def positions(self) -> range:
        """Places of the rows in every global batch: neighbours, or every W-th in the official order."""
        official = self.order == "official"
        first, stride = (self.rank, self.world_size) if official else (self.rank * self.rows, 1)
        # `stop` is the last row + 1 exactly, since the file names of label caches hold these numbers.
        return range(first, first + (self.rows - 1) * stride + 1, stride if self.rows > 1 else 1)

    def samples(self, step: int) -> Samples:
        """The rows of a step, counted from 0 over all epochs."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        position = np.array(self.positions)
        place = position + step_in_epoch * self.batch_size
        if self.order == "official":
            order = official_order(epoch, self.images)
        else:
            order = epoch_order(self.data_seed, epoch, self.images)
        # The official list is padded from its start to a multiple of the ranks; those rows are further copies.
        image, copy = np.divmod(place, self.repeats)
        return Samples(epoch, order[image % self.images], copy + image // self.images * self.repeats, position)


def mix_group(batch_size: int, repeats: int = 1) -> int:
    """The smallest mix group that a global batch allows: it divides the rows of most numbers of ranks.

    Raises:
        ValueError: no even divisor of the batch keeps the copies of an image apart.
    """
    for group in range(2 * repeats, batch_size + 1, 2):
        if batch_size % group == 0:
            return group
    raise ValueError(
        f"mixing needs groups of an even number of rows, at least twice the {repeats} repeats, that divide "
        f"--batch-size {batch_size}: type --batch-size {max(1, batch_size // (2 * repeats)) * 2 * repeats}"
    )
