"""The Triton kernels, through the public functions, against float64: every form, every layout, every tail."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deit_kernels import attention, attention_qkvpacked, attention_unsupported_reasons
from deit_kernels.short_attention import launch
from deit_kernels.short_attention.configuration import Config
from tests.kernels.attention.accuracy import Case, assert_accurate, case_of_large_logits, make_case, random_case

LENGTHS = (1, 3, 16, 17, 63, 64, 65, 127, 129, 196, 197, 198, 199, 208, 209, 256, 257, 577, 578)
FEATURES = (32, 64, 72, 80, 96, 128)
DTYPES = (torch.float32, torch.float16)
# Batch and heads of a case: each stride of the layouts is exercised at one length at least.
SHAPES = {17: (2, 3), 198: (1, 2), 257: (2, 1)}


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory is NaN, so that an output that no program stores fails the test."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: empty_like(*args, **kwargs).fill_(torch.nan))


def run_packed(case: Case, grad: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
    qkv = case.qkv.clone().requires_grad_()
    assert attention_unsupported_reasons(qkv) == []
    out = attention_qkvpacked(qkv, scale=case.scale)
    out.backward(case.grad if grad is None else grad)
    assert torch.equal(qkv, case.qkv), "the input was written to"
    assert out.is_contiguous() and qkv.grad.is_contiguous()
    return out.detach(), qkv.grad.unbind(2)


def run_separate(case: Case, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    assert attention_unsupported_reasons(*leaves) == []
    out = attention(*leaves, scale=case.scale)
    out.backward(case.grad.transpose(1, 2))
    assert out.transpose(1, 2).is_contiguous()
    return out.detach().transpose(1, 2), tuple(leaf.grad.transpose(1, 2) for leaf in leaves)


@pytest.mark.parametrize("length", LENGTHS)
def test_packed_at_every_length(length: int) -> None:
    heads = 2 if length < 100 else 1
    case = random_case(1, length, heads, 64, torch.float16)
    assert_accurate(case, *run_packed(case))


def check_layout(layout: str, length: int, features: int, dtype: torch.dtype) -> None:
    batch, heads = SHAPES.get(length, (1, 1))
    case = random_case(batch, length, heads, features, dtype)
    if layout == "packed":
        assert_accurate(case, *run_packed(case))
    elif layout == "separate":
        assert_accurate(case, *run_separate(case, *(t.contiguous() for t in case.qkv.permute(2, 0, 3, 1, 4))))
    elif layout == "transposed":
        tokens_first = (t.contiguous().transpose(1, 2) for t in case.qkv.unbind(2))
        assert_accurate(case, *run_separate(case, *tokens_first))
    else:
        grad = case.grad[:, :1].expand_as(case.grad)  # one row for every token, stride 0
        case = make_case(case.qkv, grad)
        assert_accurate(case, *run_packed(case, grad))


LAYOUTS = ("packed", "separate", "transposed", "expanded gradient")


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("length", SHAPES)
def test_every_pair_of_length_layout_head_dim_and_type(length: int, features: int) -> None:
    """Two layouts of each, in float32 and float16; at the next length or head dim the other two, or the other types."""
    place = list(SHAPES).index(length) + FEATURES.index(features)
    for at, dtype in enumerate(DTYPES):
        check_layout(LAYOUTS[(place + 2 * at + place // 4) % 4], length, features, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("length", LENGTHS)
def test_the_full_product(length: int, features: int, layout: str, dtype: torch.dtype) -> None:
    check_layout(layout, length, features, dtype)


@pytest.mark.parametrize("length", (122, 123, 258))
def test_the_heads_of_deit3s_huge_model(length: int) -> None:
    """Heads of 80 features, for 11 x 11 or 16 x 16 patches and one or two tokens; 257 is among the lengths above."""
    case = random_case(1, length, 2, 80, torch.float16)
    assert_accurate(case, *run_packed(case))


@pytest.mark.slow
@pytest.mark.parametrize("length", (600, 1024, 1040))
def test_the_longest_sequences(length: int) -> None:
    case = random_case(1, length, 1, 64, torch.float16)
    assert_accurate(case, *run_packed(case))


@pytest.mark.parametrize("features", (8, 24, 40, 120))
def test_head_dims_that_no_block_fits(features: int) -> None:
    case = random_case(1, 17, 2, features, torch.float16)
    assert_accurate(case, *run_packed(case))


@pytest.mark.parametrize("length", (17, 198))
def test_scale_is_the_callers(length: int) -> None:
    random = random_case(1, length, 2, 64, torch.float32)
    case = make_case(random.qkv, random.grad, scale=0.3)
    assert_accurate(case, *run_packed(case))


@pytest.mark.parametrize("length", (17, 198, 257))
def test_nothing_past_the_last_row_is_read(length: int) -> None:
    """The tensors are windows of a NaN-filled buffer, in every dimension that a kernel could run out of."""
    case = random_case(1, length, 2, 72, torch.float16)
    buffer = torch.full((3, length + 300, 3, 4, 128), torch.nan, dtype=torch.float16)
    window = buffer[1:2, 8 : 8 + length, :, 1:3, 16 : 16 + 72]
    window.copy_(case.qkv)
    grad_buffer = torch.full((1, length + 300, 4, 128), torch.nan, dtype=torch.float16)
    grad = grad_buffer[:, 8 : 8 + length, 1:3, 16 : 16 + 72].copy_(case.grad)
    out, lse = launch.forward(*window.unbind(2), scale=72**-0.5)
    grads, _ = launch.backward(grad, *window.unbind(2), out, lse, 72**-0.5)
    assert_accurate(case, out, grads.unbind(2))
    assert torch.isnan(buffer).sum() == buffer.numel() - window.numel(), "the buffer was written to"


@pytest.mark.parametrize("offset", (1, 4))
def test_addresses_that_are_not_aligned_are_copied(offset: int) -> None:
    case = random_case(1, 17, 2, 64, torch.float16)
    storage = torch.zeros(case.qkv.numel() + 8, dtype=torch.float16)
    qkv = storage[offset : offset + case.qkv.numel()].view(case.qkv.shape).copy_(case.qkv)
    assert_accurate(case, *run_packed(make_case(qkv, case.grad)))


def test_a_last_stride_that_is_not_one_is_copied() -> None:
    case = random_case(1, 17, 2, 64, torch.float16)
    features_first = case.qkv.transpose(-1, -2).contiguous().transpose(-1, -2)
    query, key, value = features_first.permute(2, 0, 3, 1, 4)
    assert query.stride(-1) != 1
    assert_accurate(case, *run_separate(case, query, key, value))


def test_a_gradient_of_one_number_expanded_to_all() -> None:
    random = random_case(1, 198, 1, 64, torch.float16)
    grad = torch.ones((), dtype=torch.float16).expand_as(random.grad)
    case = make_case(random.qkv, grad)
    assert_accurate(case, *run_packed(case, grad))


@pytest.mark.parametrize("length", (17, 198, 300))
@pytest.mark.parametrize("sign", (1, -1))
def test_logits_of_ten_thousand(length: int, sign: int) -> None:
    case = case_of_large_logits(length, sign, torch.float16)
    assert_accurate(case, *run_packed(case))


@pytest.mark.parametrize("length", (17, 198, 300))
@pytest.mark.parametrize("sign", (1, -1))
def test_logits_of_ten_thousand_in_float32(length: int, sign: int) -> None:
    """float32, which only the interpreter runs: near 1.4e4 the lse is rounded by up to 2**-11, and P of its row too.

    So dS = P ∘ (dP - delta) no longer sums to zero over a row but to that rounding times delta, and the gradient of the
    queries, which multiplies it by keys of 35, is held to this instead of to twice the error of plain PyTorch.
    """
    case = case_of_large_logits(length, sign, torch.float32)
    out, grads = run_packed(case)
    delta = (case.grad * case.out).sum(-1).abs().max().item()
    bound = 2**-11 * math.log(2) * delta * 35 * 64**-0.5
    assert_accurate(replace(case, plain_grad_errors=(bound, *case.plain_grad_errors[1:])), out, grads)


@pytest.mark.parametrize("length", (17, 198, 300))
def test_rows_of_equal_logits_average_the_values(length: int) -> None:
    case = random_case(1, length, 1, 64, torch.float32)
    qkv = case.qkv.clone()
    qkv[:, :, 0] = 0.0
    case = make_case(qkv, case.grad)
    out, grads = run_packed(case)
    assert_accurate(case, out, grads)
    torch.testing.assert_close(out[0, :, 0], qkv[0, :, 2, 0].mean(0).expand(length, -1), rtol=0, atol=1e-6)


def test_a_nan_stays_in_its_head() -> None:
    qkv = random_case(2, 17, 3, 64, torch.float32).qkv.clone()
    qkv[0, 5, 0, 1, 3] = torch.nan
    out = attention_qkvpacked(qkv)
    broken = out.isnan()
    assert broken[0, 5, 1].all() and broken.sum() == 64


FORMS = [
    Config("resident", 64, 0, 4, 2),
    Config("resident", 128, 0, 8, 1),
    Config("resident", 16, 0, 4, 1),
    Config("tiled", 64, 32, 4, 2),
    Config("tiled", 128, 32, 4, 3),
    Config("tiled", 128, 64, 8, 2),
]


@pytest.mark.parametrize("split", (1, 2, 3, 5))
@pytest.mark.parametrize("length", (65, 198))
def test_queries_split_over_programs(length: int, split: int) -> None:
    case = random_case(2, length, 1, 64, torch.float16)
    whole, whole_lse = launch.forward(*case.qkv.unbind(2), scale=0.125, split=1)
    out, lse = launch.forward(*case.qkv.unbind(2), scale=0.125, split=split)
    assert torch.equal(out, whole) and torch.equal(lse, whole_lse)


@pytest.mark.parametrize("config", FORMS, ids=lambda config: f"{config.form}-{config.block_m}-{config.block_n}")
@pytest.mark.parametrize("length", (17, 129, 198))
def test_every_form_computes_the_same(length: int, config: Config) -> None:
    """Forms that the table of the H100 gives to other lengths, head dims or batch sizes."""
    case = random_case(1, length, 1, 64, torch.float16)
    inputs = case.qkv.unbind(2)
    out, lse = launch.forward(*inputs, scale=0.125, config=config)
    grads, _ = launch.backward(case.grad, *inputs, out, lse, 0.125, config=config)
    assert_accurate(case, out, grads.unbind(2))


def test_the_same_bits_every_time() -> None:
    case = random_case(1, 198, 2, 64, torch.float16)
    first, second = run_packed(case), run_packed(case)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
