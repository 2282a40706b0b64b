"""What only a card can show of attention: bfloat16, streams, graphs, many devices, large tensors, repeated bits."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from deit_kernels import attention, attention_qkvpacked, attention_unsupported_reasons
from tests.kernels.attention.accuracy import assert_accurate, largest_error, make_case, random_case

pytestmark = pytest.mark.gpu

LENGTHS = (1, 3, 16, 17, 63, 64, 65, 127, 129, 196, 197, 198, 199, 208, 209, 256, 257, 577, 578, 1040)
FEATURES = (32, 64, 72, 80, 96, 128)


def on_card(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype).requires_grad_(grad)


def run(qkv: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = qkv.detach().requires_grad_()
    out = attention_qkvpacked(leaf)
    out.backward(grad)
    return out.detach(), leaf.grad


# 6 pairs of image and head take the tiled backward, 384 the form that the table has for a training's batch.
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("length", LENGTHS)
def test_error_is_at_most_twice_that_of_plain_pytorch(length: int, features: int, dtype: torch.dtype) -> None:
    random = random_case(2, length, 3, features, dtype)
    case = make_case(random.qkv.cuda(), random.grad.cuda())
    assert attention_unsupported_reasons(case.qkv) == []
    for copies in (1, 64):
        out, grad = run(case.qkv.repeat(copies, 1, 1, 1, 1), case.grad.repeat(copies, 1, 1, 1))
        assert_accurate(case, out[:2], grad[:2].unbind(2))
        assert torch.equal(out, out[:2].repeat(copies, 1, 1, 1))
        assert torch.equal(grad, grad[:2].repeat(copies, 1, 1, 1, 1))


def test_gradients_have_the_same_bits_a_hundred_times() -> None:
    qkv, grad = on_card(64, 198, 3, 6, 64), on_card(64, 198, 6, 64, grad=False)
    out, first = run(qkv, grad)
    for _ in range(100):
        again, grads = run(qkv, grad)
        assert torch.equal(again, out) and torch.equal(grads, first)


@pytest.mark.parametrize("batch", (1, 64))
def test_capture_and_replay(batch: int) -> None:
    qkv, grad = on_card(batch, 198, 3, 6, 64, grad=False), on_card(batch, 198, 6, 64, grad=False)
    run(qkv, grad)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        out, grads = run(qkv, grad)
    qkv.copy_(torch.randn_like(qkv))
    graph.replay()
    for seen, expected in zip((out, grads), run(qkv, grad), strict=True):
        assert torch.equal(seen, expected)


def test_a_side_stream_is_respected() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        qkv = on_card(8, 198, 3, 6, 64, grad=False)
        out = attention_qkvpacked(qkv)
    stream.synchronize()
    assert torch.equal(out, attention_qkvpacked(qkv))


def test_the_device_of_the_tensors_is_used() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    qkv = on_card(2, 198, 3, 6, 64, grad=False)
    other = qkv.to("cuda:1")
    out, grads = run(other, torch.ones_like(other[:, :, 0]))
    assert out.device == grads.device == other.device
    assert torch.equal(out.cpu(), attention_qkvpacked(qkv).cpu())


def test_offsets_beyond_two_to_the_31() -> None:
    batch = 2**31 // (198 * 3 * 12 * 64) + 2
    if torch.cuda.get_device_properties(0).total_memory < 32 << 30:
        pytest.skip("needs 32 GB")
    qkv = torch.zeros(batch, 198, 3, 12, 64, device="cuda", dtype=torch.float16)
    qkv[-1] = torch.randn_like(qkv[-1])
    grad = torch.zeros(batch, 198, 12, 64, device="cuda", dtype=torch.float16)
    grad[-1] = torch.randn_like(grad[-1])
    out, grads = run(qkv, grad)
    last = slice(-64, None)  # 768 pairs of image and head: fewer could take another form, whose bits are others
    expected_out, expected = run(qkv[last].clone(), grad[last].clone())
    assert torch.equal(out[last], expected_out) and torch.equal(grads[last], expected)


@pytest.mark.parametrize("dynamic", (False, True))
def test_full_graph_compile(dynamic: bool) -> None:
    compiled = torch.compile(attention_qkvpacked, fullgraph=True, dynamic=dynamic)
    for length in (197, 198):
        qkv, grad = on_card(4, length, 3, 6, 64), on_card(4, length, 6, 64, grad=False)
        compiled(qkv).backward(grad)
        assert torch.equal(qkv.grad, run(qkv, grad)[1])


def test_a_scaled_float16_loss_keeps_its_gradient() -> None:
    """A GradScaler's 1024: the gradient is the unscaled one, to the rounding of float16."""
    qkv, grad = on_card(4, 198, 3, 6, 64, dtype=torch.float16), on_card(4, 198, 6, 64, dtype=torch.float16, grad=False)
    _, plain = run(qkv, grad * 2**-10)
    _, scaled = run(qkv, grad)
    assert largest_error(scaled.float() * 2**-10, plain.double()) <= 2e-3 * plain.abs().max().item()


def test_autocast_is_sdpas() -> None:
    qkv = on_card(2, 198, 3, 6, 64, dtype=torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = attention_qkvpacked(qkv)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attention_qkvpacked(qkv.detach().bfloat16()))


def test_float32_and_masks_are_sdpas() -> None:
    query, key, value = (on_card(2, 3, 50, 64, dtype=torch.float32, grad=False) for _ in range(3))
    assert "dtype torch.float32" in attention_unsupported_reasons(query, key, value)[0]
    expected = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(attention(query, key, value, is_causal=True), expected)


def test_nothing_waits_for_the_device() -> None:
    qkv, grad = on_card(8, 198, 3, 6, 64), on_card(8, 198, 6, 64, grad=False)
    run(qkv, grad)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(qkv, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
