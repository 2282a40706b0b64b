"""A data set decoded once and kept in memory, for small sets that are seen many times.

A batch is then only its plan: rows point at images in one buffer, and nothing is read, decoded or copied.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_kernels.augment import ImageBatch

from ..decode import BadImage
from .dataset import Dataset, ahead, read_image

MAX_BYTES = 16 * 2**30


class InMemory(Dataset):
    """A data set whose `pixels` are in one buffer; all are read now, and ValueError is raised above MAX_BYTES.

    An image that cannot be read is a black pixel and `bad` says, by its index, what is wrong with it.
    """

    def __init__(self, dataset: Dataset, threads: int, exif_orientation: bool = False, ratio_limit: float = inf):
        self.name, self.classes, self.labels = dataset.name, dataset.classes, dataset.labels
        self._dataset = dataset
        self.bad: dict[int, BadImage] = {}
        images: list[NDArray[np.uint8]] = []
        total = 0
        read = partial(read_image, dataset, exif_orientation=exif_orientation, ratio_limit=ratio_limit)
        with ThreadPoolExecutor(threads, "deit_fast-decode") as pool:
            for index, (part, *_) in enumerate(ahead(pool, read, range(len(dataset)), 4 * threads)):
                if isinstance(part, BadImage):
                    self.bad[index] = part
                images.append(np.zeros((1, 1, 3), np.uint8) if isinstance(part, BadImage) else part.pixels)
                total += images[-1].size
                if total > MAX_BYTES:
                    raise ValueError(
                        f"the first {index + 1:,} of {len(dataset):,} images of {dataset.name} take "
                        f"{total / 2**30:.1f} GiB decoded: leave out --in-memory"
                    )
        self.pixels = ImageBatch.from_images(images)

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        return self._dataset.read(index)

    def path(self, index: int) -> str:
        return self._dataset.path(index)

    def rows(self, sample: Tensor) -> ImageBatch:
        """The images of these samples, int64 (b,), without a copy."""
        return self.pixels._replace(**{key: getattr(self.pixels, key)[sample] for key in ("offset", "height", "width")})

    def to(self, device: torch.device) -> None:
        self.pixels = self.pixels.to(device)
