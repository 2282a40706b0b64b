"""Host memory of batches, used again and again.

Fresh memory is slow: the kernel clears each page at its first touch, and a training batch of 64 images is 9 400 pages.
Measured on a virtual machine, augmenting into fresh memory took four times as long as into memory used before.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 16  # of what follows the pixels in a block: rows of plans and int64 labels
HEADROOM = 1.25  # an arena is this much larger than batches need
RECENT = 64  # batches and requests that tell what is usual
OUTSIZED = 2  # times the usual: from here on memory is not kept, or one huge image would make every block huge for good


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor in host memory, on the device; the host does not wait for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory(device)  # from other memory the copy would hold the host up
    return tensor.to(device, non_blocking=True)


def in_large_pages(size: int) -> NDArray[np.uint8]:
    """uint8 (size,) of 0, in pages of 2 MiB where the kernel gives them to those who ask."""
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)


class Blocks:
    """Blocks of memory that come back by themselves when nothing refers to them any more.

    `take` gives a tensor over a block. Views of it, and whoever holds one (a batch that the consumer keeps), hold the
    block; with the last of them it becomes free for the next `take`. A free one that is far larger than what was taken
    of late is given back to the system. From any thread.

    Args:
        pinned: page-locked memory, from which a GPU copies by itself.
    """

    def __init__(self, pinned: bool = False):
        self._pinned = pinned
        self._blocks: list[tuple[weakref.ref[NDArray[np.uint8]], Tensor]] = []
        self._taken: deque[int] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor:
        """uint8 (size,), with whatever content."""
        with self._lock:
            self._taken.append(size)
            self._drop_outsized()
            block = self._fitting(size)
            # The array is what storage and views of the tensor keep alive. It is looked at when the next block is
            # wanted and calls nothing when it goes: a Ctrl-C that arrives in such a call is lost.
            lease = block.numpy()[:size]
            self._blocks.append((weakref.ref(lease), block))
        return torch.from_numpy(lease)

    def _drop_outsized(self) -> None:
        most = OUTSIZED * max(self._taken)
        self._blocks = [(lease, block) for lease, block in self._blocks if block.numel() <= most or lease() is not None]

    def _fitting(self, size: int) -> Tensor:
        """A free block of at least `size` bytes, taken out of the list; where there is none, it is a new one."""
        free = [place for place, (lease, _) in enumerate(self._blocks) if lease() is None]
        for place in reversed(free):  # the one used last may still be in the cache
            if self._blocks[place][1].numel() >= size:
                return self._blocks.pop(place)[1]
        if free:  # one that is too small makes way
            del self._blocks[free[0]]
        if self._pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(in_large_pages(size))


class Arena:
    """Where the images of one batch are decoded to, in the order in which threads happen to come.

    An image that finds the arena full gets memory of its own, and `gather` brings all together in a larger block; so
    only the first batches of a run and outsized ones are copied. The block of an outsized one is not used again.

    Args:
        blocks: where the memory comes from.
        expected: bytes that batches need (`usual`).
    """

    def __init__(self, blocks: Blocks, expected: int):
        self._blocks = blocks
        self._block = blocks.take(int(expected * HEADROOM))
        self._bytes = self._block.numpy()
        self._used = 0
        self._lock = threading.Lock()

    def reserve(self, height: int, width: int) -> NDArray[np.uint8]:
        """uint8 (height, width, 3), uninitialised."""
        size = height * width * 3
        with self._lock:
            start = self._used
            self._used += size
        if start + size > len(self._bytes):
            return np.empty((height, width, 3), np.uint8)
        return self._bytes[start : start + size].reshape(height, width, 3)

    def gather(self, images: Sequence[NDArray[np.uint8]], tail: int = 0) -> tuple[Tensor, NDArray[np.int64], int]:
        """All images in one block; the arena is done.

        Args:
            images: n arrays that `reserve` gave, filled.
            tail: bytes wanted behind the pixels.

        Returns:
            (block, offset, end): uint8, with `tail` bytes from `end`, a multiple of ALIGNMENT; int64 (n,), the first
            byte of each image.
        """
        base = self._block.data_ptr()
        offset = np.array([image.__array_interface__["data"][0] for image in images], np.int64) - base
        end = aligned(self._used)
        if end + tail <= len(self._bytes):
            return self._block[: end + tail], offset, end
        sizes = np.array([image.size for image in images], np.int64)
        offset = np.cumsum(sizes) - sizes
        end = aligned(int(sizes.sum()))
        outsized = end + tail > OUTSIZED * len(self._bytes) > 0
        block = torch.empty(end + tail, dtype=torch.uint8) if outsized else self._blocks.take(end + tail)
        memory = block.numpy()
        for image, start in zip(images, offset, strict=True):
            memory[start : start + image.size] = image.reshape(-1)
        return block, offset, end


def usual(needed: Iterable[int]) -> int:
    """The largest but one of the bytes that batches needed: one of huge images does not say what others need."""
    return sorted(needed)[-2:][0]


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
