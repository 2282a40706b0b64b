"""Our ops in a Hugging Face DeiT: the same losses, step by step, and what was replaced.

    python examples/huggingface_deit.py

A `DeiTForImageClassification` is trained by a plain loop, once as transformers computes it and once with
attn_implementation="deit_kernels", our cross-entropy, and images prepared by `BatchTransform`. Its weights are random
here; with `from_pretrained` nothing else changes. Twenty seconds on a CPU. Exit codes: 0 the losses agree, 1 they do
not.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DeiTConfig, DeiTForImageClassification

from deit_kernels import attention_unsupported_reasons, cross_entropy
from deit_kernels.augment import BatchTransform, Policy
from deit_kernels.integrations import register_huggingface

SIZE, CLASSES, STEPS, BATCH = 32, 4, 6, 8
TOLERANCE = 5e-6  # of losses near 1; seen: 5e-7. A softmax that is 5 % too sharp moves them by 2e-5


def deit(attention: str) -> DeiTForImageClassification:
    config = DeiTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=SIZE,
        patch_size=8, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DeiTForImageClassification(config)
    model.set_attn_implementation(attention)
    return model


def plain_transform(images: Tensor) -> Tensor:
    """What transformers' processor computes on images that have the right size already."""
    return (images / 255 - 0.5) / 0.25


def train(
    model: DeiTForImageClassification,
    transform: Callable[[Tensor], Tensor],
    label_loss: Callable[[Tensor, Tensor], Tensor],
) -> list[float]:
    """The loop, with whatever it is given."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        loss = label_loss(model(pixel_values=transform(images)).logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> int:
    expected = train(deit("sdpa"), plain_transform, F.cross_entropy)

    ours = deit(register_huggingface())
    policy = Policy(size=SIZE, crop="center", crop_ratio=1.0, flip=0.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    got = train(ours, BatchTransform(policy), cross_entropy)

    reasons = attention_unsupported_reasons(torch.zeros(1, 18, 3, 2, 32))
    print(f"replaced: attn_implementation sdpa, by {ours.config._attn_implementation}, in 2 blocks")
    print("replaced: torch.nn.functional.cross_entropy, by deit_kernels.cross_entropy")
    print("replaced: the image processor, by deit_kernels.augment.BatchTransform")
    print(f"attention runs in {'PyTorch (' + reasons[0] + ')' if reasons else 'our kernels'}\n")
    print("step  transformers     ours  difference")
    for step, (old, new) in enumerate(zip(expected, got, strict=True)):
        print(f"{step:>4}      {old:8.5f} {new:8.5f}  {abs(old - new):.1e}")
    worst = max(abs(old - new) for old, new in zip(expected, got, strict=True))
    if not worst <= TOLERANCE:
        print(f"error: the losses differ by {worst:.1e}, more than {TOLERANCE:g}", file=sys.stderr)
        return 1
    print(f"\nthe same training, within {worst:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
