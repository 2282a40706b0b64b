"""The public attention functions and the choice of what runs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention_unsupported_reasons(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> list[str]:
    """Why `F.scaled_dot_product_attention` runs instead of a kernel of ours; empty when ours runs. key None: query is packed."""
    return ["no attention kernel is built into this version"]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`, its signature and meaning.

    Args:
        query, key, value: (B, H, N, D), any strides with a unit last dimension.

    Returns:
        (B, H, N, D), a view of (B, N, H, D) memory.
    """
    result = F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return result.transpose(1, 2).contiguous().transpose(1, 2)


def attention_qkvpacked(qkv: Tensor, *, scale: float | None = None) -> Tensor:
    """Self-attention on the output of a fused qkv projection, without permuting or copying it.

    Args:
        qkv: (B, N, 3, H, D), the order of timm's and the official DeiT's `attn.qkv`.
        scale: factor on the logits; None is D ** -0.5.

    Returns:
        (B, N, H, D), contiguous: `.flatten(2)` is the input of the output projection.

    Raises:
        ValueError: qkv is not of rank 5 with 3 in dimension 2.
    """
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f"attention_qkvpacked takes qkv of shape (B, N, 3, H, D), got {tuple(qkv.shape)}")
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).contiguous()
