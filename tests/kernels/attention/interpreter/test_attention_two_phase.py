"""The backward in two phases, in blocks of many sizes, against float64."""

import pytest
import torch
from torch import Tensor

from deit_kernels.short_attention import launch
from deit_kernels.short_attention.configuration import Config
from tests.kernels.attention.accuracy import Case, assert_accurate, case_of_large_logits, make_case, random_case

CONFIG = Config("two_phase", 128, 32, 4, 3)  # an A100's at 198 tokens
BLOCKS = (CONFIG, Config("two_phase", 64, 64, 4, 2), Config("two_phase", 16, 128, 8, 1))
LENGTHS = (2, 16, 17, 63, 65, 80, 127, 128, 129, 145, 193, 197, 198, 209, 225, 255, 256, 257)
DTYPES = (torch.float32, torch.float16)


def run(
    case: Case, config: Config = CONFIG, inputs: tuple[Tensor, ...] | None = None, grad: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, packed gradients and delta; what the launch allocates is NaN at first."""
    inputs = case.qkv.unbind(2) if inputs is None else inputs
    grad = case.grad if grad is None else grad
    scale = case.qkv.shape[-1] ** -0.5 if case.scale is None else case.scale
    out, lse = launch.forward(*inputs, scale=scale)
    grads, delta = launch.backward(grad, *inputs, out, lse, scale, config=config)
    return out, grads, delta


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: empty_like(*args, **kwargs).fill_(torch.nan))


@pytest.mark.parametrize(
    ("length", "dtype"),
    [
        pytest.param(length, dtype, marks=() if number % 2 == at else pytest.mark.slow)
        for number, length in enumerate(LENGTHS)
        for at, dtype in enumerate(DTYPES)
    ],
    ids=str,
)
def test_every_length_is_within_twice_the_error_of_plain_pytorch(length: int, dtype: torch.dtype) -> None:
    case = random_case(1, length, 2, 64, dtype)
    out, grads, delta = run(case)
    assert_accurate(case, out, grads.unbind(2))
    exact = (case.grad.double() * case.out).sum(-1).transpose(1, 2)
    torch.testing.assert_close(delta, exact.float(), rtol=0, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("config", BLOCKS, ids=lambda config: f"{config.block_m}-{config.block_n}")
@pytest.mark.parametrize("features", (8, 32, 64, 80))
def test_every_head_dim_in_every_block(features: int, config: Config) -> None:
    length = (65, 198)[(BLOCKS.index(config) + (8, 32, 64, 80).index(features)) % 2]
    case = random_case(2, length, 1, features, torch.float16)
    out, grads, _ = run(case, config)
    assert_accurate(case, out, grads.unbind(2))


def test_one_token_has_the_gradient_zero_but_for_the_rounding_of_delta() -> None:
    """Why the table gives short sequences to the resident form, where the gradient of a row's only logit is 0."""
    case = random_case(1, 1, 2, 64, torch.float32)
    _, grads, _ = run(case)
    torch.testing.assert_close(grads[:, :, 2], case.grad, rtol=1e-5, atol=0)  # one key takes its value's whole gradient
    rounding = 64 * torch.finfo(torch.float32).eps * case.grad.abs().max() * case.qkv.abs().max() ** 2
    assert grads[:, :, :2].abs().max() <= rounding


@pytest.mark.parametrize("sign", (1, -1))
@pytest.mark.parametrize("length", (65, 198, 250))
def test_logits_of_ten_thousand(length: int, sign: int) -> None:
    case = case_of_large_logits(length, sign, torch.float16)
    out, grads, _ = run(case)
    assert_accurate(case, out, grads.unbind(2))


@pytest.mark.parametrize("length", (193, 197, 198, 208))
def test_a_log_sum_exp_so_low_that_keys_past_the_end_would_overflow(length: int) -> None:
    """Logits near -180 · ln 2: 2**(0 - lse) is infinite, for keys that are not there and whose rows are zeros."""
    random = random_case(1, length, 1, 64, torch.float16)
    qkv = random.qkv.clone()
    qkv[:, :, 0] = 4.0 + 0.01 * qkv[:, :, 0]
    qkv[:, :, 1] = -4.0 + 0.01 * qkv[:, :, 1]
    case = make_case(qkv, random.grad)
    _, lse = launch.forward(*qkv.unbind(2), scale=0.125)
    assert lse.max() < -128
    out, grads, _ = run(case)
    assert_accurate(case, out, grads.unbind(2))


@pytest.mark.parametrize("length", (65, 198))
def test_nothing_past_the_last_row_is_read_or_written(length: int) -> None:
    """The tensors are windows of a NaN-filled buffer, with the strides of a part of its heads and features."""
    case = random_case(1, length, 2, 72, torch.float16)
    buffer = torch.full((3, length + 300, 3, 4, 128), torch.nan, dtype=torch.float16)
    window = buffer[1:2, 8 : 8 + length, :, 1:3, 16 : 16 + 72]
    window.copy_(case.qkv)
    grad_buffer = torch.full((1, length + 300, 4, 128), torch.nan, dtype=torch.float16)
    grad = grad_buffer[:, 8 : 8 + length, 1:3, 16 : 16 + 72].copy_(case.grad)
    out, grads, _ = run(case, inputs=window.unbind(2), grad=grad)
    assert_accurate(case, out, grads.unbind(2))
    assert torch.isnan(buffer).sum() == buffer.numel() - window.numel(), "the buffer was written to"
    assert torch.isnan(grad_buffer).sum() == grad_buffer.numel() - grad.numel(), "the gradient was written to"


def test_an_expanded_gradient_is_read_in_place() -> None:
    random = random_case(1, 198, 2, 64, torch.float16)
    grad = random.grad[:, :1].expand_as(random.grad)
    case = make_case(random.qkv, grad)
    out, grads, _ = run(case, grad=grad)
    assert_accurate(case, out, grads.unbind(2))


def test_the_same_bits_every_time() -> None:
    case = random_case(2, 198, 2, 64, torch.float16)
    first, second = run(case), run(case)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
