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

from ..decode import BadImage, Part
from .dataset import Dataset, read_image

MAX_BYTES = 16 * 2**30


class InMemory(Dataset):
    """A data set whose pixels are in memory; all of `dataset` is read now, and ValueError raised above MAX_BYTES.

    Attributes:
        pixels: N images in one buffer; an unreadable one is a black pixel.
        bad: index → what is wrong with it.
    """

    def __init__(self, dataset: Dataset, threads: int, exif_orientation: bool = False, ratio_limit: float = inf):
        self.name, self.classes, self.labels = dataset.name, dataset.classes, dataset.labels
        self.path, self.read = dataset.path, dataset.read
        self.bad: dict[int, BadImage] = {}
        images: list[NDArray[np.uint8]] = []
        total = 0
        with ThreadPoolExecutor(threads, "deit_fast-decode") as pool:
            try:
                read = partial(read_image, dataset, exif_orientation=exif_orientation, ratio_limit=ratio_limit)
                for index, (part, *_) in enumerate(pool.map(read, range(len(dataset)))):
                    if isinstance(part, BadImage):
                        self.bad[index] = part
                        part = Part.whole(np.zeros((1, 1, 3), np.uint8))
                    image = part.pixels
                    total += image.size
                    if total > MAX_BYTES:
                        raise ValueError(
                            f"the first {index + 1:,} of {len(dataset):,} images of {dataset.name} take "
                            f"{total / 2**30:.1f} GiB decoded: leave out --in-memory"
                        )
                    images.append(image)
            finally:
                pool.shutdown(cancel_futures=True)
        self.pixels = ImageBatch.from_images(images)

    def rows(self, sample: Tensor) -> ImageBatch:
        """The images of these samples, int64 (b,), without a copy."""
        return self.pixels._replace(**{key: getattr(self.pixels, key)[sample] for key in ("offset", "height", "width")})

    def to(self, device: torch.device) -> None:
        self.pixels = self.pixels.to(device)
