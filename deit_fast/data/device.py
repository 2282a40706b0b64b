"""From decoded images and their plan to a batch on its device.

`CpuAugment` runs the C++ op in the calling thread and torch's thread pool; `HostOnly` measures the host's share of a
GPU's batch. `CudaAugment` sends pixels, plan and labels of a batch in one copy and augments on the GPU, on a stream of
its own; the consumer's stream waits for the batch by an event, and no host thread of the consumer ever does. The CUDA
side has not yet been measured on a GPU.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Executor
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deit_kernels import _extension
from deit_kernels.augment import AugmentPlan, ImageBatch, Policy, apply, apply_out
from deit_kernels.augment.plan import ROW

from .memory import Blocks, aligned

Layout = Literal["nchw", "channels_last", "patches"]


class Gathered(NamedTuple):
    """b rows in host memory.

    Attributes:
        images: pixels in `block`, or on the device where the whole set is kept there.
        plan: placed, in host memory.
        labels: int64 (b,).
        blank: bool (b,), rows without a readable image; None where all have one.
        block: uint8, pixels up to `end`, then room for the rows of the plan and the labels (`tail_bytes`).
        end: a multiple of the alignment.
    """

    images: ImageBatch
    plan: AugmentPlan
    labels: Tensor
    blank: Tensor | None
    block: Tensor
    end: int

    def pack(self) -> tuple[Tensor, int]:
        """What is copied to a device: pixels, rows of the plan from `end`, labels from the returned place on."""
        rows = self.plan.rows
        labels_at = aligned(self.end + rows.numel())
        stop = labels_at + 8 * len(self.labels)
        self.block[self.end : self.end + rows.numel()] = rows.view(-1)
        self.block[labels_at:stop] = self.labels.view(torch.uint8)
        return self.block[:stop], labels_at


def tail_bytes(rows: int, row_bytes: int) -> int:
    """Room for a plan of `rows` rows and as many labels behind the pixels of a block."""
    return aligned(rows * row_bytes) + 8 * rows


class Finished(NamedTuple):
    """Images and labels on the device; complete for a stream that waits for `ready`."""

    images: Tensor
    labels: Tensor
    ready: torch.cuda.Event | None


def without_torch_threads(others: int) -> None:
    """Let torch's ops run in the calling thread alone; other threads, also those to come, have `others` as before.

    torch.set_num_threads sets the number of its thread, and the default of threads that have not used torch yet. The
    default is put back by a thread that ends.
    """
    torch.get_num_threads()  # a thread's first use takes the default, also after its number was set
    torch.set_num_threads(1)
    restoring = threading.Thread(target=torch.set_num_threads, args=(others,))
    restoring.start()
    restoring.join()


class CpuAugment:
    """Augments into host memory that is used again when nobody holds the batch any more.

    The rows are shared out among the threads that decode. torch's own threads would be as many again, and they spin
    while they wait for each other: on two busy cores that took a quarter more processor time.

    Args:
        policy, dtype, layout, patch: as `deit_kernels.augment.apply` takes them.
        threads: of the executor that runs the parts, each `without_torch_threads`.
        pinned: the memory of outputs.
    """

    device = torch.device("cpu")
    on_device = True  # where the augmentation runs

    def __init__(
        self, policy: Policy, dtype: torch.dtype, layout: Layout, patch: int, threads: int, pinned: bool = False
    ):
        self._dtype, self._layout, self._patch = dtype, layout, patch
        self._threads = threads
        self.pixels, self._outputs = Blocks(), Blocks(pinned)
        self._augmenting = 0.0
        # An empty batch checks dtype, layout and patch, and tells the shape of a row.
        nothing = AugmentPlan(torch.empty(0, ROW.itemsize, dtype=torch.uint8), policy)
        self._row = apply(ImageBatch.from_images([]), nothing, dtype=dtype, layout=layout, patch=patch).shape[1:]

    def __call__(self, gathered: Gathered, executor: Executor) -> Finished:
        count = len(gathered.labels)
        memory = self._outputs.take(count * self._row.numel() * self._dtype.itemsize).view(self._dtype)
        if self._layout == "channels_last":
            channels, *side = self._row
            out = memory.view(count, *side, channels).permute(0, 3, 1, 2)
        else:
            out = memory.view(count, *self._row)
        share = -(-count // self._threads)
        parts = [slice(first, first + share) for first in range(0, count, share)]
        for done in [executor.submit(self._augment_part, gathered, out, part) for part in parts]:
            self._augmenting += done.result()
        if gathered.blank is not None:
            out[gathered.blank] = 0
        return Finished(out, gathered.labels, None)

    def _augment_part(self, gathered: Gathered, out: Tensor, part: slice) -> float:
        """Some rows of a batch; returns the seconds it took."""
        began = time.perf_counter()
        data, *tables = gathered.images
        images = ImageBatch(data, *(table[part] for table in tables))
        plan = AugmentPlan(gathered.plan.rows[part], gathered.plan.policy)
        apply_out(images, plan, out=out[part], layout=self._layout, patch=self._patch)
        return time.perf_counter() - began

    def measured(self) -> tuple[float, float]:
        """Seconds of copying and of augmenting since the last call."""
        augment, self._augmenting = self._augmenting, 0.0
        return 0.0, augment

    def hand_over(self, finished: Finished) -> None:
        """The consumer takes the batch."""

    def used(self) -> torch.cuda.Event | None:
        """What to wait for until the consumer's device is done with all batches handed over so far."""
        return None


class HostOnly(CpuAugment):
    """The host's share of a batch for a GPU, without one: pixels, plan and labels are packed and not sent.

    Images and labels are meta tensors: shape and type, no content. Shows what feeding a GPU costs the host.
    """

    device = torch.device("meta")

    def __call__(self, gathered: Gathered, executor: Executor) -> Finished:
        gathered.pack()
        count = len(gathered.labels)
        images = torch.empty(count, *self._row, dtype=self._dtype, device="meta")
        return Finished(images, gathered.labels.to("meta"), None)


class CudaAugment:
    """One copy to the device, then the CUDA op; on the CPU where the CUDA extension is not loaded.

    Three races are excluded by events and streams. A host block is used again only after its copy (`_copying` holds it
    until then). The device's staging memory is used again by the next batch of the same stream only. A batch's memory
    is not given back before the consumer's stream is done with it (`record_stream`).

    Args:
        as `CpuAugment`; device: with an index.
    """

    def __init__(
        self, policy: Policy, dtype: torch.dtype, layout: Layout, patch: int, threads: int, device: torch.device
    ):
        self.device = device
        self._policy, self._options = policy, dict(dtype=dtype, layout=layout, patch=patch)
        self._on_cpu = CpuAugment(policy, dtype, layout, patch, threads, pinned=True)  # also checks the options
        self.on_device = _extension.cuda_missing is None
        self.pixels = Blocks(pinned=True)
        self._stream = torch.cuda.Stream(device)  # one for life: the allocator keeps memory apart for each stream
        self._copying: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        self._timed: deque[tuple[torch.cuda.Event, ...]] = deque()

    def __call__(self, gathered: Gathered, executor: Executor) -> Finished:
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        began, copied, ready = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            began.record()
            if self.on_device:
                images, labels = self._augment(gathered, copied)
            else:
                host = self._on_cpu(gathered, executor)
                images = host.images.to(self.device, non_blocking=True)
                pinned = gathered.labels.pin_memory()
                labels = pinned.to(self.device, non_blocking=True)
                copied.record()
                self._copying += [(copied, host.images), (copied, pinned)]
            ready.record()
        self._timed.append((began, copied, ready))
        return Finished(images, labels, ready)

    def _augment(self, gathered: Gathered, copied: torch.cuda.Event) -> tuple[Tensor, Tensor]:
        host, labels_at = gathered.pack()
        end, rows = gathered.end, gathered.plan.rows
        staged = torch.empty(host.numel(), dtype=torch.uint8, device=self.device)
        staged.copy_(host, non_blocking=True)
        copied.record()
        self._copying.append((copied, host))

        images = gathered.images
        if images.data.device.type == "cpu":
            images = images._replace(data=staged[:end])
        plan = AugmentPlan(staged[end : end + rows.numel()].view(rows.shape), self._policy)
        out = apply(images, plan, **self._options)
        if gathered.blank is not None:  # rare; a mask on the device, since an index would wait for it
            mask = gathered.blank.pin_memory().to(self.device, non_blocking=True)
            out.masked_fill_(mask.view(-1, *[1] * (out.dim() - 1)), 0)
        # A copy of its own: a view would keep the whole staging memory as long as the consumer keeps the labels.
        return out, staged[labels_at:].view(torch.int64).clone()

    def measured(self) -> tuple[float, float]:
        """Seconds of copying and of augmenting in the batches that the GPU has finished since the last call."""
        copy = augment = 0.0
        while self._timed and self._timed[0][2].query():
            began, copied, ready = self._timed.popleft()
            copy += began.elapsed_time(copied) / 1000
            augment += copied.elapsed_time(ready) / 1000
        return copy, augment

    def hand_over(self, finished: Finished) -> None:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(finished.ready)
        for tensor in (finished.images, finished.labels):
            tensor.record_stream(stream)

    def used(self) -> torch.cuda.Event:
        event = torch.cuda.Event(blocking=True)  # the thread that waits for it sleeps
        event.record(torch.cuda.current_stream(self.device))
        return event
