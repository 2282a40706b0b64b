"""What happens to each image: policies, ragged batches, and plans drawn as a function of (seed, epoch, sample, copy).

    policy = Policy.deit(size=224)
    plan = sample_plan(policy, seed=0, epoch=3, sample=[17, 17, 42], copy=[0, 1, 0], height=375, width=500)
    plan.table["box"]                      # NumPy view: (B, 4) as top, left, height, width
    images = apply(batch, plan)            # op.py

A plan is drawn before decoding (only the image's size must be known) and does not depend on the batch, on workers or on
the number of GPUs. One row an image; the rows are a C struct (`csrc/augment/plan.h`), so a batch's plan is one uint8
tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILTERS = ("bilinear", "bicubic")  # a row stores the index
MAX_OUTPUT = 1024  # side of the output: one line of it must fit the shared memory of a CUDA block
MAX_SIDE = 2**24 - 1  # side of an image: Pillow keeps box coordinates in float32

# One row of a plan. The source box is resized to `resized` (height, width), of which the size × size window at `window`
# (top, left) is kept and, with `flip`, mirrored. Stages yet to come append their fields.
ROW = np.dtype(
    [
        ("offset", np.int64),  # first byte of the image in ImageBatch.data; -1 until the plan is placed
        ("height", np.int32),
        ("width", np.int32),
        ("box", np.int32, 4),  # top, left, height, width
        ("resized", np.int32, 2),
        ("window", np.int32, 2),
        ("filter", np.int32),
        ("flip", np.int32),
    ]
)


@dataclass(frozen=True)
class Policy:
    """The numbers of an augmentation recipe; `deit` and `eval` are the two in use.

    Args:
        size: side of the square output in pixels, 1 to 1024.
        crop: "random_resized" draws a box (timm 1.0 RandomResizedCropAndInterpolation) and resizes it to size × size;
            "center" resizes the shorter side to int(size / crop_ratio) and keeps the central window (torchvision's
            Resize and CenterCrop on Pillow images).
        scale, ratio: ranges of the box's share of the image's area and of its width / height, for "random_resized".
        crop_ratio: in (0, 1], for "center".
        interpolation: "bicubic" (Pillow's, a = −0.5) or "bilinear", both antialiased.
        flip: probability of a horizontal flip.
        mean, std: per channel, of pixels scaled to [0, 1].

    Raises:
        ValueError: a number outside its range.
    """

    size: int = 224
    crop: Literal["random_resized", "center"] = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_ratio: float = 0.875
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        _require(1 <= self.size <= MAX_OUTPUT, f"size is a side from 1 to {MAX_OUTPUT} pixels, got {self.size}")
        _require(self.crop in ("random_resized", "center"), f'crop is "random_resized" or "center", got {self.crop!r}')
        _require(self.interpolation in FILTERS, f"interpolation is one of {FILTERS}, got {self.interpolation!r}")
        _require(0 < self.scale[0] <= self.scale[1] <= 1, f"scale is a range within (0, 1], got {self.scale}")
        _require(0.01 <= self.ratio[0] <= self.ratio[1] <= 100, f"ratio is a range in [0.01, 100], got {self.ratio}")
        _require(0 < self.crop_ratio <= 1, f"crop_ratio is a share of the side in (0, 1], got {self.crop_ratio}")
        _require(0 <= self.flip <= 1, f"flip is a probability in [0, 1], got {self.flip}")
        _require(len(self.mean) == len(self.std) == 3, f"mean and std have 3 channels, got {self.mean} and {self.std}")
        _require(min(self.std) > 0, f"std is above 0, got {self.std}")

    @classmethod
    def deit(cls, size: int = 224) -> Policy:
        """DeiT's training recipe as far as this version goes: random resized crop, flip, normalise.

        Random resized crop (area 8 to 100 %, ratio 3/4 to 4/3, bicubic), horizontal flip with probability 0.5,
        ImageNet's mean and std. RandAugment and random erasing, which the paper's recipe (Table 9) also has, are not in
        this version.
        """
        return cls(size=size)

    @classmethod
    def eval(cls, size: int = 224, crop_ratio: float = 0.875) -> Policy:
        """DeiT's and timm's evaluation: shorter side to int(size / crop_ratio), bicubic, then the central window."""
        return cls(size=size, crop="center", crop_ratio=crop_ratio, flip=0.0)


class ImageBatch(NamedTuple):
    """Decoded RGB images of different sizes in one buffer. Rows may share an image: copies repeat its offset.

    Fields:
        data: uint8 (total_bytes,), each image height × width × 3 without padding; on the device that augments.
        offset: int64 (B,), first byte of each image; always in host memory, as are height and width.
        height, width: int32 (B,), in pixels.
    """

    data: Tensor
    offset: Tensor
    height: Tensor
    width: Tensor

    @classmethod
    def from_images(cls, images: Sequence[Any]) -> ImageBatch:
        """Copy images into one buffer.

        Args:
            images: anything `numpy.asarray` reads as uint8 (H, W, 3): arrays, CPU tensors, RGB Pillow images.

        Raises:
            ValueError: an image of another type or shape.
        """
        arrays = [np.asarray(image) for image in images]
        for index, array in enumerate(arrays):
            good = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size > 0
            _require(
                good,
                f"image {index} is {array.dtype} of shape {array.shape}, not uint8 (height, width, 3): "
                'convert it first, with Pillow image.convert("RGB")',
            )
        data = np.concatenate([array.reshape(-1) for array in arrays]) if arrays else np.empty(0, np.uint8)
        ends = np.cumsum([array.size for array in arrays], dtype=np.int64)
        return cls(
            torch.from_numpy(data),
            torch.from_numpy(np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1]])),
            torch.tensor([array.shape[0] for array in arrays], dtype=torch.int32),
            torch.tensor([array.shape[1] for array in arrays], dtype=torch.int32),
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ImageBatch:
        """The same batch with the pixels on `device`; the three tables stay in host memory, where they are checked."""
        return self._replace(data=self.data.to(device, non_blocking=non_blocking))


class AugmentPlan(NamedTuple):
    """One row an image.

    Fields:
        rows: uint8 (B, ROW.itemsize), the C struct of `ROW`.
        policy: what the rows were drawn from; `apply` takes output size, mean and std from it.
    """

    rows: Tensor
    policy: Policy

    @property
    def table(self) -> NDArray[np.void]:
        """The rows as a NumPy structured array (B,) of dtype `ROW`, sharing memory; only for a plan in host memory."""
        return self.rows.numpy().view(ROW)[:, 0]

    def place(self, batch: ImageBatch) -> AugmentPlan:
        """The plan with every row's offset filled in from `batch`, checked against it.

        `apply` does this for a plan in host memory. Do it yourself to move pixels and rows to a device in one copy, or
        before a CUDA graph is captured; a plan that already lives on a device is used as it is.

        Raises:
            ValueError: the batch has other images than the plan was drawn for, a box or window leaves its image, or an
                image leaves the buffer; the plan is on a device.
        """
        _require(self.rows.device.type == "cpu", "a plan is placed in host memory, before it moves to a device")
        rows = torch.ops.deit_kernels._augment_place(
            self.rows, batch.offset, batch.height, batch.width, batch.data.numel(), self.policy.size
        )
        return self._replace(rows=rows)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> AugmentPlan:
        """The plan on `device`. Place it first: on a device an unplaced row gives an image of NaN."""
        return self._replace(rows=self.rows.to(device, non_blocking=non_blocking))


def sample_plan(
    policy: Policy,
    *,
    seed: int,
    epoch: ArrayLike,
    sample: ArrayLike,
    copy: ArrayLike,
    height: ArrayLike,
    width: ArrayLike,
) -> AugmentPlan:
    """Draw what happens to each image; a pure function of its arguments, row by row, and the same on every machine.

    Args:
        policy: the recipe.
        seed: 64-bit data seed.
        epoch, sample, copy: counters in [0, 2**32): which pass, which image of the data set, which repeat of it.
            Integers or arrays, broadcast with the next two to (B,); a batch may span two epochs.
        height, width: of the images, in pixels.

    Returns:
        AugmentPlan with rows in host memory.

    Raises:
        ValueError: a counter, the seed or a size outside its range, or shapes that do not broadcast to one dimension.

    Source: timm 1.0 `RandomResizedCropAndInterpolation.get_params` (10 tries, then the central fallback), its Python
    `random` replaced by Philox. A try whose box rounds to 0 pixels, possible only below 7 pixels, counts as rejected.
    """
    _require(0 <= seed < 2**64, f"seed is an integer in [0, 2**64), got {seed}")
    counters = (("epoch", epoch), ("sample", sample), ("copy", copy))
    columns = [_integers(name, value, 0, 2**32 - 1) for name, value in counters]
    columns += [_integers(name, value, 1, MAX_SIDE) for name, value in (("height", height), ("width", width))]
    keys = np.stack(np.broadcast_arrays(*columns), axis=-1)
    _require(keys.ndim == 2, f"epoch, sample, copy, height and width broadcast to (B,), got {keys.shape[:-1]}")
    if policy.crop == "center" and len(keys):
        longest = (keys[:, 3:].max(1) / keys[:, 3:].min(1)).max()
        most = (2**31 - 1) / (policy.size / policy.crop_ratio)
        _require(longest < most, f"an image's longer side is below {most:.0f} times the shorter, got {longest:.0f}")
    rows = torch.ops.deit_kernels._augment_sample_plan(
        torch.from_numpy(keys),
        seed - 2**64 if seed >= 2**63 else seed,
        policy.size,
        policy.crop,
        policy.scale,
        policy.ratio,
        policy.crop_ratio,
        FILTERS.index(policy.interpolation),
        policy.flip,
    )
    return AugmentPlan(rows, policy)


def _integers(name: str, value: ArrayLike, low: int, high: int) -> NDArray[np.int64]:
    column = np.atleast_1d(np.asarray(value))
    if column.size == 0:
        return column.astype(np.int64)
    _require(column.dtype.kind in "iu", f"{name} is an integer or an array of integers, got {column.dtype}")
    least, most = column.min(), column.max()
    _require(low <= least and most <= high, f"{name} lies in [{low}, {high}], got {least} to {most}")
    return column.astype(np.int64)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
