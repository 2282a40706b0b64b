"""One batch: read and decode its images, augment them, put them on the device.

A batch is a pure function of (data set, policy, data seed, rows); `order.py` gives the rows. One decode serves all
copies of an image in the batch.

On a CUDA device pixels go through pinned memory and are augmented there when the CUDA extension is loaded, else on the
CPU. Copies and kernels are queued on the default stream. Not yet measured on a GPU.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from deit_kernels import _extension
from deit_kernels.augment import ImageBatch, Policy, apply, sample_plan
from numpy.typing import NDArray
from torch import Tensor

from .decode import BadImage, decode
from .order import Samples
from .sources import Dataset

IGNORE = -100  # the label that losses and accuracies leave out
BLACK = np.zeros((1, 1, 3), np.uint8)
Layout = Literal["nchw", "channels_last", "patches"]
OnBadImage = Literal["skip", "fail"]


class Batch(NamedTuple):
    """b rows of a global batch of B.

    Attributes:
        step: the training step, or the number of the evaluation batch.
        images: (b, 3, S, S), or (b, (S/P)², 3·P²) in the layout "patches"; zeros where the file was bad. On the device.
        labels: int64 (b,); IGNORE where the file was bad. On the device.
        samples: int64 (b,), indices into the data set. In host memory, where label caches look them up.
        positions: int64 (b,), places in the global batch, 0 … B − 1. In host memory, where drop-path and mixing are
            drawn from them.
    """

    step: int
    images: Tensor
    labels: Tensor
    samples: Tensor
    positions: Tensor


@dataclass(frozen=True)
class BatchBuilder:
    """What all batches of a loader have in common; the arguments are described at `TrainLoader`.

    Raises:
        ValueError: an argument outside its range.
    """

    dataset: Dataset
    policy: Policy
    data_seed: int
    bad_images: OnBadImage
    device: torch.device
    dtype: torch.dtype
    layout: Layout
    patch: int

    def __post_init__(self) -> None:
        if self.bad_images not in ("skip", "fail"):
            raise ValueError(f"bad images {self.bad_images!r}: type --bad-images skip or --bad-images fail")
        if self.device.type == "cuda" and self.device.index is None:
            # The current device of this thread is not that of others.
            object.__setattr__(self, "device", torch.device("cuda", torch.cuda.current_device()))
        # An empty batch checks seed, dtype, layout and patch.
        self._augment(Samples(0, *np.zeros((3, 0), np.int64)), ImageBatch.from_images([]))

    def build(self, step: int, rows: Samples, decoders: Executor) -> tuple[Batch, dict[str, str]]:
        """The batch of a step, and path → reason of its bad images.

        Args:
            step: what the batch is called.
            rows: b samples.
            decoders: runs one task for each distinct image.

        Raises:
            BadImage: an image is unreadable and bad_images is "fail"; the text names it.
        """
        distinct, image_of_row = np.unique(rows.sample, return_inverse=True)
        decoding = [decoders.submit(self._decode, index) for index in distinct.tolist()]
        decoded = [future.result() for future in decoding]
        bad = np.array([isinstance(image, BadImage) for image in decoded])
        reasons = {self.dataset.path(distinct[place]): str(decoded[place]) for place in np.flatnonzero(bad)}

        # A bad image goes through the augmentation as one black pixel: every other row keeps its place and its pixels.
        images = ImageBatch.from_images([BLACK if isinstance(image, BadImage) else image for image in decoded])
        offset, height, width = (table[image_of_row] for table in (images.offset, images.height, images.width))
        pixels = self._augment(rows, ImageBatch(images.data, offset, height, width))
        labels = self.dataset.labels[rows.sample]
        if reasons:
            labels[bad[image_of_row]] = IGNORE
            pixels[torch.from_numpy(bad[image_of_row]).to(pixels.device)] = 0
        labels, sample, position = map(torch.from_numpy, (labels, rows.sample, rows.position))
        return Batch(step, pixels, self._to_device(labels), sample, position), reasons

    def _decode(self, index: int) -> NDArray[np.uint8] | BadImage:
        """Pixels, or what is wrong with the file when bad images are to be skipped."""
        try:
            return decode(self.dataset.read(index))
        except (BadImage, OSError) as error:
            bad = error if isinstance(error, BadImage) else BadImage(f"it cannot be read ({error.strerror or error})")
            if self.bad_images == "skip":
                return bad
            path = self.dataset.path(index)
            raise BadImage(f"{path}: {bad}: repair or remove it, or type --bad-images skip") from error

    def _augment(self, rows: Samples, images: ImageBatch) -> Tensor:
        plan = sample_plan(
            self.policy,
            seed=self.data_seed,
            epoch=rows.epoch,
            sample=rows.sample,
            copy=rows.copy,
            height=images.height.numpy(),
            width=images.width.numpy(),
        )
        if self.device.type == "cuda" and _extension.cuda_missing is None:
            images = images._replace(data=self._to_device(images.data))
        return self._to_device(apply(images, plan, dtype=self.dtype, layout=self.layout, patch=self.patch))

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
