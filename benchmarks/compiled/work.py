"""The work of a training step: the matrix products that it computes, and the bytes that everything else moves.

Sizes are those of deit_fast.model, whose last block computes projection and MLP for the prefix tokens alone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import timm
import torch
from torch import nn

from deit_fast.model import CONFIGS, ViTConfig, create_model

HALF, FULL = 2, 4  # bytes of a bfloat16 and of a float32


@dataclass(frozen=True)
class Settings:
    """One step: `batch` images of one card at once, and what could be changed about it.

    `gelu_in_products` puts GELU, its backward and fc1's bias gradient into the epilogues of the products around them.
    """

    model: str
    batch: int
    teacher: Literal["cached", "live"] = "cached"
    cards: int = 1
    residual: Literal["fp32", "bf16"] = "fp32"  # between the blocks
    gelu_in_products: bool = False
    biases_in_norms: bool = False  # gradients of proj's and fc2's biases by the kernels of LN's backward
    qkv_bias_in_attention: bool = False  # its gradient by attention's backward
    graph: bool = False  # forward and backward as a CUDA graph, without gaps between kernels


class Product(NamedTuple):
    """A matrix product of bfloat16 (rows, depth) and (depth, columns)."""

    rows: int
    columns: int
    depth: int

    @property
    def flop(self) -> int:
        return 2 * self.rows * self.columns * self.depth

    @property
    def bytes(self) -> int:
        return HALF * ((self.rows + self.columns) * self.depth + self.rows * self.columns)


class Rows(NamedTuple):
    """Rows of the activations of a batch; `last`: those that the last block computes after its attention."""

    all: int
    last: int
    patches: int

    @classmethod
    def of(cls, config: ViTConfig, batch: int) -> Rows:
        patches = math.prod(config.grid_size)
        return cls(batch * (patches + config.prefix_tokens), batch * config.prefix_tokens, batch * patches)


@functools.cache
def on_meta(name: str) -> nn.Module:
    """The model, ours or timm's, without values."""
    with torch.device("meta"):
        return create_model(name) if name in CONFIGS else timm.create_model(name).eval()


def parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in on_meta(name).parameters())


def hidden(config: ViTConfig) -> int:
    """Channels between the two layers of an MLP."""
    return int(config.width * config.mlp_ratio)


def products(config: ViTConfig, batch: int) -> list[Product]:
    """Every matrix product of a step: of each layer the output, the gradient of its weight and that of its input."""
    rows, width = Rows.of(config, batch), config.width
    layers = [(rows.patches, width, 3 * config.patch_size**2)]  # rows, output features, input features
    for after in [rows.all] * (config.depth - 1) + [rows.last]:
        layers += [(rows.all, 3 * width, width), (after, width, width)]
        layers += [(after, hidden(config), width), (after, width, hidden(config))]
    layers += [(batch, config.classes, width)] * (1 + config.distilled)
    outputs = [Product(count, features, given) for count, features, given in layers]
    weights = [Product(features, given, count) for count, features, given in layers]
    return outputs + weights + [Product(count, given, features) for count, features, given in layers[1:]]


def moved(settings: Settings, config: ViTConfig) -> dict[str, float]:
    """Bytes of the parts that compute no product.

    LN with the sum before it reads the residual and a branch and writes both; backward it reads its gradient, its input
    and the residual's gradient, writes that in both types, and sums the gradients of its weight and bias on the way, as
    Inductor's mix_order_reduction does. Each bias's gradient reads what it sums once more.
    """
    rows, width = Rows.of(config, settings.batch), config.width
    between = FULL if settings.residual == "fp32" else HALF
    every = config.depth * rows.all
    after = every - rows.all + rows.last  # attention, of all blocks together
    first = rows.all * width * (HALF + between + HALF)  # positions are added, there is no residual to read
    norms = width * (2 * between + 2 * HALF) * (every - rows.all + after + rows.last)
    gelu, of_gelu = (HALF, HALF) if settings.gelu_in_products else (2 * HALF, 3 * HALF)
    zeros = HALF * width * rows.all  # of the last block's attention the gradient is zero but for prefix tokens
    of_norms = width * (3 * between + 2 * HALF) * (every + after + rows.last)
    sums = between * width * rows.all + HALF * width * rows.patches  # positions, and the patches' bias
    sums += 0 if settings.biases_in_norms else HALF * 2 * width * after
    sums += 0 if settings.gelu_in_products else HALF * hidden(config) * after
    sums += 0 if settings.qkv_bias_in_attention else HALF * 3 * width * every
    layers = products(config, 1)
    matrices = sum(each.columns * each.depth for each in layers[: (len(layers) + 1) // 3])
    pixels = rows.patches * 3 * config.patch_size**2  # the augmentation writes float32
    return {
        "LN, residual and GELU, forward": first + norms + gelu * hidden(config) * after,
        "LN, residual and GELU, backward": of_norms + zeros + of_gelu * hidden(config) * after,
        "sums over rows: biases": sums,
        "casts of weights, gradients and patches": (matrices * 2 + pixels) * (FULL + HALF),
        "loss": 6 * HALF * settings.batch * config.classes,  # both heads: read; read again, and their gradients written
        # AdamW reads four tensors and writes three, the norm reads the gradient, the average reads two and writes one.
        "AdamW, norm, moving average": (7 + 1 + 3) * FULL * parameters(settings.model),
    }
