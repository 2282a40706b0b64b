"""How attention is judged: its error against float64 is at most twice that of plain PyTorch in the same precision.

In float16 and bfloat16 the largest error counts. In float32, which only the interpreter runs, the root mean square
does: there one row with a peaked softmax decides the largest error, 3 times that of plain PyTorch in 4 cases of 915,
where the root mean square is 1.3 times.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from deit_kernels.short_attention.reference import attention_reference


@dataclass(frozen=True)
class Case:
    """Inputs, their float64 result and gradients, and the errors of plain PyTorch in the inputs' dtype."""

    qkv: Tensor  # (B, N, 3, H, D)
    grad: Tensor  # (B, N, H, D)
    scale: float | None
    out: Tensor
    grad_qkv: Tensor
    plain_out_error: float
    plain_grad_errors: tuple[float, float, float]


def plain_attention(qkv: Tensor, scale: float | None) -> Tensor:
    """Attention as timm writes it, every intermediate in the inputs' dtype. (B, N, 3, H, D) -> (B, N, H, D)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    probs = ((query * scale) @ key.transpose(-2, -1)).softmax(-1)
    return (probs @ value).transpose(1, 2)


def make_case(qkv: Tensor, grad: Tensor, scale: float | None = None) -> Case:
    exact = qkv.double().requires_grad_()
    out = attention_reference(*exact.permute(2, 0, 3, 1, 4), scale=scale).transpose(1, 2)
    out.backward(grad.double())
    plain = qkv.clone().requires_grad_()
    plain_out = plain_attention(plain, scale)
    plain_out.backward(grad)
    errors = tuple(error_of(plain.grad[:, :, i], exact.grad[:, :, i]) for i in range(3))
    return Case(qkv, grad, scale, out.detach(), exact.grad, error_of(plain_out, out), errors)


@functools.cache
def random_case(batch: int, length: int, heads: int, features: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(length * 1000 + features)
    qkv = torch.randn(batch, length, 3, heads, features, generator=generator).to(dtype)
    grad = torch.randn(batch, length, heads, features, generator=generator).to(dtype)
    return make_case(qkv, grad)


def case_of_large_logits(length: int, sign: int, dtype: torch.dtype) -> Case:
    """All logits near 1e4 · sign, so that 2**-lse under- or overflows and rows past the end would show."""
    case = random_case(1, length, 1, 64, dtype)
    qkv = case.qkv.clone()
    qkv[:, :, 0] = 35.0 + 0.01 * qkv[:, :, 0]
    qkv[:, :, 1] = sign * 35.0 + 0.01 * qkv[:, :, 1]
    return make_case(qkv, case.grad)


def largest_error(seen: Tensor, exact: Tensor) -> float:
    return (seen.double() - exact.to(seen.device)).abs().max().item()


def error_of(seen: Tensor, exact: Tensor) -> float:
    """The error that counts for the dtype of `seen`."""
    if seen.dtype == torch.float32:
        return (seen.double() - exact).square().mean().sqrt().item()
    return largest_error(seen, exact)


def assert_accurate(case: Case, out: Tensor, grads: tuple[Tensor, Tensor, Tensor]) -> None:
    """The rule, for the output (B, N, H, D) and for the three gradients (B, N, H, D)."""
    _assert_within("output", out, case.out, case.plain_out_error)
    for i, name in enumerate(("query", "key", "value")):
        _assert_within(f"gradient of {name}", grads[i], case.grad_qkv[:, :, i], case.plain_grad_errors[i])


def _assert_within(what: str, seen: Tensor, exact: Tensor, plain_error: float) -> None:
    assert seen.shape == exact.shape, f"{what}: shape {tuple(seen.shape)}, expected {tuple(exact.shape)}"
    assert seen.isfinite().all(), f"{what}: {(~seen.isfinite()).sum()} values are not finite"
    # One rounding of the largest value: plain PyTorch can be exact by luck, as at N = 1, where softmax is 1.
    allowed = 2 * plain_error + torch.finfo(seen.dtype).eps * exact.abs().max().item()
    error = error_of(seen, exact)
    assert error <= allowed, f"{what}: error {error:.3g} against float64, allowed {allowed:.3g}"
