"""The trainings of DeiT III (arXiv 2204.07118), by the commands of README_revenge.md; `named.py` names them.

Every docstring has the command, the top-1 on ImageNet's validation images with its source, and a time. Nothing here has
been trained on ImageNet by us yet; a time marked "estimate" is the arithmetic of docs/recipes.md, a lower bound.
Where the numbers come from stands beside each of them in tests/deit_fast/recipes/deit3_table.json, which a test holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config import Config
from .paper import TEACHER


def deit3(model: str, **changes: Any) -> Config:
    """What all trainings of DeiT III from scratch share: 3-Augment, binary cross-entropy, LAMB, 800 epochs."""
    settings: dict[str, Any] = {
        "rand_augment": "3a", "color_jitter": 0.3, "mixup": 0.8, "cutmix": 1.0, "repeats": 3, "crop_ratio": 1.0,
        "bce_loss": True, "label_smoothing": 0.0, "optimizer": "lamb", "unscale_lr": True, "batch_size": 2048,
        "epochs": 800,
    }  # fmt: skip
    return Config(model=model, **settings | changes)


def finetuned(model: str, image_size: int, drop_path: float) -> Config:
    """What the fine-tunings share: AdamW at a constant rate, DeiT's augmentation without erasing and repeats."""
    return Config(
        model=model, weights="timm", image_size=image_size, drop_path=drop_path, rand_augment="rand-m9-mstd0.5-inc1",
        mixup=0.8, cutmix=1.0, crop_ratio=1.0, label_smoothing=0.1, unscale_lr=True, lr=1e-5, weight_decay=0.1,
        batch_size=512, epochs=20,
    )  # fmt: skip


_MODELS = {
    "small": "deit3_small_patch16_224", "medium": "deit3_medium_patch16_224", "base": "deit3_base_patch16_224",
    "large": "deit3_large_patch16_224", "huge": "deit3_huge_patch14_224",
}  # fmt: skip
# Side of the training images, learning rate, stochastic depth for 800 and for 400 epochs.
_TRAINED = {
    "small": (224, 4e-3, 0.05, 0.0), "medium": (224, 3e-3, 0.2, 0.1), "base": (192, 3e-3, 0.2, 0.1),
    "large": (192, 3e-3, 0.45, 0.4), "huge": (154, 3e-3, 0.6, 0.5),
}  # fmt: skip
_HOURS = {"small": (4.3, 2.2), "medium": (7.5, 3.8), "base": (12.1, 6.0), "large": (42, 21), "huge": (74, 37)}
_TOP1 = {  # top-1, and on ImageNet-V2, of the 224-pixel models (README_revenge.md)
    "small": (81.4, 70.5), "medium": (83.0, 72.3), "base": (83.8, 73.6), "large": (84.9, 75.1), "huge": (85.2, 75.9),
}  # fmt: skip
_TOP1_400 = {"small": 80.4, "base": 83.4, "large": 84.6}  # naver-ai/rope-vit, README: repeated with the official code
# Stochastic depth, top-1, top-1 on ImageNet-V2 and hours of the fine-tunings.
_FINETUNED = {
    ("base", 224): (0.2, 83.8, 73.6, 0.4), ("large", 224): (0.45, 84.9, 75.1, 1.5),
    ("huge", 224): (0.55, 85.2, 75.9, 3.9), ("small", 384): (0.0, 83.4, 73.1, 0.4),
    ("base", 384): (0.15, 85.0, 74.8, 1.3), ("large", 384): (0.4, 85.8, 76.7, 4.5),
}  # fmt: skip
_OWN = {
    "medium": "The authors give no command for this size: rate, resolution and stochastic depth are between its "
    "neighbours' (docs/deit3.md).",
    "huge": "Trained at 154 pixels: the official command says 160, of which patches of 14 see 154.",
}


def _trained(size: str, epochs: int) -> Callable[[], Config]:
    side, lr, *rates = _TRAINED[size]
    short = epochs == 400
    # For 400 epochs less decay and less stochastic depth.
    settings = {"image_size": side, "lr": lr, "drop_path": rates[short], "weight_decay": 0.03 if short else 0.05}

    def recipe() -> Config:
        return deit3(_MODELS[size], epochs=epochs, **settings)

    name = f"deit3-{size}{'-400' if short else ''}"
    (top1, v2), then = _TOP1[size], (size, 224) in _FINETUNED
    if short and size in _TOP1_400:
        expected = f"Top-1 {_TOP1_400[size]} (naver-ai/rope-vit, repeated with the official code)"
    elif short:
        expected = "Top-1: no number was published"
    else:
        expected = f"Top-1 {top1}, on ImageNet-V2 {v2} (official README)"
    after = f", after {name.removesuffix('-400')}-finetune-224" if then else ""
    recipe.__doc__ = f"""DeiT III, {size}, for {epochs} epochs at {side} pixels.

    python -m deit_fast.train --recipe {name} --data /imagenet

    {expected}{after}. Time: {_HOURS[size][short]} h on 8 × H100 (estimate).
    {_OWN.get(size, "")}
    """.rstrip()
    return recipe


def _fine_tuning(size: str, side: int) -> Callable[[], Config]:
    drop_path, top1, v2, hours = _FINETUNED[size, side]
    name, start = f"deit3-{size}-finetune-{side}", f"runs/deit3-{size}"
    if side == 384 and (size, 224) in _FINETUNED:
        start += "-finetune-224"

    def recipe() -> Config:
        return finetuned(_MODELS[size], side, drop_path)

    recipe.__doc__ = f"""DeiT III, {size}, fine-tuned for 20 epochs at {side} pixels.

    python -m deit_fast.train --recipe {name} --data /imagenet --weights {start}

    --weights is a run, or a file of ours, the official code's, timm's or Hugging Face's; "timm", the default, fetches.
    Top-1 {top1}, on ImageNet-V2 {v2} (official README). Time: {hours} h on 8 × H100 (estimate).
    """.rstrip()
    return recipe


def deit3_small_distilled() -> Config:
    """DeiT III, small, with a distillation token that learns RegNetY-16GF's labels. Ours: nobody has published one.

    python -m deit_fast.train --recipe deit3-small-distilled --data /imagenet

    Top-1: not known, nothing is promised; without a teacher it is 81.4. The settings are those of `deit3-small`; the
    binary cross-entropy is summed over the classes, because its mean would weigh a thousandth of the teacher's term.
    Time: 9.4 h on 8 × H100 (estimate).
    """
    side, lr, drop_path, _ = _TRAINED["small"]
    return deit3(
        "deit3_small_distilled_patch16_224", image_size=side, lr=lr, drop_path=drop_path, distill="hard",
        teacher=TEACHER, bce_sum=True,
    )  # fmt: skip


DEIT3_RECIPES: dict[str, Callable[[], Config]] = {
    **{f"deit3-{size}": _trained(size, 800) for size in _MODELS},
    **{f"deit3-{size}-400": _trained(size, 400) for size in _MODELS},
    **{f"deit3-{size}-finetune-{side}": _fine_tuning(size, side) for size, side in _FINETUNED},
    "deit3-small-distilled": deit3_small_distilled,
}
