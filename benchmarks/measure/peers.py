"""DeiT's recipe as timm and torchvision write it, and a model whose outputs are given. Importing it needs neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from deit_kernels.augment import Policy

TIMM_STRING = "rand-m9-mstd0.5-inc1"
# Options of timm's create_transform and create_loader.
PLAIN_OF_TIMM: dict[str, Any] = {"interpolation": "bicubic", "color_jitter": None}
DEIT_OF_TIMM: dict[str, Any] = {
    "interpolation": "bicubic", "auto_augment": TIMM_STRING, "re_prob": 0.25, "re_mode": "pixel",
}  # fmt: skip
DEIT3_OF_TIMM: dict[str, Any] = {"interpolation": "bicubic", "auto_augment": "3a", "color_jitter": 0.3}


def torchvision_transform(policy: Policy, whole: bool, ops: Sequence[Callable[[Tensor], Tensor]] = ()) -> Any:
    """torchvision's v2 transforms on uint8 tensors, in the order that its documentation finds fastest.

    Args:
        whole: with RandAugment and erasing; else with `ops` in their place.
    """
    import torch
    from torchvision.transforms import InterpolationMode, v2

    crop = v2.RandomResizedCrop(224, interpolation=InterpolationMode.BICUBIC, antialias=True)
    drawn = [v2.RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR)]  # it has no bicubic for tensors
    normalised = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(policy.mean, policy.std)]
    erased = [v2.RandomErasing(0.25, value="random")] if whole else []
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *(drawn if whole else ops), *normalised, *erased])


class Fixed(nn.Module):
    """A model whose outputs are given, so that a task of timm's computes its loss and nothing else."""

    num_classes, in_chans, pretrained_cfg = 0, 3, {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def set_distilled_training(self, enable: bool) -> None: ...

    def forward(self, images: Tensor) -> object:
        return self.outputs if len(self.outputs) > 1 else self.outputs[0]
