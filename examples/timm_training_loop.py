"""Our ops in a plain timm training loop: the same losses, step by step, and what was replaced.

    python examples/timm_training_loop.py
    python examples/timm_training_loop.py --model vit_tiny_patch16_224       # any ViT or DeiT of timm

The loop is what a user of timm writes: a student, a teacher, timm's transform, `TokenDistillationTask` for a distilled
student (timm's label smoothing for others) and AdamW. It runs twice, the second time with
`deit_kernels.augment.Transform`, `patch_timm` and our loss. Twenty seconds on a CPU. Exit codes: 0 the losses agree, 1
they do not, 2 the model's attention cannot be replaced.
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.loss import LabelSmoothingCrossEntropy
from timm.task import TokenDistillationTask as TimmTask
from torch import Tensor, nn

from deit_fast.timm_task import TokenDistillationTask
from deit_kernels import attention_unsupported_reasons, cross_entropy
from deit_kernels.augment import Policy, Transform
from deit_kernels.integrations import patch_timm

SIZE, CLASSES, STEPS, BATCH = 32, 4, 6, 8
TOLERANCE = 5e-6  # of losses near 1; seen: 5e-7. A softmax that is 5 % too sharp moves them by 2e-5


def photographs() -> tuple[list[Image.Image], Tensor]:
    """Noise round a colour, which is the class."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, STEPS * BATCH)
    colours = generator.integers(40, 216, (CLASSES, 3))
    pixels = [np.clip(colours[label] + generator.normal(0, 30, (50, 41, 3)), 0, 255) for label in labels]
    return [Image.fromarray(image.astype(np.uint8)) for image in pixels], torch.from_numpy(labels)


def student(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2} if "patch16" in name else {}
    return timm.create_model(name, img_size=SIZE, num_classes=CLASSES, **sizes)


def teacher() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("test_efficientnet", num_classes=CLASSES).eval()


def train(model: nn.Module, transform: Callable[[Image.Image], Tensor], criterion: Callable) -> list[float]:
    """The loop, with whatever it is given."""
    images, labels = photographs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        loss = criterion(torch.stack([transform(image) for image in images[rows]]), labels[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def criterion_of(model: nn.Module, task: type, label_loss: Callable) -> Callable[[Tensor, Tensor], Tensor]:
    if not hasattr(model, "set_distilled_training"):
        return lambda images, labels: label_loss(model(images), labels)
    distillation = task(
        model, teacher(), criterion=LabelSmoothingCrossEntropy(0.1), distill_type="soft", task_loss_weight=0.5,
        verbose=False,
    ).train()  # fmt: skip
    return lambda images, labels: distillation(images, labels)["loss"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_distilled_patch16_224", help="of timm (default %(default)s)")
    name = parser.parse_args(arguments).model

    theirs = student(name)
    seen = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    by_timm = create_transform((3, SIZE, SIZE), is_training=False, interpolation="bicubic", crop_pct=0.9, **seen)
    expected = train(theirs, by_timm, criterion_of(theirs, TimmTask, LabelSmoothingCrossEntropy(0.1)))

    ours = student(name)
    try:
        patch = patch_timm(ours, strict=True)
    except ValueError as error:
        print(f"error: {name}: {error}", file=sys.stderr)
        return 2
    policy = Policy(size=SIZE, crop="center", crop_ratio=0.9, flip=0.0, **seen)
    criterion = criterion_of(ours, TokenDistillationTask, lambda *pair: cross_entropy(*pair, label_smoothing=0.1))
    got = train(ours, Transform(policy), criterion)

    reasons = attention_unsupported_reasons(torch.zeros(1, 18, 3, 2, 32))
    loss = "TokenDistillationTask" if hasattr(ours, "set_distilled_training") else "LabelSmoothingCrossEntropy"
    print(f"replaced: the attention of {patch.changed} blocks, by deit_kernels.attention_qkvpacked")
    print(f"replaced: timm's {loss}, by ours")
    print("replaced: timm.data.create_transform, by deit_kernels.augment.Transform")
    print(f"attention runs in {'PyTorch (' + reasons[0] + ')' if reasons else 'our kernels'}\n")
    print("step     timm     ours  difference")
    for step, (old, new) in enumerate(zip(expected, got, strict=True)):
        print(f"{step:>4} {old:8.5f} {new:8.5f}  {abs(old - new):.1e}")
    worst = max(abs(old - new) for old, new in zip(expected, got, strict=True))
    if not worst <= TOLERANCE:
        print(f"error: the losses differ by {worst:.1e}, more than {TOLERANCE:g}", file=sys.stderr)
        return 1
    print(f"\nthe same training, within {worst:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
