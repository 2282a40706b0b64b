"""Scaled dot-product attention and its gradients, written out: the oracle of the kernels (accepts float64).

`attention_reference` and `attention_backward_reference` are differentiable; the latter is also the double backward.
`forward_reference` and `backward_reference` have the ops' signatures and serve as their CPU implementation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def attention_reference(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale · query @ keyᵀ) @ value, Vaswani et al. 2017, eq. 1.

    Args:
        query, key, value: (B, H, N, D), any floating type; the softmax runs in float32, or float64 for float64 input.
        scale: factor on the logits; None is D ** -0.5.

    Returns:
        (B, H, N, D) in the input's type.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (_exact(query) @ _exact(key).transpose(-2, -1)) * scale
    return (logits.softmax(-1) @ _exact(value)).to(query.dtype)


def attention_backward_reference(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `attention_reference`, from its inputs: Dao et al. 2022 (FlashAttention), appendix B.2.

    Args:
        grad, query, key, value: (B, H, N, D).

    Returns:
        gradients of query, key and value, each (B, H, N, D) in its type, and differentiable themselves.
    """
    q, k, v, do = _exact(query), _exact(key), _exact(value), _exact(grad)
    probs = ((q @ k.transpose(-2, -1)) * scale).softmax(-1)  # (B, H, N, N)
    dprobs = do @ v.transpose(-2, -1)
    dlogits = probs * (dprobs - (probs * dprobs).sum(-1, keepdim=True)) * scale
    dq, dk, dv = dlogits @ k, dlogits.transpose(-2, -1) @ q, probs.transpose(-2, -1) @ do
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype)


def forward_reference(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The forward op on (B, N, H, D): the output (B, N, H, D) and the base-2 log-sum-exp of the logits, (B, H, N)."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    out = attention_reference(q, k, v, scale=scale).transpose(1, 2).contiguous()
    logits = (_exact(q) @ _exact(k).transpose(-2, -1)) * scale
    return out, logits.logsumexp(-1).mul(1 / math.log(2)).float()


def backward_reference(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor | None, lse: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """The backward op on (B, N, H, D): the three gradients, packed (B, N, 3, H, D); `out` and `lse` are not read."""
    do, q, k, v = (tensor.transpose(1, 2) for tensor in (grad, query, key, value))
    grads = attention_backward_reference(do, q, k, v, scale=scale)
    return torch.stack([tensor.transpose(1, 2) for tensor in grads], dim=2)
