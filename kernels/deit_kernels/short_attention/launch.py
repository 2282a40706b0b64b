"""Launch the attention kernels: grid and arguments."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from . import backward_kernels, forward_kernels
from .configuration import Config, card_of, choose, key_pieces, splits

_LOG2_E = 1 / math.log(2)
_DELTA_ROWS = 64


def forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float, config: Config | None = None, split: int | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of (B, N, H, D) tensors: the output, contiguous (B, N, H, D), and the base-2 log-sum-exp (B, H, N)."""
    batch, length, heads, features = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=query.device)
    card, multiprocessors = card_of(query.device)
    pairs = batch * heads
    config = config or choose("forward", card, length, features, pairs, multiprocessors)
    constexprs = forward_constexprs(config, length, features)
    query, key, value = _readable(query), _readable(key), _readable(value)
    strides = _strides(query) + _strides(key) + _strides(value)
    with torch.cuda.device_of(query):
        if config.form == "resident":
            split = split or splits(config, length, pairs, multiprocessors)
            forward_kernels.attention_forward_resident[(pairs * split,)](
                query, key, value, out, lse, heads, length, split, scale * _LOG2_E, *strides, **constexprs
            )
        else:
            forward_kernels.attention_forward_tiled[(pairs * triton.cdiv(length, config.block_m),)](
                query, key, value, out, lse, heads, length, scale * _LOG2_E, *strides, **constexprs
            )
    return out, lse


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The gradients, packed (B, N, 3, H, D), and the scratch of all forms but the resident one: delta (B, H, N)."""
    batch, length, heads, features = query.shape
    grads = torch.empty(batch, length, 3, heads, features, dtype=query.dtype, device=query.device)
    card, multiprocessors = card_of(query.device)
    pairs = batch * heads
    config = config or choose("backward", card, length, features, pairs, multiprocessors)
    constexprs = backward_constexprs(config, length, features)
    grad, query, key, value = _readable(grad), _readable(query), _readable(key), _readable(value)
    out, lse = _packed(out), _packed(lse)
    strides = _strides(grad) + _strides(query) + _strides(key) + _strides(value)
    with torch.cuda.device_of(query):
        if config.form == "resident":
            backward_kernels.attention_backward_resident[(pairs,)](
                grad, query, key, value, out, lse, grads, heads, length, scale, scale * _LOG2_E, *strides, **constexprs
            )
            return grads, None
        delta = torch.empty_like(lse)
        if config.form == "two_phase":
            backward_kernels.attention_backward_two_phase[(pairs,)](
                grad, query, key, value, out, lse, delta, grads, heads, length, scale, scale * _LOG2_E, *strides,
                **constexprs
            )  # fmt: skip
            return grads, delta
        backward_kernels.attention_delta[(pairs * triton.cdiv(length, _DELTA_ROWS),)](
            grad, out, delta, heads, length, *_strides(grad), **delta_constexprs(features)
        )
        backward_kernels.attention_backward_tiled[(2 * pairs * triton.cdiv(length, config.block_m),)](
            grad, query, key, value, lse, delta, grads, heads, length, scale, scale * _LOG2_E, *strides, **constexprs
        )
    return grads, delta


def forward_constexprs(config: Config, length: int, features: int) -> dict[str, Any]:
    """Constexprs and launch options of the forward kernel that `config` names."""
    shared = _constexprs(config, features)
    if config.form == "resident":
        return shared | dict(zip(("P0", "P1", "P2"), key_pieces(length), strict=True))
    tail = length % config.block_n
    return shared | {"BN": config.block_n, "TAIL": max(16, triton.next_power_of_2(tail)) if tail else 0}


def backward_constexprs(config: Config, length: int, features: int) -> dict[str, Any]:
    """Constexprs and launch options of the backward kernel that `config` names."""
    keys = max(16, triton.next_power_of_2(length)) if config.form == "resident" else config.block_n
    return _constexprs(config, features) | {"BN": keys}


def delta_constexprs(features: int) -> dict[str, Any]:
    """Constexprs and launch options of the delta kernel."""
    return {"D": features, "BD": _padded(features), "BM": _DELTA_ROWS, "num_warps": 4, "num_stages": 1, "maxnreg": None}


def _constexprs(config: Config, features: int) -> dict[str, Any]:
    return {
        "D": features,
        "BD": _padded(features),
        "BM": config.block_m,
        "STAGES": config.num_stages,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "maxnreg": config.max_registers,
    }


def _padded(features: int) -> int:
    return max(16, triton.next_power_of_2(features))  # a matrix instruction takes 16 features at a time


def _readable(tensor: Tensor) -> Tensor:
    """`tensor` where the kernels can read it in place, 16 bytes at a time and by 32-bit row offsets, else a copy."""
    batch, row, head, feature = tensor.stride()
    aligned = feature == 1 and batch % 8 == row % 8 == head % 8 == 0 and tensor.data_ptr() % 16 == 0
    # 256: the last block's rows past the end are masked, but their offsets are computed.
    if aligned and row * (tensor.shape[1] + 256) < 2**31:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _packed(tensor: Tensor) -> Tensor:
    """`tensor` where it lies as `forward` returned it, else a copy: a hook may have re-packed it."""
    if tensor.is_contiguous() and tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of batch, row and head in units of 8 elements (blocks.py says why)."""
    return tensor.stride(0) // 8, tensor.stride(1) // 8, tensor.stride(2) // 8
