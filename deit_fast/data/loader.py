"""Batches for training and evaluation, built in threads a few steps ahead of the consumer.

    loader = TrainLoader(train, Policy.deit(224), Share(len(train), batch_size=256), total_steps=1000)
    for batch in loader:
        loss = cross_entropy(model(batch.images), batch.target)    # a label is IGNORE where the file was bad
    loader.seconds, loader.bad_images

A batch has the same bits for any number of threads, any prefetch and any start step, and in the order "grouped" the
batches of n ranks, one after the other, are the batch of one rank. One thing differs: whether a damaged file is noticed
can depend on the number of ranks and on the start step (`jpeg_part.py`). `loader.seek(epoch, step)` goes to any batch
at no cost. Threads are enough because decoders and augmentation release the interpreter's lock.

Each `iter(loader)` owns its threads and starts again at the first step. The threads end with the iterator: when it is
exhausted, closed, dropped, or ended by an exception. An exception in a thread is raised at the batch it belongs to.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch

from deit_kernels.augment import Policy

from .batch import Batch, BatchBuilder, Built, Started
from .decode import BadImage
from .device import Options, without_torch_threads
from .mixing import Mixing
from .order import Samples, Share
from .sources.dataset import Dataset


class _Loader:
    """The threads; a subclass defines the rows of a step.

    There are three kinds. A feeder starts the decoding of batches; decoders read and decode, and augment on a CPU; an
    assembler plans and sends to the device. So a batch is decoded while the one before it is augmented.
    """

    def __init__(
        self, dataset: Dataset, policy: Policy, data_seed: int, world_size: int, mixing: Mixing | None, options: Options
    ):
        self.bad_images: dict[str, str] = {}
        self.labelled = 0
        self._steps = range(0)
        self._threads, self._prefetch = options.threads or default_threads(world_size), options.prefetch
        self._builder = BatchBuilder(dataset, policy, data_seed, mixing, options, self._threads)
        self.seconds = self._builder.seconds

    def __len__(self) -> int:
        """Batches of one iteration."""
        return len(self._steps)

    @property
    def wait_seconds(self) -> float:
        """Time that the consumer has waited for batches so far."""
        return self.seconds.wait

    def __iter__(self) -> Iterator[Batch]:
        augment = self._builder.augment
        device = augment.device
        # A new thread's current device is GPU 0, where pinning memory would open a context for every rank.
        on_device = (torch.cuda.set_device, (device,)) if device.type == "cuda" else (None, ())
        feeder = ThreadPoolExecutor(1, "deit_fast-feed", *on_device)
        alone = without_torch_threads, (torch.get_num_threads(),)
        decoders = ThreadPoolExecutor(self._threads, "deit_fast-decode", *alone)
        assembler = ThreadPoolExecutor(1, "deit_fast-assemble", *on_device)
        # Few tasks wait for the decoders: a batch is augmented by them too, and that must not wait until the next
        # batches are decoded. Its images would have left the CPU's caches, and after it the threads would be idle.
        few = threading.Semaphore(2 * self._threads)
        steps = iter(self._steps)

        def decode(task: Callable[..., Any], *arguments: object) -> Future[Any]:
            """Submit a task when fewer than two a thread are queued or running."""
            few.acquire()
            try:
                future = decoders.submit(task, *arguments)
            except RuntimeError:  # shut down
                few.release()
                raise
            future.add_done_callback(lambda _: few.release())  # also when it is cancelled
            return future

        def start(step: int, given_back: torch.cuda.Event | None) -> Started:
            if given_back is not None:
                given_back.synchronize()  # in this thread: the consumer goes on
            return self._builder.start(step, self._rows(step), decode)

        def finish(started: Future[Started]) -> Built:
            return self._builder.finish(started.result(), decoders)

        def submit(count: int) -> Iterator[Future[Built]]:
            """Begin the next steps, each after the device has finished with the batches that the consumer returned."""
            given_back = augment.used()
            for step in islice(steps, count):
                yield assembler.submit(finish, feeder.submit(start, step, given_back))

        try:
            ahead = deque(submit(self._prefetch))
            while ahead:
                started = time.perf_counter()
                built = ahead.popleft().result()
                self.seconds.add(wait=time.perf_counter() - started)
                self.bad_images |= built.reasons
                self.labelled += built.labelled
                self._check(built)
                ahead.extend(submit(1))
                augment.hand_over(built.finished)
                batch = built.batch
                del built
                yield batch
                del batch  # so that its memory is free for the next one as soon as the consumer drops it
        finally:
            # Decoders first: the assembler waits for them, and a cancelled decode ends that wait.
            for executor in (decoders, feeder, assembler):
                executor.shutdown(cancel_futures=True)

    def _rows(self, step: int) -> Samples:
        raise NotImplementedError

    def _check(self, built: Built) -> None:
        """Raise BadImage when the batch has too many bad images to continue."""


class TrainLoader(_Loader):
    """Augmented training batches of the steps start_step … total_steps − 1.

    Args:
        dataset: images and labels.
        policy: how each image is augmented and, by its `mix`, pairs are mixed (see `mixing.py`).
        share: the rows of every global batch (see `order.py`).
        options: see `Options`.

    Attributes:
        mixing: how rows are mixed; None where they are not.
        seconds: where time went so far (`Seconds`); wait_seconds is its `wait`.
        bad_images: path → reason of the images skipped so far.
        labelled: rows so far that have a label.

    Raises:
        ValueError: at construction, an argument outside its range.
        BadImage: while iterating, an unreadable image ("fail"), or a step without a readable one ("skip", on one rank:
            among several, another may have one).
    """

    def __init__(
        self, dataset: Dataset, policy: Policy, share: Share, *, total_steps: int, start_step: int = 0,
        **options: Any,
    ):  # fmt: skip
        if not 0 <= start_step <= total_steps:
            raise ValueError(f"start step {start_step} is outside 0 … {total_steps}, the steps of this run")
        assert share.images == len(dataset)
        self.share, self.mixing = share, Mixing.of_share(policy, share)
        super().__init__(dataset, policy, share.data_seed, share.world_size, self.mixing, Options(**options))
        self._steps = range(start_step, total_steps)

    def seek(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration start at a step of an epoch, both counted from 0.

        Raises:
            ValueError: there is no such step in this run.
        """
        steps, stop = self.share.steps_per_epoch, self._steps.stop
        target = epoch * steps + step
        if not (0 <= step < steps and 0 <= target <= stop):
            raise ValueError(f"epoch {epoch}, step {step} is not in this run of {stop} steps, {steps} an epoch")
        self._steps = range(target, stop)

    def _rows(self, step: int) -> Samples:
        return self.share.samples(step)

    def _check(self, built: Built) -> None:
        if not built.labelled and self.share.world_size == 1:  # among several, the other ranks' rows may be readable
            first = ": ".join(next(iter(built.reasons.items())))
            what = "pair of readable images to mix" if self.mixing else "readable image"
            raise BadImage(f"step {built.batch.step} has no {what}; the first of {len(built.reasons)} is {first}")


class EvalLoader(_Loader):
    """Every image of this rank once: rank, rank + world_size, …; the last batch is shorter and nothing is padded.

    Arguments and attributes are those of `TrainLoader`; `batch_size` is that of this rank.

    Raises:
        ValueError: at construction, an argument outside its range.
        BadImage: while iterating, an unreadable image ("fail"), or at the end when none was readable ("skip", on one
            rank). A batch may have no readable image: files are in the order of their classes, and a class may be
            broken.
    """

    def __init__(
        self, dataset: Dataset, policy: Policy, *, batch_size: int, rank: int = 0, world_size: int = 1,
        **options: Any,
    ):  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} holds no image: type --batch-size 1 or more")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is outside 0 … {world_size - 1}, the ranks of {world_size} processes")
        # An evaluation policy draws nothing, so its seed does not matter; nothing is mixed, whatever the policy.
        super().__init__(dataset, policy, 0, world_size, None, Options(**options))
        self._samples = range(rank, len(dataset), world_size)
        self._batch_size, self._world_size = batch_size, world_size
        self._steps = range(math.ceil(len(self._samples) / batch_size))

    def __iter__(self) -> Iterator[Batch]:
        yield from super().__iter__()
        if self._steps and len(self.bad_images) == len(self._samples) and self._world_size == 1:
            first = ": ".join(next(iter(self.bad_images.items())))
            raise BadImage(f"none of the {len(self._samples)} images is readable; the first is {first}")

    def _rows(self, step: int) -> Samples:
        sample = np.array(self._samples[step * self._batch_size : (step + 1) * self._batch_size])
        position = sample - step * self._batch_size * self._world_size
        return Samples(0, sample, np.zeros_like(sample), position)


def default_threads(world_size: int) -> int:
    """The cores this process may use, divided by the ranks on this machine ($LOCAL_WORLD_SIZE, else all of them)."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
