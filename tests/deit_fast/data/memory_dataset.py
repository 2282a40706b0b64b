"""A data set that lives in memory: real encoded images, and a count of how often each was read."""

import io

import numpy as np
from PIL import Image


def encoded_image(number: int, format: str = "PNG") -> bytes:
    """An image of its own size and pixels for each number."""
    generator = np.random.default_rng(number)
    height, width = generator.integers(20, 41, 2)
    file = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, format)
    return file.getvalue()


class MemoryDataset:
    """A `Dataset` of `images` images in three classes; `reads` counts how often each was read."""

    name = "memory"
    classes = ("ant", "bee", "cat")

    def __init__(self, images: int):
        self.files = [encoded_image(number) for number in range(images)]
        self.labels = np.arange(images) % 3
        self.reads = np.zeros(images, int)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        self.reads[index] += 1
        return self.files[index]

    def path(self, index: int) -> str:
        return f"image-{index}"
