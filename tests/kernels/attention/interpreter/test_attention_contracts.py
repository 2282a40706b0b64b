"""The attention ops with the Triton kernels behind them: opcheck, compile, autocast, double backward."""

from collections.abc import Callable

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from deit_kernels import attention, attention_qkvpacked, attention_unsupported_reasons
from deit_kernels.short_attention.reference import attention_reference

FORWARD = torch.ops.deit_kernels.attention_forward.default
BACKWARD = torch.ops.deit_kernels.attention_backward.default


def random(*shape: int, dtype: torch.dtype = torch.float16, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32), ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    query, key, value = random(2, 19, 3, 2, 16, dtype=dtype, grad=False).unbind(2)
    grad = random(2, 19, 2, 16, dtype=dtype, grad=False)
    torch.library.opcheck(FORWARD, (query, key, value, 0.3))
    out, lse = FORWARD(query, key, value, 0.3)
    torch.library.opcheck(BACKWARD, (grad, query, key, value, out, lse, 0.3))


class Graphs:
    """A backend that keeps the code of every forward and backward graph it is given."""

    def __init__(self) -> None:
        self.forward: list[str] = []
        self.backward: list[str] = []
        self.compile = aot_autograd(fw_compiler=self._keep(self.forward), bw_compiler=self._keep(self.backward))

    @staticmethod
    def _keep(codes: list[str]) -> Callable:
        def compile_graph(graph: torch.fx.GraphModule, _) -> Callable:
            codes.append(graph.code)
            return make_boxed_func(graph)

        return compile_graph


@pytest.mark.parametrize("dynamic", (False, True))
def test_one_graph_holds_the_kernels_and_no_copy(dynamic: bool) -> None:
    graphs = Graphs()
    attend = torch.compile(attention_qkvpacked, fullgraph=True, dynamic=dynamic, backend=graphs.compile)
    for batch, length in ((2, 17), (3, 23)):
        qkv = random(batch, length, 3, 2, 16)
        expected = qkv.detach().clone().requires_grad_()
        grad = random(batch, length, 2, 16, grad=False)
        attend(qkv).backward(grad)
        attention_qkvpacked(expected).backward(grad)
        assert torch.equal(qkv.grad, expected.grad)
    assert len(graphs.forward) == len(graphs.backward) == (1 if dynamic else 2)
    for forward, backward in zip(graphs.forward, graphs.backward, strict=True):
        assert "attention_forward" in forward and "attention_backward" in backward
        assert not any(copy in forward + backward for copy in ("clone", "stack", "cat", "contiguous", "copy"))


@pytest.mark.parametrize("dynamic", (False, True))
def test_the_separate_form_compiles_to_one_graph(dynamic: bool) -> None:
    attend = torch.compile(attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (17, 23):
        leaves = [random(2, 2, length, 16) for _ in range(3)]
        out = attend(*leaves, scale=0.3)
        assert out.transpose(1, 2).is_contiguous()
        torch.testing.assert_close(out, attention(*leaves, scale=0.3), rtol=0, atol=0)
        out.sum().backward()


def test_autocast_casts_as_sdpa_does() -> None:
    qkv = random(2, 17, 3, 2, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.float16):
        assert attention_unsupported_reasons(qkv) == []
        out = attention_qkvpacked(qkv)
    assert out.dtype == torch.float16
    assert torch.equal(out, attention_qkvpacked(qkv.detach().half()))
    out.sum().backward()
    assert qkv.grad.dtype == torch.float32


def test_a_gradient_penalty_has_the_gradient_of_plain_pytorch() -> None:
    grads = []
    start = random(1, 17, 3, 2, 16, dtype=torch.float32)
    for attend in (
        attention_qkvpacked,
        lambda x: attention_reference(*x.permute(2, 0, 3, 1, 4)).transpose(1, 2),
    ):
        leaf = start.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(attend(leaf).square().sum(), leaf, create_graph=True)
        grad.square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_the_same_input_twice_in_one_graph() -> None:
    qkv = random(1, 17, 3, 2, 16, dtype=torch.float32)
    (attention_qkvpacked(qkv) + attention_qkvpacked(qkv)).sum().backward()
    once = qkv.detach().clone().requires_grad_()
    attention_qkvpacked(once).sum().backward()
    assert torch.equal(qkv.grad, 2 * once.grad)


def test_what_the_interpreter_gets_wrong_is_refused() -> None:
    assert "bfloat16" in attention_unsupported_reasons(random(1, 17, 3, 2, 16, dtype=torch.bfloat16))[0]
    assert "float64" in attention_unsupported_reasons(random(1, 17, 3, 2, 16, dtype=torch.float64))[0]


FORMS = [
    pytest.param(lambda x: attention_qkvpacked(x), (2, 17, 3, 2, 16), id="packed"),
    pytest.param(lambda x: attention(*x.permute(2, 0, 3, 1, 4)).transpose(1, 2), (2, 17, 3, 2, 16), id="separate"),
]


@pytest.mark.parametrize(("attend", "shape"), FORMS)
def test_per_sample_gradients_by_torch_func_are_those_of_a_loop(attend: Callable, shape: tuple[int, ...]) -> None:
    qkv = random(*shape, dtype=torch.float32, grad=False)

    def loss(sample: Tensor, weight: float = 1.0) -> Tensor:
        return weight * attend(sample[None]).square().sum()

    seen = torch.func.vmap(torch.func.grad(loss))(qkv)
    expected = torch.stack([torch.func.grad(loss)(sample) for sample in qkv])
    leaf = qkv.clone().requires_grad_()
    loss(leaf[0]).backward()
    torch.testing.assert_close(expected[0], leaf.grad[0])
    torch.testing.assert_close(seen, expected)
    assert torch.equal(torch.func.vmap(attend, in_dims=1, out_dims=2)(qkv[:, None]), attend(qkv)[:, :, None])


@pytest.mark.parametrize(("attend", "shape"), FORMS)
def test_a_derivative_of_a_derivative_by_torch_func(attend: Callable, shape: tuple[int, ...]) -> None:
    qkv = random(1, *shape[1:], dtype=torch.float32, grad=False)

    def penalty(function: Callable) -> Callable:
        return lambda x: torch.func.grad(lambda y: function(y).square().sum())(x).square().sum()

    plain = lambda x: attention_reference(*x.permute(2, 0, 3, 1, 4)).transpose(1, 2)  # noqa: E731
    seen, expected = (torch.func.grad(penalty(function))(qkv) for function in (attend, plain))
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


def test_queries_of_one_map_share_the_keys() -> None:
    queries, key, value = random(3, 1, 2, 17, 16, grad=False), *random(2, 1, 2, 17, 16, grad=False)
    seen = torch.func.vmap(attention, in_dims=(0, None, None))(queries, key, value)
    assert torch.equal(seen, torch.stack([attention(query, key, value) for query in queries]))


@pytest.mark.parametrize(("attend", "shape"), FORMS)
def test_forward_mode_runs_sdpas_math_and_is_a_reason(attend: Callable, shape: tuple[int, ...]) -> None:
    qkv, tangent = random(2, *shape, dtype=torch.float32, grad=False)
    reasons = []

    def run(x: Tensor) -> Tensor:
        reasons.extend(attention_unsupported_reasons(x))
        return attend(x)

    _, seen = torch.func.jvp(run, (qkv,), (tangent,))
    assert "jvp" in reasons[0]
    plain = lambda x: attention_reference(*x.permute(2, 0, 3, 1, 4)).transpose(1, 2)  # noqa: E731
    torch.testing.assert_close(seen, torch.func.jvp(plain, (qkv,), (tangent,))[1], rtol=1e-4, atol=1e-5)
