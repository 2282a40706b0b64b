"""The public attention functions, the ops behind them, and the choice between our kernels and PyTorch's SDPA.

Two ops carry the kernels, `deit_kernels::attention_forward` and `attention_backward`, of (B, N, H, D) tensors of any
strides. Autograd stands outside of them in two `autograd.Function`s, so that the packed form returns one packed
gradient. On the CPU the ops are the reference, so that tests and tracing need no card; the public functions run SDPA on
CPU tensors, unless TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..dispatch import INTERPRETING, ON_CPU, kernel_unavailable_reasons, report_fallback
from ..systems import folded, register_flops, register_splits
from .configuration import LONGEST, WIDEST, card_of, ranges_ahead
from .reference import backward_reference, forward_reference

SETTING = os.environ.get("DEIT_KERNELS_ATTENTION", "kernels" if INTERPRETING else "auto")
"""Which attention runs: "kernels" wherever they can, "sdpa" everywhere, "auto" the one that is expected ahead."""
if SETTING not in ("auto", "kernels", "sdpa"):
    raise ValueError(f"DEIT_KERNELS_ATTENTION is {SETTING!r}: type auto, kernels or sdpa")

# The interpreter's bf16 sums are silently wrong, and its float32 dot is exact where a card's would be TF32.
_DTYPES = (torch.float16, torch.float32) if INTERPRETING else (torch.float16, torch.bfloat16)

torch.library.define(
    "deit_kernels::attention_forward", "(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor, Tensor)"
)
torch.library.define(
    "deit_kernels::attention_backward",
    "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, float scale) -> Tensor",
)


def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    if _runs_reference(query):
        return forward_reference(query, key, value, scale)
    from .launch import forward  # imports triton

    return forward(query, key, value, scale)


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> Tensor:
    if _runs_reference(query):
        return backward_reference(grad, query, key, value, out, lse, scale)
    from .launch import backward

    return backward(grad, query, key, value, out, lse, scale)[0]


def _runs_reference(query: Tensor) -> bool:
    return query.is_cpu and not (INTERPRETING and query.dtype in _DTYPES)


for _device in ("CPU", "CUDA"):
    torch.library.impl("deit_kernels::attention_forward", _device, _forward)
    torch.library.impl("deit_kernels::attention_backward", _device, _backward)


@torch.library.register_fake("deit_kernels::attention_forward")
def _fake_forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, length, heads, features = query.shape
    lse = query.new_empty(batch, heads, length, dtype=torch.float32)
    return query.new_empty(batch, length, heads, features), lse


@torch.library.register_fake("deit_kernels::attention_backward")
def _fake_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> Tensor:
    batch, length, heads, features = query.shape
    return query.new_empty(batch, length, 3, heads, features)


_forward_op = torch.ops.deit_kernels.attention_forward.default
_backward_op = torch.ops.deit_kernels.attention_backward.default


def _flops(products: int) -> Callable[..., int]:
    """The FLOPs of `products` matrix products of N x N x D for each head, multiplications and additions."""

    def formula(*shapes: Any, out_shape: Any = None) -> int:
        batch, length, heads, features = shapes[0]
        return 2 * products * batch * heads * length * length * features

    return formula


register_flops(torch.ops.deit_kernels.attention_forward, _flops(2))
register_flops(torch.ops.deit_kernels.attention_backward, _flops(5))
# By the batch, and by the heads.
register_splits(_forward_op, [([0, 0], [0, 0, 0, None]), ([2, 1], [2, 2, 2, None])])
register_splits(_backward_op, [([0], [0, 0, 0, 0, 0, 0, None]), ([3], [2, 2, 2, 2, 2, 1, None])])


def _vmapped(function: type[Function], info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """A `vmap` of one of the functions below: the mapped dimension becomes a part of the batch, and one again."""
    results = function.apply(*folded(info, in_dims, args))
    if isinstance(results, Tensor):
        return results.unflatten(0, (info.batch_size, -1)), 0
    return tuple(result.unflatten(0, (info.batch_size, -1)) for result in results), (0,) * len(results)


class _Attention(Function):
    """The forward op, of a packed qkv or of query, key and value, and the scale. The gradient is packed as they are."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        *operands, scale = args
        return _forward_op(*_unpacked(operands), scale)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *operands, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # else a zero gradient of the log-sum-exp is filled in every backward
        ctx.save_for_backward(*operands, *output)

    @staticmethod
    def backward(ctx, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        *operands, out, lse = ctx.saved_tensors
        if grad is None:
            return (None,) * (len(operands) + 1)
        run = _Gradient.apply if torch.is_grad_enabled() else _backward_op  # somebody differentiates the gradient
        grads = run(grad, *_unpacked(operands), out, lse, ctx.scale)
        return *((grads,) if len(operands) == 1 else grads.unbind(2)), None

    @staticmethod
    def vmap(info, in_dims, *args):
        return _vmapped(_Attention, info, in_dims, *args)


def _unpacked(operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return operands[0].unbind(2) if len(operands) == 1 else operands


class _Gradient(Function):
    """The backward op. Its own derivative is computed by the reference."""

    @staticmethod
    def forward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> Tensor:
        return _backward_op(grad, query, key, value, out, lse, scale)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, _, _, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        def gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return backward_reference(grad, query, key, value, None, None, ctx.scale)

        with torch.autocast(grad.device.type, enabled=False):
            return *torch.func.vjp(gradients, *ctx.saved_tensors)[1](grad), None, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        return _vmapped(_Gradient, info, in_dims, *args)


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
    """`F.scaled_dot_product_attention`, its signature and meaning, and its result where our kernels do not run.

    Args:
        query: (B, H, N, D). key, value: (B, H, M, D) and (B, H, M, E); fewer heads with enable_gqa. Strides that are
            multiples of 8 with a unit last one are read in place, others are copied.
        attn_mask, dropout_p, is_causal, enable_gqa: as in SDPA, which runs when one is used.
        scale: factor on the logits; None is D ** -0.5.

    Returns:
        (B, H, N, E). From our kernels it is a view of (B, N, H, E) memory, so that `.transpose(1, 2).flatten(2)`
        copies nothing; from SDPA it has SDPA's strides.

    Raises:
        ValueError: a rank other than 4, shapes, dtypes or devices that do not match, or a scale that is not finite.
    """
    shape = query.shape
    plain = attn_mask is None and scale is None and not (dropout_p or is_causal or enable_gqa)
    alike = len(shape) == 4 and shape == key.shape == value.shape and shape[3] > 0
    if plain and alike and query.is_cpu and not INTERPRETING and forward_ad._current_level < 0:
        report_fallback("deit_kernels.attention", ON_CPU, True)
        try:  # a small call is half checks: the dtypes and devices are left to SDPA
            return F.scaled_dot_product_attention(query, key, value)
        except RuntimeError:
            pass  # the checks below name what does not fit
    _check_operands(query, key, value, enable_gqa)
    _check_features(query)
    _check_scale(scale)
    # On a CPU the first list names the reason; the second costs a third of a small call.
    reasons = kernel_unavailable_reasons(query.device) or attention_unsupported_reasons(
        query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale
    )
    if reasons:
        report_fallback("deit_kernels.attention", reasons[0], query.is_cpu)
        return _sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    tokens_first = (_autocast(tensor).transpose(1, 2) for tensor in (query, key, value))
    return _Attention.apply(*tokens_first, query.shape[-1] ** -0.5 if scale is None else float(scale))[0].transpose(
        1, 2
    )


def attention_qkvpacked(qkv: Tensor, *, scale: float | None = None) -> Tensor:
    """Self-attention on the output of a fused qkv projection, in place; the gradient is packed too.

    Args:
        qkv: (B, N, 3, H, D), the order of timm's and the official DeiT's `attn.qkv`.
        scale: factor on the logits; None is D ** -0.5.

    Returns:
        (B, N, H, D), contiguous: `.flatten(2)` is the input of the output projection.

    Raises:
        TypeError: qkv is not a tensor.
        ValueError: qkv is not of rank 5 with 3 in dimension 2, or not floating-point, or scale is not finite.
    """
    if not isinstance(qkv, Tensor):
        raise TypeError(f"attention_qkvpacked takes a tensor, got {type(qkv).__name__}")
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f"attention_qkvpacked takes qkv of shape (B, N, 3, H, D), got {tuple(qkv.shape)}")
    _check_features(qkv)
    _check_scale(scale)
    reasons = kernel_unavailable_reasons(qkv.device) or attention_unsupported_reasons(qkv, scale=scale)
    if reasons:
        report_fallback("deit_kernels.attention_qkvpacked", reasons[0], qkv.is_cpu)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return _sdpa(query, key, value, scale=scale).transpose(1, 2).contiguous()
    return _Attention.apply(_autocast(qkv), qkv.shape[-1] ** -0.5 if scale is None else float(scale))[0]


def attention_unsupported_reasons(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> list[str]:
    """Why `F.scaled_dot_product_attention` runs instead of our kernel; empty when ours runs.

    Args:
        query, key, value: (B, H, N, D); with key None, query is packed, (B, N, 3, H, D).
        attn_mask, dropout_p, is_causal, scale: the arguments of the call.

    Raises:
        ValueError: key without value or value without key, or a query of another rank than its form has.
    """
    if (key is None) != (value is None):
        raise ValueError("key and value go together: give both, or neither for a packed (B, N, 3, H, D) query")
    if query.dim() != (5 if key is None else 4):
        form = "packed (B, N, 3, H, D) when key is None" if key is None else "(B, H, N, D)"
        raise ValueError(f"query is {form}, got shape {tuple(query.shape)}")
    reasons = list(kernel_unavailable_reasons(query.device))
    dtype = _autocast_dtype(query)
    length, features = (query.shape[1], query.shape[4]) if key is None else query.shape[2:]
    if dtype not in _DTYPES:
        reasons.append(f"dtype {dtype}: the kernels take {_DTYPES[0]} and {_DTYPES[1]}")
    if length > LONGEST:
        reasons.append(f"more than {LONGEST} tokens")
    if features > WIDEST or features % 8 != 0:
        reasons.append(f"a head dim that is not a multiple of 8 up to {WIDEST}")
    if key is not None and value is not None and not query.shape == key.shape == value.shape:
        reasons.append("query, key and value of different shapes (cross-attention, grouped queries)")
    if query.numel() == 0:
        reasons.append("an empty tensor")
    if attn_mask is not None:
        reasons.append("attn_mask")
    if dropout_p != 0.0:
        reasons.append("dropout_p")
    if is_causal:
        reasons.append("is_causal")
    if scale is not None and not scale > 0:
        reasons.append("a scale that is not positive")
    if forward_ad._current_level >= 0:
        reasons.append("a forward-mode derivative (jvp), which SDPA's math backend has")
    if SETTING == "sdpa":
        reasons.append("DEIT_KERNELS_ATTENTION=sdpa")
    elif SETTING == "auto" and not reasons and not _is_ahead(query.device, length, features):
        reasons.append(
            "a head dim or a number of tokens at which SDPA is expected to be faster; to run our kernels all the same, "
            "set DEIT_KERNELS_ATTENTION=kernels"
        )
    return reasons


def _is_ahead(device: torch.device, length: int, features: int) -> bool:
    for row in ranges_ahead(card_of(device)[0]):
        if row.features == features and row.min_length <= length <= row.max_length:
            return row.ahead
    return False


def _sdpa(*operands: Any, **options: Any) -> Tensor:
    """PyTorch's attention; in forward mode by its math backend, the only one with that derivative."""
    if forward_ad._current_level < 0:
        return F.scaled_dot_product_attention(*operands, **options)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*operands, **options)


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype to which autocast would convert `tensor` for SDPA."""
    device = tensor.device.type
    if device == "meta" or not tensor.is_floating_point() or tensor.dtype == torch.float64:  # no autocast for these
        return tensor.dtype
    if not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)


def _autocast(tensor: Tensor) -> Tensor:
    return tensor.to(_autocast_dtype(tensor))


def _check_scale(scale: float | None) -> None:
    if scale is None:
        return
    # A tensor is refused: comparing one that lives on a GPU would wait for the device.
    if not isinstance(scale, (int, float, torch.SymInt, torch.SymFloat)):
        raise ValueError(f"scale is a finite Python number, got {type(scale).__name__}")
    if not -math.inf < scale < math.inf:  # math.isfinite breaks the graph of a symbolic scale
        raise ValueError(f"scale is a finite number, got {scale}")


def _check_features(tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"attention takes floating-point tensors, got {tensor.dtype}")
    if tensor.shape[-1] == 0:
        raise ValueError(f"attention takes a head dim of at least 1, got shape {tuple(tensor.shape)}")


def _check_operands(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    if query.dim() != 4 or not query.shape == key.shape == value.shape:
        _check_shapes(query, key, value, enable_gqa)
    if not query.device == key.device == value.device:
        seen = f"{query.device}, {key.device}, {value.device}"
        raise ValueError(f"attention takes query, key and value on one device, got {seen}")
    if query.dtype == key.dtype == value.dtype:
        return
    if not _autocast_dtype(query) == _autocast_dtype(key) == _autocast_dtype(value):
        seen = f"{query.dtype}, {key.dtype}, {value.dtype}"
        raise ValueError(f"attention takes query, key and value of one dtype, got {seen}")


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    # The messages are made where they are raised: Dynamo does not trace text made of dynamic shapes.
    if not query.dim() == key.dim() == value.dim() == 4:
        raise ValueError(f"attention takes query, key and value of shape (B, H, N, D), got {_seen(query, key, value)}")
    batch, heads, _, features = query.shape
    shared = heads % max(key.shape[1], 1) == 0 if enable_gqa else key.shape[1] == heads
    if key.shape[0] != batch or key.shape[3] != features or key.shape[:3] != value.shape[:3] or not shared:
        expected = f"key ({batch}, {heads}, M, {features}) and value ({batch}, {heads}, M, E)"
        raise ValueError(f"attention takes {expected} with this query, got {_seen(query, key, value)}")


def _seen(query: Tensor, key: Tensor, value: Tensor) -> str:
    return f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
