"""Where the class token and the distillation token look: their attention to the patches, as numbers and as a picture.

    maps = attention_maps(model, images)                    # (B, tokens, heads, grid, grid)
    draw_attention(trained, [("a cat", pixels)], Path("attention.png"))

The two tokens are trained by different labels, the true ones and the teacher's, and attend to different places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..model import VisionTransformer
from ..picture import picture
from ..weights.prediction import Trained
from .pixels import pixels_of

TOKENS = ("class token", "distillation token")
MOST_IMAGES = 16  # rows of one picture


def require_deit(model: nn.Module) -> VisionTransformer:
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"maps are drawn for a DeiT: {type(model).__name__} has no class and distillation token")
    return model


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor, block: int = -1) -> Tensor:
    """Attention weights of the class token and, if distilled, the distillation token, in one block.

    Args:
        model: a DeiT.
        images: (B, 3, S, S), normalised.
        block: index of the block; the last by default.

    Returns:
        float32 (B, tokens, heads, grid, grid): softmax(q kᵀ / √d) of each token's query over all keys, cut down to the
        patches; a map sums to 1 minus the attention of the tokens to each other.

    Raises:
        ValueError: the model is not a DeiT.
    """
    model = require_deit(model)
    chosen: Any = model.blocks[block]
    attention, prefix, grid = chosen.attn, model.config.prefix_tokens, model.config.grid
    kept: list[Tensor] = []
    hook = attention.qkv.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        model.features(images)
    finally:
        hook.remove()
    query, key, _ = kept[0].float().unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D)
    weights = (query[:, :, :prefix] @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
    return weights[..., prefix:].transpose(1, 2).unflatten(-1, (grid, grid))


def draw_attention(trained: Trained, images: list[tuple[str, NDArray[np.uint8]]], target: Path) -> None:
    """A row for each (caption, uint8 (H, W, 3)): what the model sees, and each token's map, averaged over the heads."""
    prepared = trained.prepare([pixels for _, pixels in images])
    device = next(trained.model.parameters()).device
    maps = attention_maps(trained.model, prepared.to(device)).mean(2).cpu().numpy()
    seen = pixels_of(prepared, trained.preprocessing)
    columns = 1 + maps.shape[1]
    size = (2.6 * columns, 2.8 * len(images))
    with picture(target, len(images), columns, figsize=size, squeeze=False) as (_, axes):
        for line, (caption, _), pixels, tokens in zip(axes, images, seen, maps, strict=True):
            line[0].imshow(pixels)
            line[0].set_title(caption, fontsize=8)
            for panel, name, weights in zip(line[1:], TOKENS, tokens, strict=False):
                panel.imshow(pixels.mean(2), cmap="gray", vmin=0, vmax=255)
                side = pixels.shape[0]
                panel.imshow(weights, cmap="inferno", alpha=0.6, extent=(0, side, side, 0), interpolation="bicubic")
                panel.set_title(f"{name}, {weights.sum():.0%} on patches", fontsize=8)
        for panel in axes.flat:
            panel.axis("off")
