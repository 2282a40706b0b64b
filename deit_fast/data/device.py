"""From decoded images and their plan to a batch on its device.

`CpuAugment` runs the C++ op in the decoding threads; `HostOnly` measures the host's work for a GPU's batch.
`CudaAugment` sends pixels, plans and target of a batch in one copy and augments on the GPU, on a stream of its own. The
consumer's stream waits for the batch by an event, its host thread never does. Not yet measured on a GPU.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_kernels import MixedTarget, _extension
from deit_kernels.augment import AugmentPlan, ImageBatch, MixPlan, Policy, apply, apply_out
from deit_kernels.augment.mix import MIX
from deit_kernels.augment.plan import ROW

from .memory import Blocks, aligned, to_device
from .mixing import Mixing, part_of, parts_of

CPU = torch.device("cpu")
Layout = Literal["nchw", "channels_last", "patches"]
OnBadImage = Literal["skip", "fail"]
Target = Tensor | MixedTarget  # for the loss: labels, or those of two images and their shares


def why_on_the_cpu(device: torch.device) -> str | None:
    """Why a GPU's batches are augmented on the CPU, in words to print; None where that is not so."""
    return _extension.cuda_missing if device.type == "cuda" else None


def map_target(change: Callable[[Tensor], Tensor], target: Target) -> Target:
    """The target with each of its tensors changed."""
    return change(target) if isinstance(target, Tensor) else MixedTarget(*map(change, target))


def columns(target: Target) -> tuple[Tensor, ...]:
    """The tensors of a target."""
    return (target,) if isinstance(target, Tensor) else tuple(target)


@dataclass(frozen=True)
class Options:
    """How batches are built, in training and in evaluation.

    Raises:
        ValueError: a value outside its range.
    """

    threads: int | None = None  # that decode; None: the usable cores divided by the ranks on this machine
    prefetch: int = 3  # batches built ahead of the consumer
    bad_images: OnBadImage = "skip"  # "skip" blanks an unreadable image, removes its label and names it; "fail" stops
    exif_orientation: bool = False  # turn images as their EXIF orientation says; timm and torchvision do not
    in_memory: bool = False  # decode the whole set once, at construction, and keep its pixels
    device: torch.device = CPU  # where images and labels go; "meta": only the host's work for a GPU
    dtype: torch.dtype = torch.float32  # of the images
    layout: Layout = "nchw"  # of the images, as `deit_kernels.augment.apply` takes it
    patch: int = 16  # as above

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"{self.threads} threads decode nothing: give 1 or more, or none for the number of cores")
        if self.prefetch < 1:
            raise ValueError(f"prefetch is the number of batches built ahead, 1 or more, got {self.prefetch}")
        if self.bad_images not in ("skip", "fail"):
            raise ValueError(f"bad images {self.bad_images!r}: type --bad-images skip or --bad-images fail")


@dataclass
class Seconds:
    """Where time went: in decoding threads, on the device, and in the consumer, which runs beside them."""

    read: float = 0.0  # sum over threads, as the next one
    decode: float = 0.0
    copy: float = 0.0  # to the device
    augment: float = 0.0
    wait: float = 0.0  # of the consumer for a batch

    def add(self, **seconds: float) -> None:
        for name, value in seconds.items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.1f} s" for name, value in vars(self).items())


class Gathered(NamedTuple):
    """b rows in host memory."""

    images: ImageBatch  # pixels in `block`, or on the device if the whole set is kept there
    plan: AugmentPlan  # placed
    mix: MixPlan | None  # which rows are mixed; None: none
    target: Target
    blank: Tensor | None  # bool (b,), rows without a readable image; None: none
    block: Tensor  # uint8, pixels up to `end`, then `tail_bytes`
    end: int  # a multiple of ALIGNMENT

    def _tail(self, block: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What travels behind the pixels (the plans' rows, then the target), each with its place in a block."""
        at = self.end
        for column in (self.plan.rows, *(() if self.mix is None else (self.mix.rows,)), *columns(self.target)):
            yield column, block[at : at + column.nbytes].view(column.dtype).view(column.shape)
            at += aligned(column.nbytes)

    def pack(self) -> Tensor:
        """The block to copy to a device: the pixels, and what travels behind them."""
        for column, place in self._tail(self.block):
            place.copy_(column)
        return self.block

    def unpacked(self, staged: Tensor) -> tuple[AugmentPlan, MixPlan | None, Target]:
        """Both plans and the target in a copy of the packed block."""
        rows, *others = (place for _, place in self._tail(staged))
        plan = self.plan._replace(rows=rows)
        if self.mix is None:
            return plan, None, others[0]
        return plan, self.mix._replace(rows=others[0]), MixedTarget(*others[1:])


def tail_bytes(rows: int) -> int:
    """Enough for the plans and the target of `rows` rows, mixed or not, behind the pixels of a block."""
    return sum(aligned(rows * size) for size in (ROW.itemsize, MIX.itemsize, 8, 8, 4))


class Finished(NamedTuple):
    """Images and target on the device; complete for a stream that waits for `ready`."""

    images: Tensor
    target: Target
    ready: torch.cuda.Event | None


def without_torch_threads(others: int) -> None:
    """Run torch's ops in the calling thread alone; other threads, also new ones, keep `others` threads.

    torch.set_num_threads sets the number of its thread and the default of threads that have not used torch yet, so a
    short-lived thread restores the default.
    """
    torch.get_num_threads()  # a thread's first use takes the default, even after its number was set
    torch.set_num_threads(1)
    restoring = threading.Thread(target=torch.set_num_threads, args=(others,))
    restoring.start()
    restoring.join()


class CpuAugment:
    """Augments into host memory, which is reused when nothing refers to the batch.

    The rows are divided among the decoding threads. torch's own threads would double their number and spin while they
    wait for each other: on two busy cores that took a quarter more processor time. So each of the executor's `threads`
    is `without_torch_threads`.
    """

    def __init__(self, policy: Policy, options: Options, threads: int, mixing: Mixing | None, seconds: Seconds):
        self.device = options.device
        self.on_device = why_on_the_cpu(self.device) is None  # whether the augmentation runs on `device`
        self._dtype, self._layout, self._patch = options.dtype, options.layout, options.patch
        self._threads, self._mixing, self._seconds = threads, mixing, seconds
        pinned = self.device.type == "cuda"
        self.pixels, self._outputs = Blocks(pinned), Blocks(pinned)
        # An empty batch checks dtype, layout and patch, and gives the shape of a row.
        nothing = AugmentPlan(torch.empty(0, ROW.itemsize, dtype=torch.uint8), policy)
        self._row = self._applied(ImageBatch.from_images([]), nothing, None).shape[1:]

    def _applied(self, images: ImageBatch, plan: AugmentPlan, mix: MixPlan | None) -> Tensor:
        return apply(images, plan, mix, dtype=self._dtype, layout=self._layout, patch=self._patch)

    def __call__(self, gathered: Gathered, executor: Executor) -> Finished:
        count = len(gathered.plan.rows)
        memory = self._outputs.take(count * self._row.numel() * self._dtype.itemsize).view(self._dtype)
        if self._layout == "channels_last":
            channels, *side = self._row
            out = memory.view(count, *side, channels).permute(0, 3, 1, 2)
        else:
            out = memory.view(count, *self._row)
        parts = parts_of(count, self._mixing, self._threads)
        for done in [executor.submit(self._augment_part, gathered, out, part) for part in parts]:
            self._seconds.add(augment=done.result())
        if gathered.blank is not None:
            out[gathered.blank] = 0
        return Finished(out, gathered.target, None)

    def _augment_part(self, gathered: Gathered, out: Tensor, rows: NDArray[np.int64]) -> float:
        """Augment some rows of a batch, ascending; returns the seconds it took."""
        began = time.perf_counter()
        neighbours = rows[-1] - rows[0] + 1 == len(rows)
        part = slice(rows[0], rows[-1] + 1) if neighbours else torch.from_numpy(rows)
        data, *tables = gathered.images
        images = ImageBatch(data, *(table[part] for table in tables))
        plan = AugmentPlan(gathered.plan.rows[part], gathered.plan.policy)
        mix = None if gathered.mix is None else part_of(gathered.mix, rows)
        if neighbours:
            apply_out(images, plan, mix, out=out[part], layout=self._layout, patch=self._patch)
        else:
            out[part] = self._applied(images, plan, mix)
        return time.perf_counter() - began

    def hand_over(self, finished: Finished) -> None:
        """Called when the consumer takes the batch."""

    def used(self) -> torch.cuda.Event | None:
        """An event: once it has passed, no batch handed over so far is in use on the device. None: none is now."""
        return None


class HostOnly(CpuAugment):
    """The host's work for a GPU's batch, without a GPU: pixels, plans and target are packed and not sent.

    Images and target are meta tensors: shape and type, no content.
    """

    def __call__(self, gathered: Gathered, executor: Executor) -> Finished:
        gathered.pack()
        images = torch.empty(len(gathered.plan.rows), *self._row, dtype=self._dtype, device="meta")
        return Finished(images, map_target(lambda column: column.to("meta"), gathered.target), None)


class CudaAugment(CpuAugment):
    """One copy to the device, then the CUDA op; without the CUDA extension, the CPU's op and a copy.

    Events and streams exclude three races: a host block is reused only after its copy (`_copying` holds it until then),
    the device's staging memory only by the next batch of the same stream, and a batch's memory only when the consumer's
    stream is done with it (`record_stream`).
    """

    def __init__(self, policy: Policy, options: Options, threads: int, mixing: Mixing | None, seconds: Seconds):
        super().__init__(policy, options, threads, mixing, seconds)
        # Named here, since other threads have another current device.
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        self.device = torch.device("cuda", index)
        # Only one stream: the allocator keeps memory apart for each.
        self._stream = torch.cuda.Stream(self.device)
        self._copying: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        self._releasing = threading.Lock()  # two iterators of a loader have a thread each
        self._timed: deque[tuple[torch.cuda.Event, torch.cuda.Event, torch.cuda.Event]] = deque()

    def __call__(self, gathered: Gathered, executor: Executor) -> Finished:
        with self._releasing:
            while self._copying and self._copying[0][0].query():
                self._copying.popleft()
            while self._timed and self._timed[0][2].query():
                began, copied, ready = self._timed.popleft()
                self._seconds.add(copy=began.elapsed_time(copied) / 1000, augment=copied.elapsed_time(ready) / 1000)
        host = gathered.pack() if self.on_device else super().__call__(gathered, executor).images
        began, copied, ready = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            began.record()
            images = host.to(self.device, non_blocking=True)
            copied.record()
            self._copying.append((copied, host))
            if self.on_device:
                images, target = self._augment(gathered, images)
            else:
                target = map_target(partial(to_device, device=self.device), gathered.target)
            ready.record()
        self._timed.append((began, copied, ready))
        return Finished(images, target, ready)

    def _augment(self, gathered: Gathered, staged: Tensor) -> tuple[Tensor, Target]:
        """The images and the target of a packed block on the device."""
        images = gathered.images
        if images.data.device.type == "cpu":
            images = images._replace(data=staged[: gathered.end])
        plan, mix, target = gathered.unpacked(staged)
        out = self._applied(images, plan, mix)
        if gathered.blank is not None:  # rare; a mask on the device, since an index would wait for it
            out.masked_fill_(to_device(gathered.blank, self.device).view(-1, *[1] * (out.dim() - 1)), 0)
        # Copies: views would keep the whole staging memory as long as the consumer keeps the target.
        return out, map_target(Tensor.clone, target)

    def hand_over(self, finished: Finished) -> None:
        assert finished.ready is not None
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(finished.ready)
        for tensor in (finished.images, *columns(finished.target)):
            tensor.record_stream(stream)

    def used(self) -> torch.cuda.Event:
        event = torch.cuda.Event(blocking=True)  # a thread that waits for it sleeps
        event.record(torch.cuda.current_stream(self.device))
        return event
