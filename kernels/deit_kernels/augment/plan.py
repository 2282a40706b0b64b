"""What happens to each image: ragged batches, and plans drawn as a function of (seed, epoch, sample, copy).

    policy = Policy.deit(size=224)
    plan = sample_plan(policy, seed=0, epoch=3, sample=[17, 17, 42], copy=[0, 1, 0], height=375, width=500)
    plan.table["box"]                      # NumPy view: (B, 4) as top, left, height, width
    plan.table["ops"]["op"]                # (B, 4), indices into OPS
    images = apply(batch, plan)            # op.py

A plan is drawn before decoding (only the image's size must be known) and does not depend on the batch, on workers or on
the number of GPUs. It has one row per image: a C struct (`csrc/arithmetic/plan.h`), so a plan of a batch is one uint8
tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .policy import Policy
from .rand_augment import LAYERS, require

MAX_SIDE = 2**24 - 1  # side of an image: Pillow keeps box coordinates in float32

# One op with its argument, and for the affine ops the matrix from output to source coordinates.
OP = np.dtype(
    [
        ("op", np.int16),  # index into OPS
        ("filter", np.uint8),  # index into FILTERS
        ("fast", np.uint8),  # float32 coordinates
        ("fill", np.uint8, 3),
        ("unused", np.uint8),
        ("arg", np.float64),
        ("matrix", np.float64, 6),
    ]
)

# One row of a plan. The source box is resized to `resized` (height, width), of which the size × size window at `window`
# (top, left) is kept and, with `flip`, mirrored; up to `pad` pixels beyond the edges are reflected. Then come up to
# four ops, and after normalisation the erased box, whose noise is a function of seed, epoch, sample and copy.
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
        ("ops", OP, LAYERS),
        ("erased", np.int32, 4),  # top, left, height, width
        ("erase", np.int32),  # index into ERASE_MODES
        ("epoch", np.uint32),
        ("sample", np.uint32),
        ("copy", np.uint32),
        ("seed", np.uint64),
        ("pad", np.int32),
        ("order", np.uint16),  # which row a CUDA card makes when this one's turn is: the heaviest ops first
        ("turn", np.uint16),  # the turn of this row
    ]
)


# What an op costs a CUDA card, roughly, in the order of OPS: `op_cost` of csrc/arithmetic/plan.h.
_COST = np.array([0, 11, 12, 2, 36, 2, 3, 2, 6, 5, 4, 14, 16, 17, 15, 14, 30])


def heaviest_first(table: NDArray[np.void]) -> NDArray[np.intp]:
    """The rows of a plan's table, those with the most expensive ops first."""
    return np.argsort(-_COST[table["ops"]["op"]].sum(axis=1), kind="stable")


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
            require(
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
    """One row per image.

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
        require(self.rows.device.type == "cpu", "a plan is placed in host memory, before it moves to a device")
        rows = torch.ops.deit_kernels._augment_place(
            self.rows, batch.offset, batch.height, batch.width, batch.data.numel(), self.policy.size
        )
        return self._replace(rows=rows)

    def within(self, top: ArrayLike, left: ArrayLike, height: ArrayLike, width: ArrayLike) -> AugmentPlan:
        """The plan for images of which only a box is at hand: every row does to its box what it did to its image.

        Args:
            top, left, height, width: int (B,), the box of each row's image. It holds the row's own box.

        Returns:
            AugmentPlan, not placed; `place` checks that no row's box leaves its image.
        """
        plan = self._replace(rows=self.rows.clone())
        table = plan.table
        table["box"][:, 0] -= top
        table["box"][:, 1] -= left
        table["height"], table["width"], table["offset"] = height, width, -1
        return plan

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

    Source: timm 1.0 `RandomResizedCropAndInterpolation`, `rand_augment_transform` and `RandomErasing`, their generators
    replaced by Philox. A crop that rounds to 0 pixels, possible only below 7 pixels, counts as a rejected try.
    """
    require(0 <= seed < 2**64, f"seed is an integer in [0, 2**64), got {seed}")
    counters = (("epoch", epoch), ("sample", sample), ("copy", copy))
    columns = [_integers(name, value, 0, 2**32 - 1) for name, value in counters]
    columns += [_integers(name, value, 1, MAX_SIDE) for name, value in (("height", height), ("width", width))]
    keys = np.stack(np.broadcast_arrays(*columns), axis=-1)
    require(keys.ndim == 2, f"epoch, sample, copy, height and width broadcast to (B,), got {keys.shape[:-1]}")
    if (limit := ratio_limit(policy)) < inf and len(keys):
        longest = (keys[:, 3:].max(1) / keys[:, 3:].min(1)).max()
        require(longest < limit, f"an image's longer side is below {limit:.0f} times the shorter, got {longest:.0f}")
    numbers = torch.from_numpy(policy.numbers(seed).view(np.uint8))
    rows = torch.ops.deit_kernels._augment_sample_plan(torch.from_numpy(keys), numbers)
    return AugmentPlan(rows, policy)


def ratio_limit(policy: Policy) -> float:
    """An image's longer side must be below this many times its shorter side: what is resized has sides of 31 bits."""
    if policy.crop == "random_resized":
        return inf
    return (2**31 - 1) / (policy.size / policy.crop_ratio) if policy.crop == "center" else MAX_SIDE / policy.size


def _integers(name: str, value: ArrayLike, low: int, high: int) -> NDArray[np.int64]:
    column = np.atleast_1d(np.asarray(value))
    if column.size == 0:
        return column.astype(np.int64)
    require(column.dtype.kind in "iu", f"{name} is an integer or an array of integers, got {column.dtype}")
    least, most = column.min(), column.max()
    require(low <= least and most <= high, f"{name} lies in [{low}, {high}], got {least} to {most}")
    return column.astype(np.int64)
