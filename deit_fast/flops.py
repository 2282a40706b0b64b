"""Floating-point operations of a model, and what a card can do: the two sides of a model FLOPs utilisation (MFU).

A multiplication and an addition count as two. Only matrix products and convolutions are counted, as is usual.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .model import VisionTransformer, ViTConfig
from .weights.build import Teacher

# Dense bf16 rate with fp32 accumulation, in 1e12/s, from NVIDIA's data sheets. The first name that is part of the
# card's is taken, so the longer ones come first.
_PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H200": 989.4,
    "A100": 312.0,
    "B200": 2250.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A30": 165.0,
    "A40": 149.7,
    "RTX 4090": 165.2,
}


def peak_flops(card: str) -> float | None:
    """Dense bf16 FLOP/s of a card by the name its driver gives; None for one that is not in the table."""
    # "NVIDIA L40" is no L4: a name counts only as whole words.
    words = f" {card} ".replace("-", " ")
    return next((1e12 * peak for name, peak in _PEAKS.items() if f" {name} " in words), None)


def forward_flops(model: nn.Module, image_size: int) -> float | None:
    """FLOPs of one image's forward pass; None for a model that cannot be run without its values."""
    if isinstance(model, Teacher):
        model = model.model
    if isinstance(model, VisionTransformer):
        return _transformer_flops(model.config)
    shapes = copy.deepcopy(model).to("meta").eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            dtype = next((parameter.dtype for parameter in shapes.parameters()), torch.float32)
            shapes(torch.empty(1, 3, image_size, image_size, dtype=dtype, device="meta"))
    except Exception:  # whatever a foreign model's forward may raise on tensors without values
        return None
    return float(counter.get_total_flops()) or None


def training_flops(student: nn.Module, teacher: nn.Module | None, image_size: int) -> float | None:
    """FLOPs of one image in a training step: three forward passes' worth of the student, one of its teacher."""
    ours = forward_flops(student, image_size)
    theirs = forward_flops(teacher, image_size) if teacher is not None else 0.0
    return None if ours is None or theirs is None else 3 * ours + theirs


def _transformer_flops(config: ViTConfig) -> float:
    patches, width = config.grid**2, config.width
    tokens = patches + config.prefix_tokens
    hidden = int(width * config.mlp_ratio)
    block = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    heads = (2 if config.distilled else 1) * width * config.classes
    embedding = patches * 3 * config.patch_size**2 * width
    return 2.0 * (embedding + config.depth * block + heads)
