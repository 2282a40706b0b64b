"""Our ops in a vision transformer that someone wrote in 60 lines: two lines of it change, the training does not.

    python examples/nano_vit.py

In the spirit of nanoGPT: one file, no framework, `F.scaled_dot_product_attention`, and DeiT's distillation loss spelled
out in PyTorch. The second training calls `attention_qkvpacked`, which takes the projection's output as it lies, and
`distillation_loss`, which is one kernel for both heads. Ten seconds on a CPU. Exit codes: 0 the losses agree, 1 they
do not.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_kernels import attention_qkvpacked, attention_unsupported_reasons, distillation_loss

WIDTH, HEADS, DEPTH, SIZE, PATCH, CLASSES, STEPS, BATCH = 64, 2, 2, 32, 8, 10, 6, 16
TOLERANCE = 5e-6  # of losses near 1; seen: 5e-7. A softmax that is 5 % too sharp moves them by 2e-5


def plain_attention(qkv: Tensor) -> Tensor:
    """(B, N, 3, H, D) -> (B, N, H, D), as everyone writes it."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def plain_loss(cls_logits: Tensor, dist_logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Equation 3 of the paper: half the label, half the teacher's label."""
    label_term = F.cross_entropy(cls_logits, labels, label_smoothing=0.1)
    return 0.5 * label_term + 0.5 * F.cross_entropy(dist_logits, teacher.argmax(1))


def our_loss(cls_logits: Tensor, dist_logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return distillation_loss(cls_logits, dist_logits, teacher, labels, mode="hard", label_smoothing=0.1)


class Block(nn.Module):
    def __init__(self, attention: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        x = x + self.proj(self.attention(qkv).flatten(2))  # the first line that changes, by its argument
        return x + self.mlp(self.norm2(x))


class NanoViT(nn.Module):
    def __init__(self, attention: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.tokens = nn.Parameter(torch.randn(1, 2, WIDTH) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 2 + (SIZE // PATCH) ** 2, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block(attention) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = self.norm(self.blocks(x))
        return self.heads[0](x[:, 0]), self.heads[1](x[:, 1])


def train(attention: Callable[[Tensor], Tensor], loss_function: Callable[..., Tensor]) -> list[float]:
    torch.manual_seed(0)
    model = NanoViT(attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        images, teacher = torch.randn(BATCH, 3, SIZE, SIZE), torch.randn(BATCH, CLASSES)
        cls_logits, dist_logits = model(images)
        loss = loss_function(cls_logits, dist_logits, teacher, torch.randint(CLASSES, (BATCH,)))  # the second
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> int:
    expected, got = train(plain_attention, plain_loss), train(attention_qkvpacked, our_loss)
    reasons = attention_unsupported_reasons(torch.zeros(1, 18, 3, HEADS, WIDTH // HEADS))
    print("replaced: F.scaled_dot_product_attention, by deit_kernels.attention_qkvpacked")
    print("replaced: two F.cross_entropy and an argmax, by deit_kernels.distillation_loss")
    print(f"attention runs in {'PyTorch (' + reasons[0] + ')' if reasons else 'our kernels'}\n")
    print("step  PyTorch     ours  difference")
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
