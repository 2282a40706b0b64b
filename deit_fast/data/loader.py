"""Batches for training and evaluation, built in threads a few steps ahead of the consumer.

    loader = TrainLoader(train, Policy.deit(224), data_seed=0, batch_size=256, total_steps=1000)
    for batch in loader:
        loss = criterion(model(batch.images), batch.labels)        # a label is IGNORE where the file was bad
    loader.wait_seconds, loader.bad_images

A batch has equal bits for any number of threads, any prefetch and any start step, and the batches of n ranks, one after
the other, are the batch of one rank. Threads are enough because Pillow's decoders and the augmentation release the
interpreter's lock.

Each `iter(loader)` owns its threads and starts again at the first step. The threads end with the iterator: exhausted,
closed, dropped, or ended by an exception. An exception in a thread is raised as itself, at the batch it belongs to.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from deit_kernels.augment import Policy

from .batch import Batch, BatchBuilder, Layout, OnBadImage
from .decode import BadImage
from .order import Samples, samples
from .sources import Dataset

CPU = torch.device("cpu")


class _Loader:
    """The threads; a subclass says which rows a step has."""

    def __init__(self, builder: BatchBuilder, steps: range, world_size: int, threads: int | None, prefetch: int):
        if threads is not None and threads < 1:
            raise ValueError(f"{threads} threads decode nothing: give 1 or more, or none for the number of cores")
        if prefetch < 1:
            raise ValueError(f"prefetch is the number of batches built ahead, 1 or more, got {prefetch}")
        self.wait_seconds = 0.0
        self.bad_images: dict[str, str] = {}
        self._builder = builder
        self._steps = steps
        self._threads = threads or default_threads(world_size)
        self._prefetch = prefetch

    def __len__(self) -> int:
        """Batches of one iteration."""
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        device = self._builder.device
        # A new thread starts on GPU 0, where pinning memory would open a context for every rank.
        start = (torch.cuda.set_device, (device,)) if device.type == "cuda" else (None, ())
        builders = ThreadPoolExecutor(self._prefetch, "deit_fast-batch", *start)
        decoders = ThreadPoolExecutor(self._threads, "deit_fast-decode")
        coming = (builders.submit(self._build, step, decoders) for step in self._steps)
        try:
            ahead: deque[Future[tuple[Batch, dict[str, str]]]] = deque(islice(coming, self._prefetch))
            while ahead:
                started = time.perf_counter()
                batch, reasons = ahead.popleft().result()
                self.wait_seconds += time.perf_counter() - started
                self.bad_images |= reasons
                self._check(batch, reasons)
                ahead.extend(islice(coming, 1))
                yield batch
        finally:
            # Decoders first: builders wait for them, and a cancelled decode ends that wait.
            decoders.shutdown(cancel_futures=True)
            builders.shutdown(cancel_futures=True)

    def _build(self, step: int, decoders: Executor) -> tuple[Batch, dict[str, str]]:
        return self._builder.build(step, self._rows(step), decoders)

    def _rows(self, step: int) -> Samples:
        raise NotImplementedError

    def _check(self, batch: Batch, reasons: dict[str, str]) -> None:
        """Raise BadImage when the batch has too many bad images to go on."""


class TrainLoader(_Loader):
    """Augmented training batches of the steps start_step … total_steps − 1.

    Args:
        dataset: images and labels.
        policy: how each image is augmented.
        data_seed: 64-bit seed of order and augmentation.
        batch_size: B, rows of a step over all ranks.
        total_steps, start_step: a resumed run starts at the step where it stopped.
        repeats: augmented copies of every image, side by side in the batch (see `order.py`).
        rank, world_size: which contiguous part of the global batch to give, of B / world_size rows.
        threads: that decode; default: the usable cores divided by the ranks on this machine.
        prefetch: batches built ahead of the consumer.
        bad_images: "skip" blanks an unreadable image, takes its label away and names it in `bad_images`; "fail" stops.
        device: where images and labels go.
        dtype, layout, patch: of the images, as `deit_kernels.augment.apply` takes them.

    Attributes:
        wait_seconds: time that the consumer has waited for batches so far.
        bad_images: path → reason of the images skipped so far.

    Raises:
        ValueError: at construction, an argument outside its range.
        BadImage: while iterating, an unreadable image ("fail"), or a step without a single readable one ("skip").
    """

    def __init__(
        self,
        dataset: Dataset,
        policy: Policy,
        *,
        data_seed: int,
        batch_size: int,
        total_steps: int,
        start_step: int = 0,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
        threads: int | None = None,
        prefetch: int = 2,
        bad_images: OnBadImage = "skip",
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        layout: Layout = "nchw",
        patch: int = 16,
    ):
        if not 0 <= start_step <= total_steps:
            raise ValueError(f"start step {start_step} is outside 0 … {total_steps}, the steps of this run")
        builder = BatchBuilder(dataset, policy, data_seed, bad_images, device, dtype, layout, patch)
        super().__init__(builder, range(start_step, total_steps), world_size, threads, prefetch)
        self._order = dict(
            data_seed=data_seed,
            images=len(dataset),
            batch_size=batch_size,
            repeats=repeats,
            rank=rank,
            world_size=world_size,
        )
        self._rows(start_step)  # raises now, not in a thread, when the settings are impossible

    def _rows(self, step: int) -> Samples:
        return samples(step, **self._order)

    def _check(self, batch: Batch, reasons: dict[str, str]) -> None:
        if reasons and len(reasons) == len(set(batch.samples.tolist())):
            first = ": ".join(next(iter(reasons.items())))
            raise BadImage(f"step {batch.step} has no readable image; the first of {len(reasons)} is {first}")


class EvalLoader(_Loader):
    """Every image of this rank once: rank, rank + world_size, …; the last batch is shorter and nothing is padded.

    Args:
        batch_size: rows of a batch on this rank.
        the others: as `TrainLoader`.

    Attributes:
        wait_seconds, bad_images: as `TrainLoader`.

    Raises:
        ValueError: at construction, an argument outside its range.
        BadImage: while iterating, an unreadable image ("fail"), or at the end when this rank had no readable one
            ("skip"). A single batch may be all bad: files lie by class, and a class may be broken.
    """

    def __init__(
        self,
        dataset: Dataset,
        policy: Policy,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int | None = None,
        prefetch: int = 2,
        bad_images: OnBadImage = "skip",
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        layout: Layout = "nchw",
        patch: int = 16,
    ):
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} holds no image: type --batch-size 1 or more")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is outside 0 … {world_size - 1}, the ranks of {world_size} processes")
        # An evaluation policy draws nothing, so its seed does not matter.
        builder = BatchBuilder(dataset, policy, 0, bad_images, device, dtype, layout, patch)
        self._samples = range(rank, len(dataset), world_size)
        self._batch_size, self._world_size = batch_size, world_size
        steps = range(math.ceil(len(self._samples) / batch_size))
        super().__init__(builder, steps, world_size, threads, prefetch)

    def __iter__(self) -> Iterator[Batch]:
        yield from super().__iter__()
        if self._steps and len(self.bad_images) == len(self._samples):
            first = ": ".join(next(iter(self.bad_images.items())))
            raise BadImage(f"none of the {len(self._samples)} images is readable; the first is {first}")

    def _rows(self, step: int) -> Samples:
        sample = np.array(self._samples[step * self._batch_size : (step + 1) * self._batch_size])
        position = sample - step * self._batch_size * self._world_size
        return Samples(0, sample, np.zeros_like(sample), position)


def default_threads(world_size: int) -> int:
    """The cores this process may use, divided by the ranks on this machine ($LOCAL_WORLD_SIZE, else all of them)."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
