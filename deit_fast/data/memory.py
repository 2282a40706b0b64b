"""Host memory of batches, which is reused.

Fresh memory is slow: the kernel clears each page at its first touch, and a training batch of 64 images is 9 400 pages.
On a virtual machine, augmenting into fresh memory took four times as long as into reused memory.
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
RECENT = 64  # batches and requests from which the usual size is taken
OUTSIZED = 2  # times the usual size: larger blocks are not kept, or one huge image would make every block huge for good


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor in host memory, on the device; the host does not wait for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory(device)  # a copy from other memory would block the host
    return tensor.to(device, non_blocking=True)


def in_large_pages(size: int) -> NDArray[np.uint8]:
    """uint8 (size,) of zeros, in pages of 2 MiB if the kernel has them."""
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)


class Blocks:
    """Blocks of memory that become free when nothing refers to them. Thread-safe.

    `take` returns a tensor over a block. The block is in use while that tensor or a view of it exists (such as a batch
    that the consumer keeps). A free block far larger than recent requests is returned to the system. `pinned` blocks
    are page-locked, so that a GPU copies from them by itself.
    """

    def __init__(self, pinned: bool = False):
        self._pinned = pinned
        self._blocks: list[tuple[weakref.ref[NDArray[np.uint8]], Tensor]] = []
        self._taken: deque[int] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor:
        """uint8 (size,), uninitialised."""
        with self._lock:
            self._taken.append(size)
            most = OUTSIZED * max(self._taken)
            self._blocks = [each for each in self._blocks if each[1].numel() <= most or each[0]() is not None]
            block = self._fitting(size)
            # The tensor's storage keeps this array alive. The next `take` looks whether it is gone; a callback would
            # lose a Ctrl-C that arrives in it.
            lease = block.numpy()[:size]
            self._blocks.append((weakref.ref(lease), block))
        return torch.from_numpy(lease)

    def _fitting(self, size: int) -> Tensor:
        """A free block of at least `size` bytes, removed from the list; a new one if there is none."""
        free = [place for place, (lease, _) in enumerate(self._blocks) if lease() is None]
        for place in reversed(free):  # the one used last may still be in the cache
            if self._blocks[place][1].numel() >= size:
                return self._blocks.pop(place)[1]
        if free:  # one that is too small is dropped for the new one
            del self._blocks[free[0]]
        if self._pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(in_large_pages(size))


class Arena:
    """Memory into which the images of one batch are decoded, in the order in which threads ask for it.

    An image that does not fit gets memory of its own, and `gather` copies all into a larger block. This happens only in
    the first batches of a run and in outsized ones, whose block is not reused. Batches need `expected` bytes (`usual`).
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
        """All n images, filled arrays from `reserve`, in one block; the arena is then used up.

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
    """The second-largest recent size, so that one outlier does not count."""
    return sorted(needed)[-2:][0]


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
