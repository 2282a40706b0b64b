"""The ops and their autograd, on the CPU, where the reference implements them: what PyTorch promises about an op."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from deit_kernels.short_attention.op import _Attention
from deit_kernels.short_attention.reference import attention_backward_reference, attention_reference

FORWARD = torch.ops.deit_kernels.attention_forward.default
BACKWARD = torch.ops.deit_kernels.attention_backward.default


def random(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=grad)


def test_the_reference_is_sdpa_in_float64() -> None:
    query, key, value = (random(2, 3, 7, 8) for _ in range(3))
    for scale in (None, 0.3):
        expected = scaled_dot_product_attention(query, key, value, scale=scale)
        torch.testing.assert_close(attention_reference(query, key, value, scale=scale), expected)


def test_the_written_out_gradients_are_autograds() -> None:
    query, key, value, grad = (random(2, 3, 7, 8) for _ in range(4))
    expected = torch.autograd.grad(attention_reference(query, key, value, scale=0.3), (query, key, value), grad)
    for seen, exact in zip(attention_backward_reference(grad, query, key, value, scale=0.3), expected, strict=True):
        torch.testing.assert_close(seen, exact)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    query, key, value = random(2, 5, 3, 4, 8, dtype=dtype, grad=False).unbind(2)
    grad = random(2, 5, 4, 8, dtype=dtype, grad=False)
    torch.library.opcheck(FORWARD, (query, key, value, 0.3))
    out, lse = FORWARD(query, key, value, 0.3)
    torch.library.opcheck(BACKWARD, (grad, query, key, value, out, lse, 0.3))


def test_gradcheck_and_gradgradcheck_of_the_packed_form() -> None:
    qkv = random(2, 3, 3, 2, 4)
    assert torch.autograd.gradcheck(lambda x: _Attention.apply(x, 0.3)[0], qkv)
    assert torch.autograd.gradgradcheck(lambda x: _Attention.apply(x, 0.3)[0], qkv)


def test_gradcheck_and_gradgradcheck_of_the_separate_form() -> None:
    inputs = tuple(random(2, 2, 3, 4) for _ in range(3))
    assert torch.autograd.gradcheck(lambda q, k, v: _Attention.apply(q, k, v, 0.3)[0], inputs)
    assert torch.autograd.gradgradcheck(lambda q, k, v: _Attention.apply(q, k, v, 0.3)[0], inputs)


def test_a_gradient_penalty_has_the_gradient_of_plain_pytorch() -> None:
    """Double backward as a user writes it; an op without it would give a wrong number and at most a warning."""
    seen, expected = random(1, 5, 3, 2, 4), None
    for attend in (
        lambda x: _Attention.apply(x, 0.5)[0],
        lambda x: attention_reference(*x.permute(2, 0, 3, 1, 4), scale=0.5).transpose(1, 2),
    ):
        leaf = seen.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(attend(leaf).square().sum(), leaf, create_graph=True)
        grad.square().sum().backward()
        if expected is None:
            expected = leaf.grad
    torch.testing.assert_close(leaf.grad, expected)


def test_torch_func_grad() -> None:
    qkv = random(1, 5, 3, 2, 4, grad=False)
    seen = torch.func.grad(lambda x: _Attention.apply(x, 0.5)[0].square().sum())(qkv)
    leaf = qkv.clone().requires_grad_()
    attention_reference(*leaf.permute(2, 0, 3, 1, 4), scale=0.5).square().sum().backward()
    torch.testing.assert_close(seen, leaf.grad)


def test_inputs_without_gradient_get_none() -> None:
    query, key, value = random(1, 5, 2, 4), random(1, 5, 2, 4, grad=False), random(1, 5, 2, 4, grad=False)
    _Attention.apply(query, key, value, 0.5)[0].sum().backward()
    assert query.grad is not None and key.grad is None and value.grad is None


def test_the_fakes_have_the_strides_of_the_results() -> None:
    query, key, value = random(2, 5, 3, 4, 8, dtype=torch.float16, grad=False).unbind(2)
    grad = random(2, 5, 4, 8, dtype=torch.float16, grad=False)
    real = (*FORWARD(query, key, value, 0.3), BACKWARD(grad, query, key, value, *FORWARD(query, key, value, 0.3), 0.3))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        out, lse = FORWARD(query, key, value, 0.3)
        fake = (out, lse, BACKWARD(grad, query, key, value, out, lse, 0.3))
    for seen, expected in zip(fake, real, strict=True):
        assert (seen.shape, seen.stride(), seen.dtype) == (expected.shape, expected.stride(), expected.dtype)
