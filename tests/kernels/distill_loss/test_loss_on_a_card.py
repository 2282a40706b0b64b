"""What only a card can show: bfloat16, real addresses, streams, graphs, and that nothing waits for the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deit_kernels import MixedTarget, TopK, cross_entropy, distillation_loss
from tests.kernels.distill_loss.loss_cases import (
    BINARY,
    TARGETS,
    TEACHERS,
    WEIGHTED_KINDS,
    Case,
    assert_agree,
    make_call,
    product,
    run,
    run_plain,
)

pytestmark = pytest.mark.gpu

KINDS = product(target=TARGETS, teacher=TEACHERS, heads=(2, 1), smoothing=(0.1,)) + BINARY[::5] + WEIGHTED_KINDS[::2]


def on_card(call: dict, device: str = "cuda") -> dict:
    """The same call on the card."""

    def move(value: object) -> object:
        if isinstance(value, Tensor):
            return value.detach().to(device).requires_grad_(value.requires_grad)
        if isinstance(value, MixedTarget | TopK):
            return type(value)(*map(move, value))
        return value

    return {name: move(value) for name, value in call.items()}


def off_card(results: dict) -> dict:
    return {name: value.cpu() for name, value in results.items()}


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_each_kind_of_call(case: Case) -> None:
    call = make_call(case, rows=257, classes=1000, dtype=torch.bfloat16)
    assert_agree(off_card(run(on_card(call), incoming=2.5)), run_plain(call, incoming=2.5), torch.bfloat16)


@pytest.mark.parametrize("classes", [2, 41, 1000, 1271, 4096, 21840, 21841])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", [Case("mixed", smoothing=0.1), Case("dense", "soft logits")], ids=str)
def test_each_size_and_type(case: Case, dtype: torch.dtype, classes: int) -> None:
    call = make_call(case, rows=257, classes=classes, dtype=dtype)
    assert_agree(off_card(run(on_card(call), incoming=2.5)), run_plain(call, incoming=2.5), dtype)


@pytest.mark.parametrize("start", range(4))
def test_labels_at_any_address(start: int) -> None:
    call = on_card(make_call(Case("mixed", "hard labels"), rows=64, classes=1000))
    expected = run(call)

    def moved(vector: Tensor) -> Tensor:
        return torch.zeros(80, dtype=vector.dtype, device="cuda")[start : start + 64].copy_(vector)

    call |= {"target": MixedTarget(*map(moved, call["target"])), "teacher": moved(call["teacher"])}
    got = run(call)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("label", [1000, -1, 2**40])
def test_a_label_that_is_no_class_makes_its_row_nan(label: int) -> None:
    call = on_card(make_call(Case("labels", reduction="none"), rows=64, classes=1000))
    call["target"][7] = label
    got = run(call)
    for name in ("loss", "grad of cls", "grad of dist"):
        rows = got[name].isnan().reshape(64, -1)
        assert rows[7].all() and not rows[:7].any() and not rows[8:].any()


def test_a_hundred_runs_give_the_same_bits() -> None:
    call = on_card(make_call(Case("mixed", "soft logits", smoothing=0.1), rows=256, classes=1000, dtype=torch.bfloat16))
    first = run(call)
    for _ in range(100):
        again = run(call)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_nothing_waits_for_the_device() -> None:
    calls = [on_card(make_call(case, rows=64, classes=1000, dtype=torch.float16)) for case in KINDS]
    for call in calls:  # compiles
        distillation_loss(**call).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call in calls:
            (distillation_loss(**call) * 65536.0).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_capture_and_replay_on_new_inputs() -> None:
    call = on_card(make_call(Case("mixed", smoothing=0.1), rows=64, classes=1000))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(call)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(call)
    other = on_card(make_call(Case("mixed", smoothing=0.1), rows=64, classes=1000, seed=1))
    with torch.no_grad():
        for name in ("cls_logits", "dist_logits", "teacher"):
            call[name].copy_(other[name])
        for mine, others in zip(call["target"], other["target"], strict=True):
            mine.copy_(others)
    graph.replay()
    expected = run(other)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_inductor_keeps_one_graph() -> None:
    call = on_card(make_call(Case("mixed", "soft logits", smoothing=0.1), rows=64, classes=1000, dtype=torch.bfloat16))
    expected = run(call)["loss"]
    torch.testing.assert_close(torch.compile(distillation_loss, fullgraph=True)(**call), expected)


def test_a_grad_scaler_in_float16() -> None:
    call = make_call(Case("mixed", smoothing=0.1), rows=256, classes=1000, dtype=torch.float16)
    got, expected = off_card(run(on_card(call), incoming=65536.0)), run_plain(call, incoming=65536.0)
    for name in ("grad of cls", "grad of dist"):
        assert (got[name].double() - expected[name]).norm() / expected[name].double().norm() < 1e-3


def test_offsets_beyond_32_bits() -> None:
    rows, classes = 45_000, 50_000  # 2.25e9 elements, 4.5 GB
    logits = torch.zeros(rows, classes, device="cuda", dtype=torch.float16)
    logits[-1, 3] = 10.0
    labels = torch.full((rows,), 3, device="cuda")
    got = cross_entropy(logits, labels, reduction="none")[-1]
    torch.testing.assert_close(got, torch.nn.functional.cross_entropy(logits[-1:].float(), labels[-1:]))


def test_float64_runs_the_reference_on_the_card() -> None:
    call = make_call(Case("mixed", "soft logits"), rows=5, classes=41, dtype=torch.float64)
    assert_agree(off_card(run(on_card(call))), run_plain(call), torch.float64)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
def test_the_card_of_the_tensors_is_used_and_not_the_current_one() -> None:
    call = make_call(Case("mixed"), rows=64, classes=1000)
    assert_agree(off_card(run(on_card(call, "cuda:1"))), run_plain(call), torch.float32)
    assert torch.cuda.current_device() == 0
