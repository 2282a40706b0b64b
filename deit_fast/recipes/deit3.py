"""The trainings of DeiT III (arXiv 2204.07118), by the commands of README_revenge.md.

docs/deit3.md has the top-1, the source and the time of each. Nothing here has been trained on ImageNet by us yet. Where
the numbers come from stands beside each of them in tests/deit_fast/recipes/deit3_table.json, which a test holds.
"""

from __future__ import annotations

from typing import Any

from . import Recipes
from .paper import TEACHER

# What all trainings from scratch share: 3-Augment, binary cross-entropy, LAMB.
_FROM_SCRATCH = {
    "rand_augment": "3a", "color_jitter": 0.3, "mixup": 0.8, "cutmix": 1.0, "repeats": 3, "crop_ratio": 1.0,
    "bce_loss": True, "label_smoothing": 0.0, "optimizer": "lamb", "unscale_lr": True, "batch_size": 2048,
}  # fmt: skip
# What the fine-tunings share: AdamW at a constant rate, DeiT's augmentation without erasing and repeats.
_FINE_TUNING = {
    "weights": "timm", "rand_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "crop_ratio": 1.0,
    "label_smoothing": 0.1, "unscale_lr": True, "lr": 1e-5, "weight_decay": 0.1, "batch_size": 512, "epochs": 20,
}  # fmt: skip
_MODELS = {
    "small": "deit3_small_patch16_224", "medium": "deit3_medium_patch16_224", "base": "deit3_base_patch16_224",
    "large": "deit3_large_patch16_224", "huge": "deit3_huge_patch14_224",
}  # fmt: skip
# Side of the training images, learning rate, stochastic depth for 800 and for 400 epochs. Nobody has published a
# command for medium: its numbers are between its neighbours'. Huge has 154 pixels: patches of 14 see 154 of the
# official command's 160.
_TRAINED = {
    "small": (224, 4e-3, 0.05, 0.0), "medium": (224, 3e-3, 0.2, 0.1), "base": (192, 3e-3, 0.2, 0.1),
    "large": (192, 3e-3, 0.45, 0.4), "huge": (154, 3e-3, 0.6, 0.5),
}  # fmt: skip
# Stochastic depth of the fine-tunings.
_FINETUNED = {
    ("base", 224): 0.2, ("large", 224): 0.45, ("huge", 224): 0.55, ("small", 384): 0.0, ("base", 384): 0.15,
    ("large", 384): 0.4,
}  # fmt: skip


def _trained(size: str, epochs: int) -> dict[str, Any]:
    side, lr, long, short = _TRAINED[size]
    # For 400 epochs less decay and less stochastic depth.
    less = {"drop_path": long} if epochs == 800 else {"drop_path": short, "weight_decay": 0.03}
    return _FROM_SCRATCH | {"model": _MODELS[size], "image_size": side, "lr": lr, "epochs": epochs} | less


DEIT3_RECIPES: Recipes = {
    **{
        f"deit3-{size}{name}": (
            f"DeiT III, {size}, for {epochs} epochs at {_TRAINED[size][0]} pixels.",
            _trained(size, epochs),
        )
        for name, epochs in (("", 800), ("-400", 400))
        for size in _MODELS
    },
    **{
        f"deit3-{size}-finetune-{side}": (
            f"DeiT III, {size}, fine-tuned for 20 epochs at {side} pixels.",
            _FINE_TUNING | {"model": _MODELS[size], "image_size": side, "drop_path": drop_path},
        )
        for (size, side), drop_path in _FINETUNED.items()
    },
    # The binary cross-entropy is summed: its mean over the classes would weigh a thousandth of the teacher's term.
    "deit3-small-distilled": (
        "DeiT III, small, with a distillation token that learns RegNetY-16GF's labels. Ours: nobody has published one.",
        _trained("small", 800)
        | {"model": "deit3_small_distilled_patch16_224", "distill": "hard", "teacher": TEACHER, "bce_sum": True},
    ),
}
