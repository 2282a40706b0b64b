"""The augmentation where another pipeline expects a transform: one image at a time, or a whole batch.

    dataset = torchvision.datasets.ImageFolder("train", transform=Transform(Policy.deit(224)))
    loader = DataLoader(dataset, batch_size=64, num_workers=4)          # also: timm's ImageDataset, dataset.transform

    collate = BatchTransform(Policy.deit(224), seed=0).collate          # a DataLoader's collate_fn: mixes as well
    images, target = BatchTransform(policy)(uint8_batch, labels)        # uint8 (B, 3, H, W), on a GPU too

`Transform` takes the place of `timm.data.create_transform(...)` or a torchvision `Compose`, with Pillow images going in
and normalised tensors coming out. Without counters of the caller's, the numbers that say what happens to an image come
from torch's generator, as those of torchvision's transforms do: `torch.manual_seed` and a DataLoader's workers have
their usual effect. With counters (`sample`, `epoch`, `step`) nothing is drawn, and equal counters give equal pixels in
every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..distill_loss import MixedTarget
from .mix import sample_mix
from .op import Layout, apply
from .plan import ImageBatch, sample_plan
from .policy import Policy
from .rand_augment import require


class Transform:
    """One image to one tensor. A policy's `mix` concerns a batch and is not applied.

    Args:
        policy: what happens to the image.
        seed: of the augmentation; the rest of its key is drawn for each image.
        dtype: of the result.

    Raises:
        ValueError: as `sample_plan`.
    """

    def __init__(self, policy: Policy, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self.policy, self.seed, self.dtype = policy, seed, dtype

    def __call__(self, image: Any) -> Tensor:
        """A Pillow image, a uint8 (H, W, 3) array, or a uint8 (3, H, W) or (H, W, 3) tensor -> (3, size, size)."""
        batch = _batch([image])
        return apply(batch, _plan(self.policy, self.seed, batch, None, None, 0), dtype=self.dtype)[0]

    def __repr__(self) -> str:
        return f"Transform({self.policy})"


class BatchTransform:
    """A batch of images, of any sizes, to one tensor; with the policy's `mix`, also the targets of the mixed images.

    Args:
        policy: what happens to the images; its `mix` needs labels, and an even number of images.
        seed: of the augmentation.
        dtype, layout, patch: of the result, see `apply`.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        layout: Layout = "nchw",
        patch: int = 16,
    ) -> None:
        self.policy, self.seed = policy, seed
        self.form: dict[str, Any] = {"dtype": dtype, "layout": layout, "patch": patch}

    def __call__(
        self,
        images: ImageBatch | Tensor | Sequence[Any],
        labels: Tensor | None = None,
        *,
        sample: ArrayLike | None = None,
        epoch: ArrayLike | None = None,
        copy: ArrayLike = 0,
        step: int | None = None,
    ) -> Any:
        """Augment.

        Args:
            images: an ImageBatch, a uint8 tensor (B, 3, H, W) on any device that augments, or a list of what
                `Transform` takes.
            labels: int64 (B,); needed where the policy mixes.
            sample, epoch, copy, step: counters; `sample` and `epoch` belong together, see `sample_plan` and
                `sample_mix`. Default: drawn from torch's generator.

        Returns:
            images (B, 3, size, size) or as `layout` says; with labels: (images, labels, or the MixedTarget that
            `distillation_loss` and `cross_entropy` take).

        Raises:
            ValueError: the policy mixes and there are no labels, or an odd number of images; as `apply`.
        """
        batch = _batch(images)
        count = len(batch.height)
        target: Tensor | MixedTarget | None
        require((sample is None) == (epoch is None), "sample and epoch are given together, or neither")
        plan = _plan(self.policy, self.seed, batch, sample, epoch, copy)
        if self.policy.mix is None:
            mixed, target = apply(batch, plan, **self.form), labels
        else:
            if labels is None:
                raise ValueError("the policy mixes images, which needs their labels: give them, or mix=None")
            require(count % 2 == 0, f"images are mixed in pairs, got {count}: drop the last batch, or type mix=None")
            step = int(torch.randint(2**31, ())) if step is None else step
            mix = sample_mix(self.policy, seed=self.seed, step=step, start=0, count=count, group=count)
            mixed, target = apply(batch, plan, mix, **self.form), mix.target(labels)
        return mixed if labels is None else (mixed, target)

    def collate(self, rows: Sequence[tuple[Any, int]]) -> Any:
        """(image, label) pairs, as a data set without a transform gives them -> what calling it returns."""
        images, labels = zip(*rows, strict=True)
        return self(list(images), torch.tensor(labels))

    def __repr__(self) -> str:
        return f"BatchTransform({self.policy})"


def _batch(images: ImageBatch | Tensor | Sequence[Any]) -> ImageBatch:
    if isinstance(images, ImageBatch):
        return images
    if not isinstance(images, Tensor):
        return ImageBatch.from_images([_pixels(image) for image in images])
    require(
        images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] == 3,
        f"a batch of pixels is uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}: "
        f"augmentation comes before the conversion to floating point",
    )
    count, _, height, width = images.shape
    return ImageBatch(
        images.permute(0, 2, 3, 1).contiguous().view(-1),
        torch.arange(count) * (3 * height * width),
        torch.full((count,), height, dtype=torch.int32),
        torch.full((count,), width, dtype=torch.int32),
    )


def _pixels(image: Any) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of a Pillow image in any mode, a uint8 array or tensor (H, W, 3), or a uint8 tensor (3, H, W)."""
    if isinstance(image, Tensor):
        require(
            image.dtype == torch.uint8 and image.dim() == 3 and 3 in (image.shape[0], image.shape[2]),
            f"an image is a uint8 tensor (3, H, W) or (H, W, 3), got {image.dtype} {tuple(image.shape)}: augmentation "
            "comes before the conversion to floating point, so leave ToTensor and ToDtype out",
        )
        image = image.permute(1, 2, 0) if image.shape[0] == 3 else image  # torchvision.io has the channels first
    elif hasattr(image, "convert") and image.mode != "RGB":  # Pillow: grey, palette, alpha
        image = image.convert("RGB")
    return np.asarray(image)


def _plan(
    policy: Policy, seed: int, batch: ImageBatch, sample: ArrayLike | None, epoch: ArrayLike | None, copy: ArrayLike
) -> Any:
    sizes = {"height": batch.height.numpy(), "width": batch.width.numpy()}
    if sample is None or epoch is None:
        count = len(batch.height)
        if policy.draws:
            sample, epoch = torch.randint(2**32, (2, count)).numpy()
        else:
            sample, epoch = np.zeros(count, np.int64), 0  # torch's generator stays where it is
    return sample_plan(policy, seed=seed, epoch=epoch, sample=sample, copy=copy, **sizes)
