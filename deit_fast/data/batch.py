"""One batch: read and decode its images, plan their augmentation, put them on the device.

A batch is a pure function of (data set, policy, data seed, rows); `order.py` gives the rows. One decode serves all
copies of an image in the batch: its pixels are in memory once, and the rows of the plan point at them. Random crops are
drawn as soon as an image's sides are known, so only the part of a JPEG file around them is decoded (`jpeg_part.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_kernels.augment import AugmentPlan, ImageBatch, Policy, sample_plan
from deit_kernels.augment.plan import ratio_limit

from .decode import BadImage, Part
from .device import (
    CpuAugment,
    CudaAugment,
    Finished,
    Gathered,
    HostOnly,
    Options,
    Seconds,
    Target,
    columns,
    map_target,
    tail_bytes,
)
from .jpeg_part import RandomCrops
from .memory import RECENT, Arena, usual
from .mixing import Mixing
from .order import Samples
from .sources.dataset import Dataset, ReadImage, read_image
from .sources.in_memory import InMemory

RUN = 4  # images per decoding task: submitting a task costs a twentieth of decoding an image
IGNORE = -100  # the label that losses and accuracies do not count


def bad_image(path: str, reason: str) -> BadImage:
    """The error of --bad-images fail."""
    return BadImage(f"{path}: {reason}: repair or remove it, or type --bad-images skip")


class Batch(NamedTuple):
    """b rows of a global batch of B.

    Attributes:
        step: the training step, or the number of the evaluation batch.
        images: (b, 3, S, S), or (b, (S/P)², 3·P²) in the layout "patches", on the device; zeros where the
            image, or the one to be mixed with it, could not be read.
        labels: int64 (b,) on the device, of the image itself, also where another is mixed into it; IGNORE where
            `images` is zero because a file is unreadable.
        samples: int64 (b,) in host memory, indices into the data set.
        positions: int64 (b,) in host memory, places in the global batch, 0 … B − 1, for label caches and drop-path.
        target: what losses take: `labels`, or where images are mixed a MixedTarget with the same labels.
    """

    step: int
    images: Tensor
    labels: Tensor
    samples: Tensor
    positions: Tensor
    target: Target


def slices(rows: int, micro_batch: int) -> int:
    """The smallest number of equal parts of `rows` that are no larger than `micro_batch`; 0: no limit."""
    return next(parts for parts in range(1, rows + 1) if rows % parts == 0 and rows <= parts * (micro_batch or rows))


def parts(batch: Batch, micro_batch: int) -> Iterator[Batch]:
    """The batch in `slices(rows, micro_batch)` equal parts."""
    count = slices(len(batch.labels), micro_batch)
    size = len(batch.labels) // count
    for rows in (slice(index * size, (index + 1) * size) for index in range(count)):
        fields = {name: getattr(batch, name)[rows] for name in ("images", "labels", "samples", "positions")}
        yield batch._replace(**fields, target=map_target(itemgetter(rows), batch.target))


class Built(NamedTuple):
    """A batch with what only its loader needs."""

    batch: Batch
    finished: Finished
    reasons: dict[str, str]  # path → what is wrong, of its bad images
    labelled: int  # rows that have a label


class Started(NamedTuple):
    """A batch whose images are being decoded."""

    step: int
    rows: Samples  # b
    distinct: NDArray[np.int64]  # (d,), the images of the batch
    image_of_row: NDArray[np.int64]  # (b,), indices into `distinct`
    arena: Arena
    decoding: list[Future[list[ReadImage]]]  # RUN of the distinct images each; none if the data set is in memory


class BatchBuilder:
    """Builds the batches of a loader, on `threads` threads of the executors that `start` and `finish` are given.

    Raises:
        ValueError: an argument outside its range, or a data set that is too large to be kept in memory.
    """

    def __init__(
        self, dataset: Dataset, policy: Policy, data_seed: int, mixing: Mixing | None, options: Options, threads: int
    ):
        self._dataset, self._policy, self._data_seed, self._mixing = dataset, policy, data_seed, mixing
        self._options, self._ratio_limit = options, ratio_limit(policy)
        self.seconds = Seconds()
        augment = {"cuda": CudaAugment, "meta": HostOnly}.get(options.device.type, CpuAugment)
        self.augment = augment(policy, options, threads, mixing, self.seconds)
        self._needed: deque[int] = deque(maxlen=RECENT)  # bytes of each of the last batches
        self._expected = 0
        self._plan(Samples(0, *np.zeros((3, 0), np.int64)), *np.zeros((2, 0), np.int32))  # checks the seed
        if options.in_memory:
            self._dataset = InMemory(dataset, threads, options.exif_orientation, self._ratio_limit)
            if self.augment.on_device:
                self._dataset.to(self.augment.device)

    def start(self, step: int, rows: Samples, submit: Callable[..., Future[list[ReadImage]]]) -> Started:
        """Begin to decode the images of a step, RUN of them a task."""
        distinct, image_of_row = np.unique(rows.sample, return_inverse=True)
        arena = Arena(self.augment.pixels, self._expected)
        counters = np.stack(np.broadcast_arrays(rows.epoch, rows.sample, rows.copy), axis=-1)
        crops = RandomCrops(self._policy.numbers(self._data_seed), counters, image_of_row)
        cropped = self._policy.crop == "random_resized"

        def read(first: int) -> list[ReadImage]:
            return [
                read_image(
                    self._dataset, index, wanted=partial(crops.box, image) if cropped else None, reserve=arena.reserve,
                    exif_orientation=self._options.exif_orientation, ratio_limit=self._ratio_limit,
                )
                for image, index in enumerate(distinct[first : first + RUN].tolist(), first)
            ]  # fmt: skip

        in_memory = isinstance(self._dataset, InMemory)
        decoding = [] if in_memory else [submit(read, first) for first in range(0, len(distinct), RUN)]
        return Started(step, rows, distinct, image_of_row, arena, decoding)

    def finish(self, started: Started, executor: Executor) -> Built:
        """The batch; on a CPU, `executor` augments.

        Raises:
            BadImage: an image is unreadable and bad_images is "fail"; the text names it.
        """
        rows = started.rows
        gathered, reasons = self._gather(started)
        finished = self.augment(gathered, executor)
        labels = columns(finished.target)[0]
        numbers = torch.from_numpy(rows.sample), torch.from_numpy(rows.position)
        batch = Batch(started.step, finished.images, labels, *numbers, finished.target)
        labelled = len(labels) if gathered.blank is None else int((~gathered.blank).sum())
        return Built(batch, finished, reasons, labelled)

    def _gather(self, started: Started) -> tuple[Gathered, dict[str, str]]:
        """The rows in host memory, and path → reason of the bad images."""
        rows, arena = started.rows, started.arena
        tail = tail_bytes(len(rows.sample))
        if isinstance(self._dataset, InMemory):
            bad = {index: self._dataset.bad[index] for index in started.distinct.tolist() if index in self._dataset.bad}
            images = self._dataset.rows(torch.from_numpy(rows.sample))
            block, _, end = arena.gather([], tail)
            plan = self._plan(rows, images.height.numpy(), images.width.numpy())
        else:
            bad, parts = self._decoded(started)
            block, offset, end = arena.gather([part.pixels for part in parts], tail)
            self._needed.append(end + tail)
            self._expected = usual(self._needed)
            # For every row: the sides of what was decoded, its place in the image, the sides of the image.
            sides = [(*part.pixels.shape[:2], *part[1:]) for part in parts]
            height, width, *place = np.array(sides, np.int32).reshape(-1, 6)[started.image_of_row].T.copy()
            tables = (offset[started.image_of_row], height, width)
            images = ImageBatch(block[:end], *map(torch.from_numpy, tables))
            top, left, *whole = place
            plan = self._plan(rows, *whole).within(top, left, height, width)
        reasons = {self._dataset.path(index): str(reason) for index, reason in bad.items()}
        if reasons and self._options.bad_images == "fail":
            raise bad_image(*next(iter(reasons.items())))

        labels, blank = torch.from_numpy(self._dataset.labels[rows.sample]), None
        mix = None if self._mixing is None else self._mixing.plan(started.step)
        if bad:
            blank = torch.from_numpy(np.isin(rows.sample, list(bad)))
            if mix is not None:
                blank |= blank[mix.partner_row]
            labels[blank] = IGNORE
        target = labels if mix is None else mix.target(labels)
        return Gathered(images, plan.place(images), mix, target, blank, block, end), reasons

    def _decoded(self, started: Started) -> tuple[dict[int, BadImage], list[Part]]:
        """The bad images by index, and what was decoded of all distinct images, in their order.

        A bad image is replaced by one black pixel, so that the other rows keep their places and their bits.
        """
        bad: dict[int, BadImage] = {}
        decoded = []
        images = chain.from_iterable(future.result() for future in started.decoding)
        for index, image in zip(started.distinct.tolist(), images, strict=True):
            self.seconds.add(read=image.read, decode=image.decode)
            part = image.part
            if isinstance(part, BadImage):
                bad[index] = part
                part = Part.whole(started.arena.reserve(1, 1))
                part.pixels[:] = 0
            decoded.append(part)
        return bad, decoded

    def _plan(self, rows: Samples, height: NDArray[np.int32], width: NDArray[np.int32]) -> AugmentPlan:
        return sample_plan(
            self._policy, seed=self._data_seed, epoch=rows.epoch, sample=rows.sample, copy=rows.copy, height=height,
            width=width,
        )  # fmt: skip
