"""Scaled dot-product attention, written out: the oracle of the kernels (accepts float64)."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_reference(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale · query @ keyᵀ) @ value, Vaswani et al. 2017, eq. 1.

    Args:
        query, key, value: (B, H, N, D), any floating type; the softmax runs in float32, or float64 for float64 input.
        scale: factor on the logits; None is D ** -0.5.

    Returns:
        (B, H, N, D) in the input's type.
    """
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query.to(exact) @ key.to(exact).transpose(-2, -1)) * scale
    return (logits.softmax(-1) @ value.to(exact)).to(query.dtype)
