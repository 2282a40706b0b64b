"""Which image stands where in training: pure functions of (data seed, step), so resuming is slicing.

Training is one endless stream of positions. Step s takes the slice [s·B, (s+1)·B) of it; a step never mixes two epochs.

    rows = samples(step, data_seed=0, images=len(dataset), batch_size=256, repeats=3, rank=1, world_size=8)
    rows.epoch, rows.sample, rows.copy, rows.position       # the arguments of the augmentation's plan

Two orders:

`grouped`: an epoch has ⌊N/B⌋ steps. Every rank takes a contiguous part of the slice, whatever the number of ranks: the
global batch is the same for all of them. With repeated augmentation (Hoffer et al. 2020; DeiT uses R = 3) position p of
an epoch shows image order[p // R], copy p % R. An epoch keeps its number of steps and so sees 1/R of the images, as the
official code's. The copies are neighbours: where every rank's rows are a multiple of R they meet on one rank and the
image is decoded once. Otherwise some copies fall to the next rank or step; the batches stay exactly the same, the image
is decoded once more.

`official`: the index lists of the official code, element by element: its `RASampler` (deit/samplers.py) with repeats,
torch's `DistributedSampler` without, with `drop_last`. Rank r takes every W-th position, so the copies of an image lie
on different ranks and are decoded there. The permutation depends on the epoch only, not on the data seed; the number of
steps, and in the last step of an epoch the images, depend on the number of ranks. (Without torch.distributed the
official code shuffles without a seed, which nobody can repeat; one rank has the lists of a world of one.)

Mixing (mixup, CutMix) happens inside mix groups: g consecutive positions of the global batch, in which position p is
mixed with position (p + g/2) mod g. With g/2 ≥ R no image meets a copy of itself, and because g divides every rank's
rows a group never lies on two ranks, so the mixed batch too is the same for every number of ranks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deit_kernels.philox import Stream, philox

OrderKind = Literal["grouped", "official"]
ORDERS = ("grouped", "official")
OFFICIAL_BLOCK = 256  # RASampler shows a multiple of this many images an epoch


class Samples(NamedTuple):
    """What one rank shows in one step.

    Attributes:
        epoch: the epoch of the step, counted from 0.
        sample: int64 (b,), indices into the dataset.
        copy: int64 (b,), which of the R augmented copies of the image, 0 … R − 1.
        position: int64 (b,), the row's place in the global batch, 0 … B − 1.
    """

    epoch: int
    sample: NDArray[np.int64]
    copy: NDArray[np.int64]
    position: NDArray[np.int64]


@lru_cache(maxsize=2)  # a step reads one epoch, prefetching reads the next; 10 MB each on ImageNet
def epoch_order(data_seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    """The permutation of one epoch: indices sorted by a 64-bit Philox key each, ties by index.

    Args:
        data_seed: 64-bit seed of order and augmentation.
        epoch: counted from 0, below 2**32.
        images: N, below 2**32.

    Returns:
        int64 (N,), read-only because it is shared between calls.
    """
    words = philox(data_seed, Stream.ORDER, epoch, np.arange(images), 0, 0)
    keys = words[:, 0].astype(np.uint64) << np.uint64(32) | words[:, 1]
    order = np.argsort(keys, kind="stable")
    order.flags.writeable = False
    return order


@lru_cache(maxsize=2)
def official_order(epoch: int, images: int) -> NDArray[np.int64]:
    """The permutation that the official code's samplers draw: torch's, seeded with the epoch.

    Returns:
        int64 (N,), read-only because it is shared between calls.
    """
    order = torch.randperm(images, generator=torch.Generator().manual_seed(epoch)).numpy()
    order.flags.writeable = False
    return order


def steps_per_epoch(
    images: int, batch_size: int, *, order: OrderKind = "grouped", repeats: int = 1, world_size: int = 1
) -> int:
    """Steps of an epoch; the remainder, less than one batch and other images every time, is not shown.

    grouped: ⌊N/B⌋. official: whole batches of what its sampler gives a rank, ⌊⌊N/256⌋·256/W⌋ images with repeats and
    ⌈N/W⌉ without.

    Raises:
        ValueError: batch_size is below 1, does not divide among the ranks or is larger than the number of images.
    """
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} holds no image: type --batch-size 1 or more")
    if order not in ORDERS:
        raise ValueError(f"order {order!r}: type --order grouped or --order official")
    if order == "grouped":
        most = images
    elif repeats > 1:
        most = images // OFFICIAL_BLOCK * OFFICIAL_BLOCK // world_size * world_size
    else:
        most = -(-images // world_size) * world_size
    if batch_size > most:
        what = f"{images} training images" if most >= images else f"{most} of {images} images of an official epoch"
        way = f"type --batch-size {most} or less" if most else "type --order grouped"
        raise ValueError(f"batch size {batch_size} is larger than the {what}: {way}")
    return most // batch_size


def rank_slice(step: int, batch_size: int, rank: int, world_size: int) -> range:
    """The positions of the endless stream that a rank shows in a step: a contiguous part of [s·B, (s+1)·B).

    Args:
        batch_size: the global batch, over all ranks.

    Raises:
        ValueError: rank is outside [0, world_size), or batch_size is no multiple of world_size.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside 0 … {world_size - 1}, the ranks of {world_size} processes")
    rows, rest = divmod(batch_size, world_size)
    if rest or not rows:
        nearest = [str(size) for size in (rows * world_size, (rows + 1) * world_size) if size]
        raise ValueError(
            f"global batch size {batch_size} does not divide among {world_size} processes: "
            f"type --batch-size {' or '.join(nearest)}"
        )
    start = step * batch_size + rank * rows
    return range(start, start + rows)


def samples(
    step: int,
    *,
    data_seed: int,
    images: int,
    batch_size: int,
    repeats: int = 1,
    order: OrderKind = "grouped",
    rank: int = 0,
    world_size: int = 1,
) -> Samples:
    """What a rank shows in a step, b = batch_size / world_size rows.

    Args:
        step: counted from 0 over all epochs.
        images: N, the size of the training set.
        batch_size: B, over all ranks.
        repeats: R, augmented copies of every image.
        order: "grouped" or "official", see above.

    Raises:
        ValueError: repeats below 1, and as `steps_per_epoch` and `rank_slice`.
    """
    if repeats < 1:
        raise ValueError(f"repeats {repeats} shows no image: type --repeats 1 (each image once) or more")
    steps = steps_per_epoch(images, batch_size, order=order, repeats=repeats, world_size=world_size)
    epoch, step_in_epoch = divmod(step, steps)
    span = rank_slice(0, batch_size, rank, world_size)  # of the step's own slice
    if order == "official":
        position = np.arange(rank, batch_size, world_size)
        # The official list is filled up from its start to a multiple of the ranks; those rows are further copies.
        round_, place = np.divmod(position + step_in_epoch * batch_size, images * repeats)
        sample = official_order(epoch, images)[place // repeats]
        return Samples(epoch, sample, place % repeats + round_ * repeats, position)
    position = np.arange(span.start, span.stop)
    place = position + step_in_epoch * batch_size
    return Samples(epoch, epoch_order(data_seed, epoch, images)[place // repeats], place % repeats, position)


def mix_group(batch_size: int, repeats: int = 1) -> int:
    """The smallest size of a mix group that a global batch allows, so the one that suits most numbers of ranks.

    Raises:
        ValueError: no even divisor of the batch leaves the copies of an image apart.
    """
    for group in range(2 * repeats, batch_size + 1, 2):
        if batch_size % group == 0:
            return group
    raise ValueError(
        f"mixing needs groups of an even number of rows, at least twice the {repeats} repeats, that divide "
        f"--batch-size {batch_size}: type --batch-size {max(1, batch_size // (2 * repeats)) * 2 * repeats}"
    )


def check_mix_group(group: int, *, repeats: int, rows: int) -> None:
    """Whether a rank (or a micro-batch) of `rows` rows can be mixed in groups of this size.

    Raises:
        ValueError: the group is odd, smaller than twice the repeats, or no divisor of the rows.
    """
    if group < 2 or group % 2 or group // 2 < repeats or rows % group:
        raise ValueError(
            f"a mix group of {group} does not fit: it is even, at least twice the {repeats} repeats (so that no image "
            f"is mixed with its own copy) and divides the {rows} rows of a rank"
        )


def mix_partner(position: NDArray[np.int64], group: int) -> NDArray[np.int64]:
    """The position in the global batch that each position is mixed with: half a group further, within the group."""
    return position // group * group + (position + group // 2) % group
