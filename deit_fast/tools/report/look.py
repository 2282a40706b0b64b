"""One look at the images of a split: every model's answers, the teacher's too, and a small grey copy of each image.

    seen = look(dataset, samples, trained, models, device, threads)
    seen.answer("model/fused"), seen.probability["model/fused"], seen.given["teacher/cls"]

An image is decoded once. The models see the pixels of the run's evaluation; the grey copy is the whole image, squeezed
to SIDE x SIDE by the augmentation's own antialiased resize. Near duplicates are found by it (`duplicates.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deit_kernels.augment import ImageBatch, resized_crop

from ...data import BadImage, Dataset
from ...data.batch import Batch
from ...data.sources.dataset import ahead
from ...scores import Predictions, predict
from ...weights.prediction import Trained
from ..pixels import image_of

SIDE = 32  # of the grey copies, pixels
BATCH = 64
_GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class Seen(Predictions):
    """The readable images, and what is wrong with the others."""

    grey: NDArray[np.uint8]  # (N, SIDE, SIDE), the whole image
    bad: dict[str, str]  # path -> reason

    @cached_property
    def given(self) -> dict[str, NDArray[np.float32]]:
        """(N,) by name: the probability of the label."""
        return {name: np.exp(-loss) for name, loss in self.loss.items()}


def look(
    dataset: Dataset,
    samples: NDArray[np.int64],
    trained: Trained,
    models: Mapping[str, nn.Module],
    device: torch.device,
    threads: int,
    enough: Callable[[], bool] = lambda: False,
) -> Seen:
    """Look at `samples`, indices into the data set in any order, until `enough` says so.

    `models` see what `trained.prepare` makes of an image, on `device`.

    Raises:
        ValueError: none of the images is readable.
    """
    read, grey, bad = list[int](), list[NDArray[np.uint8]](), dict[str, str]()

    def view(sample: int) -> tuple[int, Tensor, NDArray[np.uint8]] | None:
        try:
            image = image_of(dataset, sample, trained.policy, trained.preprocessing.exif_orientation)
        except BadImage as error:
            bad[dataset.path(sample)] = str(error)
            return None
        return sample, trained.prepare([image]), grey_copy(image)

    def batches() -> Iterator[Batch]:
        with ThreadPoolExecutor(threads, "deit_fast-report") as pool:
            views = ahead(pool, view, samples.tolist(), 4 * threads)
            while chunk := list(islice(views, BATCH)):
                if good := list(filter(None, chunk)):
                    sample, images, copies = zip(*good, strict=True)
                    read.extend(sample)
                    grey.extend(copies)
                    rows = torch.tensor(sample)
                    labels = torch.from_numpy(dataset.labels[rows.numpy()]).to(device)
                    yield Batch(0, torch.cat(images).to(device), labels, rows, rows, labels)
                if enough():
                    return

    coming = batches()
    if (first := next(coming, None)) is None:
        raise ValueError(f"none of the images of {dataset.name} can be read: deit-fast data check says why")
    predictions = predict(models, chain([first], coming))
    return Seen(**vars(predictions), grey=np.stack(grey)[np.argsort(read)], bad=bad)


def grey_copy(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A whole image, uint8 (H, W, 3), as grey uint8 (SIDE, SIDE)."""
    box = torch.tensor([[0, 0, *image.shape[:2]]], dtype=torch.int32)
    small = resized_crop(ImageBatch.from_images([image]), box, SIDE, "bilinear")
    return (small[0].float() @ _GREY).round().to(torch.uint8).numpy()
