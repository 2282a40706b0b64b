"""What bench_attention times on a card, and in which order; timed by a stand-in."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from benchmarks import bench_attention
from benchmarks.bench_attention import ATTENTION, COMPILED, PROVIDERS, UNSTACKED, Shape, inputs_of, provider
from benchmarks.measure import passes
from tests.benchmarks.test_table import Fixture

SHAPE = Shape(2, 17, 3, torch.float32)


def test_deit_s_comes_first_in_every_direction_and_no_shape_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_attention, "ON_CARD", True)
    shapes = [shape.values[0] for shape in bench_attention.shapes()]
    assert shapes[0] == Shape(256, 198, 6, torch.bfloat16)
    assert len(set(shapes)) == len(shapes) == 2 * 4 * 4 * 3
    slow = [bool(shape.marks) for shape in bench_attention.shapes()]
    assert slow == sorted(slow), "quick ones first"
    assert {shape.batch for shape in shapes[:4]} == {256}, "of these the model predicts the time"
    # Of stacked marks the upper one varies faster: all directions of a shape, then the next shape.
    upper, lower = (
        mark.args[0] for mark in reversed(bench_attention.test_attention.pytestmark) if mark.name == "parametrize"
    )
    assert (upper, lower) == ("direction", "shape")


def test_compiled_peers_have_rows_of_their_own_behind_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: dict[str, list[str]] = {}

    def stand_in(makers: dict, rounds: int, waits: tuple) -> tuple:
        timed[row] = list(makers)
        return {name: [1.0] * rounds for name in makers}, {}

    monkeypatch.setattr(passes, "time_calls", stand_in)
    row = "without a card"
    bench_attention.test_attention(Fixture(), None, SHAPE, "forward")
    assert not any(UNSTACKED in name for name in timed[row]), "what our fallback itself calls is its peer"
    for name, stand_in in {"ON_CARD": True, "memory_limit": lambda size: None}.items():
        monkeypatch.setattr(bench_attention, name, stand_in)
    for row in ("test_attention", "test_attention_compiled"):
        getattr(bench_attention, row)(Fixture(), None, SHAPE, "forward")
    assert timed["test_attention_compiled"] == ["ours", *COMPILED]
    assert timed["test_attention"] == [name for name in PROVIDERS if name not in COMPILED]
    assert timed["test_attention"][0] == "ours"
    assert set(timed["test_attention"]) >= {"sdpa_cudnn", "sdpa_cudnn_unstacked", "sdpa_flash_unstacked"}
    assert set(timed["test_attention"]) >= {"flash_attn_3", "flash_attn_3_unstacked"}
    tests = [name for name in vars(bench_attention) if name.startswith("test_")]
    assert tests[-1] == "test_attention_compiled", "the order in which pytest runs them"


@pytest.mark.parametrize("backend", ["math", "flash"])
def test_an_unstacked_peer_computes_the_same_and_leaves_three_gradients(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROVIDERS, f"sdpa_math{UNSTACKED}", PROVIDERS["sdpa_math"])
    packed, split = f"sdpa_{backend}", f"sdpa_{backend}{UNSTACKED}"
    torch.manual_seed(0)
    (stacked,) = ATTENTION.calls(packed, SHAPE, "both")[0]()
    torch.manual_seed(0)
    gradients = ATTENTION.calls(split, SHAPE, "both")[0]()
    assert stacked.shape == (2, 17, 3, 3, 64) and [each.shape for each in gradients] == 3 * [(2, 17, 3, 64)]
    torch.testing.assert_close(torch.stack(gradients, dim=2), stacked)
    torch.manual_seed(0)
    first = ATTENTION.calls(packed, SHAPE, "forward")[0]()
    torch.manual_seed(0)
    torch.testing.assert_close(ATTENTION.calls(split, SHAPE, "forward")[0](), first)
    assert all(each.is_contiguous() and each.is_leaf for each in inputs_of(split, torch.randn(2, 17, 3, 3, 64)))


@pytest.mark.parametrize("module", ["flash_attn_interface", "flash_attn_3.flash_attn_interface"])
@pytest.mark.parametrize("unstacked", ["", UNSTACKED])
def test_flash_attention_3_is_found_by_either_name(
    module: str, unstacked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for its package: earlier versions return the log-sum-exp too."""
    name, monkey = f"flash_attn_3{unstacked}", ModuleType(module)
    with pytest.raises(ImportError, match=f"{name} is not installed"):
        provider.__wrapped__(name)

    def of_parts(*parts: Tensor) -> Tensor:
        query, key, value = (each.transpose(1, 2) for each in parts)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    monkey.flash_attn_func = of_parts
    monkey.flash_attn_qkvpacked_func = lambda qkv: (of_parts(*qkv.unbind(2)), None)
    monkeypatch.setitem(sys.modules, "flash_attn_3", ModuleType("flash_attn_3"))
    monkeypatch.setitem(sys.modules, module, monkey)
    qkv = torch.randn(2, 17, 3, 3, 64)
    torch.testing.assert_close(PROVIDERS[name](*inputs_of(name, qkv)), bench_attention.plain(qkv))
