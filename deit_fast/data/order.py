"""Which image stands where in training: pure functions of (data seed, step), so resuming is slicing.

Training is one endless stream of positions. Step s takes the slice [s·B, (s+1)·B) of it; an epoch has ⌊N/B⌋ steps, so a
step never mixes two epochs. Every rank takes a contiguous part of the slice, whatever the number of ranks: the global
batch is the same for all of them.

    rows = samples(step, data_seed=0, images=len(dataset), batch_size=256, repeats=3, rank=1, world_size=8)
    rows.epoch, rows.sample, rows.copy, rows.position       # the arguments of the augmentation's plan

Repeated augmentation (Hoffer et al. 2020; DeiT uses R = 3): position p of an epoch shows image order[p // R], copy
p % R. An epoch keeps its number of steps and so sees 1/R of the images, as the official code's `RASampler`. The copies
are neighbours: where every rank's rows are a multiple of R they meet on one rank and the image is decoded once.
Otherwise some copies fall to the next rank or step; the batches stay exactly the same, the image is decoded once more.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from deit_kernels.philox import Stream, philox
from numpy.typing import NDArray


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


def steps_per_epoch(images: int, batch_size: int) -> int:
    """⌊N/B⌋: the remainder of an epoch, less than one batch and other images every time, is not shown.

    Raises:
        ValueError: batch_size is below 1 or larger than the number of images.
    """
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} holds no image: type --batch-size 1 or more")
    if batch_size > images:
        raise ValueError(
            f"batch size {batch_size} is larger than the {images} training images: type --batch-size {images} or less"
        )
    return images // batch_size


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
    step: int, *, data_seed: int, images: int, batch_size: int, repeats: int = 1, rank: int = 0, world_size: int = 1
) -> Samples:
    """What a rank shows in a step, b = batch_size / world_size rows.

    Args:
        step: counted from 0 over all epochs.
        images: N, the size of the training set.
        batch_size: B, over all ranks.
        repeats: R, augmented copies of every image.

    Raises:
        ValueError: repeats below 1, and as `steps_per_epoch` and `rank_slice`.
    """
    if repeats < 1:
        raise ValueError(f"repeats {repeats} shows no image: type --repeats 1 (each image once) or more")
    epoch, step_in_epoch = divmod(step, steps_per_epoch(images, batch_size))
    # Only the slice of the step inside its epoch matters from here on.
    span = rank_slice(step_in_epoch, batch_size, rank, world_size)
    place = np.arange(span.start, span.stop)
    order = epoch_order(data_seed, epoch, images)
    return Samples(epoch, order[place // repeats], place % repeats, place - step_in_epoch * batch_size)
