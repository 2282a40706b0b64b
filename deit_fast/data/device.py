"""From decoded images and their plan to a batch on its device.

`CpuAugment` runs the C++ op in the decoding threads; `HostOnly` measures the host's work for a GPU's batch.
`CudaAugment` sends pixels, plans and target of a batch in one copy and augments on the GPU, on a stream of its own. The
consumer's stream waits for the batch by an event, its host thread never does. Not yet measured on a GPU.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Executor
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_kernels import MixedTarget, _extension
from deit_kernels.augment import AugmentPlan, ImageBatch, MixPlan, Policy, apply, apply_out
from deit_kernels.augment.mix import MIX
from deit_kernels.augment.plan import ROW

from .memory import Blocks, aligned
from .mixing import Mixing, part_of

Layout = Literal["nchw", "channels_last", "patches"]
Target = Tensor | MixedTarget  # for the loss: labels, or those of two images and their shares


def why_on_the_cpu(device: torch.device) -> str | None:
    """Why a GPU's batches are augmented on the CPU, in words to print; None where that is not so."""
    return _extension.cuda_missing if device.type == "cuda" else None


class Gathered(NamedTuple):
    """b rows in host memory."""

    images: ImageBatch  # pixels in `block`, or on the device if the whole set is kept there
    plan: AugmentPlan  # placed
    mix: MixPlan | None  # which rows are mixed; None: none
    labels: Tensor  # int64 (b,)
    blank: Tensor | None  # bool (b,), rows without a readable image; None: none
    block: Tensor  # uint8, pixels up to `end`, then room for the plans and the target (`tail_bytes`)
    end: int  # a multiple of ALIGNMENT

    @property
    def target(self) -> Target:
        return self.labels if self.mix is None else self.mix.target(self.labels)

    def pack(self) -> tuple[Tensor, int]:
        """(block to copy to a device, target_at): pixels, from `end` the rows of both plans, then the target."""
        plans = [self.plan.rows] if self.mix is None else [self.plan.rows, self.mix.rows]
        target = self.target if self.mix is not None else (self.labels,)
        at = self.end
        for table in plans:
            self.block[at : at + table.numel()] = table.view(-1)
            at += aligned(table.numel())
        target_at = at
        for column in target:
            self.block[at : at + column.nbytes] = column.view(torch.uint8)
            at += column.nbytes
        return self.block[:at], target_at

    def unpacked(self, staged: Tensor) -> tuple[AugmentPlan, MixPlan | None]:
        """The two plans in a copy of the packed block."""
        rows, at = self.plan.rows, self.end
        plan = self.plan._replace(rows=staged[at : at + rows.numel()].view(rows.shape))
        if self.mix is None:
            return plan, None
        rows, at = self.mix.rows, at + aligned(rows.numel())
        return plan, self.mix._replace(rows=staged[at : at + rows.numel()].view(rows.shape))

    def unpacked_target(self, columns: Tensor) -> Target:
        """The target in a copy of the packed block from `target_at`."""
        b = 8 * len(self.labels)
        if self.mix is None:
            return columns.view(torch.int64)
        return MixedTarget(
            columns[:b].view(torch.int64), columns[b : 2 * b].view(torch.int64), columns[2 * b :].view(torch.float32)
        )


def tail_bytes(rows: int, mixed: bool) -> int:
    """Room for the plans and the target of `rows` rows behind the pixels of a block."""
    if not mixed:
        return aligned(rows * ROW.itemsize) + rows * 8
    return aligned(rows * ROW.itemsize) + aligned(rows * MIX.itemsize) + rows * (8 + 8 + 4)


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
    is `without_torch_threads`. `pinned` is the memory of outputs.
    """

    device = torch.device("cpu")
    on_device = True  # whether the augmentation runs on `device`

    def __init__(
        self,
        policy: Policy,
        dtype: torch.dtype,
        layout: Layout,
        patch: int,
        threads: int,
        mixing: Mixing | None = None,
        pinned: bool = False,
    ):
        self._dtype, self._layout, self._patch = dtype, layout, patch
        self._threads, self._mixing = threads, mixing
        self.pixels, self._outputs = Blocks(), Blocks(pinned)
        self._augmenting = 0.0
        # An empty batch checks dtype, layout and patch, and gives the shape of a row.
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
        if self._mixing is None:
            parts = [part for part in np.array_split(np.arange(count), self._threads) if len(part)]
        else:
            parts = self._mixing.parts(self._threads)
        for done in [executor.submit(self._augment_part, gathered, out, part) for part in parts]:
            self._augmenting += done.result()
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
        options = dict(layout=self._layout, patch=self._patch)
        if neighbours:
            apply_out(images, plan, mix, out=out[part], **options)
        else:
            out[part] = apply(images, plan, mix, dtype=self._dtype, **options)
        return time.perf_counter() - began

    def measured(self) -> tuple[float, float]:
        """Seconds of copying and of augmenting since the last call."""
        augment, self._augmenting = self._augmenting, 0.0
        return 0.0, augment

    def hand_over(self, finished: Finished) -> None:
        """Called when the consumer takes the batch."""

    def used(self) -> torch.cuda.Event | None:
        """An event: once it has passed, no batch handed over so far is in use on the device. None: none is now."""
        return None


class HostOnly(CpuAugment):
    """The host's work for a GPU's batch, without a GPU: pixels, plans and target are packed and not sent.

    Images and target are meta tensors: shape and type, no content.
    """

    device = torch.device("meta")

    def __call__(self, gathered: Gathered, executor: Executor) -> Finished:
        packed, target_at = gathered.pack()
        count = len(gathered.labels)
        images = torch.empty(count, *self._row, dtype=self._dtype, device="meta")
        return Finished(images, gathered.unpacked_target(packed[target_at:].to("meta")), None)


class CudaAugment:
    """One copy to the device, then the CUDA op; without the CUDA extension, `CpuAugment` and a copy.

    Events and streams exclude three races: a host block is reused only after its copy (`_copying` holds it until then),
    the device's staging memory only by the next batch of the same stream, and a batch's memory only when the consumer's
    stream is done with it (`record_stream`). Arguments as for `CpuAugment`; `device` has an index.
    """

    def __init__(
        self,
        policy: Policy,
        dtype: torch.dtype,
        layout: Layout,
        patch: int,
        threads: int,
        device: torch.device,
        mixing: Mixing | None = None,
    ):
        self.device = device
        self._options = dict(dtype=dtype, layout=layout, patch=patch)
        self._on_cpu = CpuAugment(policy, dtype, layout, patch, threads, mixing, pinned=True)  # checks the options
        self.on_device = why_on_the_cpu(device) is None
        self.pixels = Blocks(pinned=True)
        self._stream = torch.cuda.Stream(device)  # only one: the allocator keeps memory apart for each stream
        self._copying: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        self._releasing = threading.Lock()  # two iterators of a loader have a thread each
        self._timed: deque[tuple[torch.cuda.Event, ...]] = deque()

    def __call__(self, gathered: Gathered, executor: Executor) -> Finished:
        with self._releasing:
            while self._copying and self._copying[0][0].query():
                self._copying.popleft()
        began, copied, ready = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            began.record()
            if self.on_device:
                images, columns = self._augment(gathered, copied)
            else:
                host = self._on_cpu(gathered, executor)
                images = host.images.to(self.device, non_blocking=True)
                packed, target_at = gathered.pack()
                pinned = packed[target_at:].pin_memory()
                columns = pinned.to(self.device, non_blocking=True)
                copied.record()
                self._copying += [(copied, host.images), (copied, pinned)]
            ready.record()
        self._timed.append((began, copied, ready))
        return Finished(images, gathered.unpacked_target(columns), ready)

    def _augment(self, gathered: Gathered, copied: torch.cuda.Event) -> tuple[Tensor, Tensor]:
        host, target_at = gathered.pack()
        staged = torch.empty(host.numel(), dtype=torch.uint8, device=self.device)
        staged.copy_(host, non_blocking=True)
        copied.record()
        self._copying.append((copied, host))

        images = gathered.images
        if images.data.device.type == "cpu":
            images = images._replace(data=staged[: gathered.end])
        out = apply(images, *gathered.unpacked(staged), **self._options)
        if gathered.blank is not None:  # rare; a mask on the device, since an index would wait for it
            mask = gathered.blank.pin_memory().to(self.device, non_blocking=True)
            out.masked_fill_(mask.view(-1, *[1] * (out.dim() - 1)), 0)
        # A copy: a view would keep the whole staging memory as long as the consumer keeps the target.
        return out, staged[target_at:].clone()

    def measured(self) -> tuple[float, float]:
        """Seconds of copying and of augmenting of the batches that the GPU has finished since the last call."""
        copy = augment = 0.0
        while self._timed and self._timed[0][2].query():
            began, copied, ready = self._timed.popleft()
            copy += began.elapsed_time(copied) / 1000
            augment += copied.elapsed_time(ready) / 1000
        return copy, augment

    def hand_over(self, finished: Finished) -> None:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(finished.ready)
        target = finished.target
        for tensor in (finished.images, *((target,) if isinstance(target, Tensor) else target)):
            tensor.record_stream(stream)

    def used(self) -> torch.cuda.Event:
        event = torch.cuda.Event(blocking=True)  # a thread that waits for it sleeps
        event.record(torch.cuda.current_stream(self.device))
        return event
