"""Pixels: of an image of a data set, of evaluation's crop of it, and back from a normalised batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deit_kernels.augment import ImageBatch, Policy, apply, sample_plan
from deit_kernels.augment.plan import ratio_limit

from ..config import Preprocessing
from ..data import BadImage, Dataset
from ..data.sources.dataset import read_image


def pixels_of(images: Tensor, normalised: Policy | Preprocessing) -> NDArray[np.uint8]:
    """Normalised images (B, 3, S, S) -> the pixels that they were, (B, S, S, 3); noise outside [0, 255] is clipped."""
    unit = images.permute(0, 2, 3, 1).cpu().numpy() * np.array(normalised.std) + np.array(normalised.mean)
    return np.rint(255 * unit).clip(0, 255).astype(np.uint8)


def evaluation_crop(image: NDArray[np.uint8], policy: Policy, up: int = 0, left: int = 0) -> NDArray[np.uint8]:
    """The pixels (S, S, 3) that evaluation sees of a decoded image, of a crop moved so many pixels to the corner."""
    batch = ImageBatch.from_images([image])
    sizes = {"height": batch.height.numpy(), "width": batch.width.numpy()}
    plan = sample_plan(policy, seed=0, epoch=0, sample=np.zeros(1, np.int64), copy=0, **sizes)
    plan.table["window"] = np.maximum(0, plan.table["window"] - (up, left))
    return pixels_of(apply(batch, plan), policy)[0]


def image_of(dataset: Dataset, sample: int, policy: Policy, exif_orientation: bool = False) -> NDArray[np.uint8]:
    """A decoded image, uint8 (H, W, 3); BadImage where it is unreadable or the policy's crop refuses it."""
    limit = ratio_limit(policy)
    part = read_image(dataset, sample, exif_orientation=exif_orientation, ratio_limit=limit).part
    if isinstance(part, BadImage):
        raise part
    return part.pixels
