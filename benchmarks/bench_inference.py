"""Inference of whole models: ours, timm's, timm's with our attention, and Hugging Face's, the same sizes everywhere.

    pytest benchmarks/bench_inference.py

A row is one batch from images to logits, without gradients; float32 and one thread on a CPU, bf16 on a card. On a card
ours and timm's are compiled in every row, on a CPU in a row of their own. Weights are random. The limit of a row is the
arithmetic of the model (two operations a multiplication) at the rate of one large product of matrices, measured in the
same run.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

from benchmarks.measure.device_timing import CLOCK_NAME, DEVICE, ON_CARD, arithmetic_limit, environment, time_calls
from benchmarks.measure.interleaved import record
from deit_fast import create_model
from deit_kernels.integrations import patch_timm

pytestmark = pytest.mark.benchmark(group="inference")

SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
ON_A_CARD = [("small", 1), ("small", 256), ("base", 256), ("tiny", 256)]
CASES = ON_A_CARD if ON_CARD else [("tiny", 1), ("tiny", 8), ("small", 1)]


def timms(size: str) -> nn.Module:
    return timm.create_model(f"deit_{size}_distilled_patch16_224")


def patched(size: str) -> nn.Module:
    model = timms(size)
    patch_timm(model, strict=True)
    return model


def hugging_face(size: str) -> nn.Module:
    width, heads = SIZES[size]
    config = DeiTConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, num_labels=1000,
        attn_implementation="sdpa",
    )  # fmt: skip
    return DeiTForImageClassificationWithTeacher(config)


MODELS: dict[str, Callable[[str], nn.Module]] = {
    "ours": lambda size: create_model(f"deit_{size}_distilled_patch16_224"),
    "timm": timms,
    "timm with our attention": patched,
    "hugging face": hugging_face,
}
EAGER = {"ours, eager": MODELS["ours"], "timm, eager": timms}
COMPILED = {
    "ours": lambda size: torch.compile(create_model(f"deit_{size}_distilled_patch16_224")),
    "timm": lambda size: torch.compile(timms(size)),
}
OUR_FORMS = ("timm with our attention", "ours, eager")  # no peers


def forward(model: nn.Module, images: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=ON_CARD):
            return model(images)

    return run


@pytest.mark.parametrize(("size", "batch"), CASES)
def test_inference(benchmark: BenchmarkFixture, one_thread: None, size: str, batch: int) -> None:
    """On a card the names stand for compiled models, and the eager ones are beside them."""
    compare(benchmark, MODELS | COMPILED | EAGER if ON_CARD else MODELS, size, batch)


@pytest.mark.skipif(ON_CARD, reason="on a card every row is compiled")
def test_inference_compiled(benchmark: BenchmarkFixture, one_thread: None) -> None:
    compare(benchmark, COMPILED, "tiny", 1)


def compare(benchmark: BenchmarkFixture, models: dict[str, Callable[[str], nn.Module]], size: str, batch: int) -> None:
    images = torch.randn(batch, 3, 224, 224, device=DEVICE)

    def maker(name: str) -> Callable[[], list[Callable[[], object]]]:
        return lambda: [forward(models[name](size).to(DEVICE).eval(), images)] * (20 if batch == 1 else 2)

    seconds, left_out = time_calls({name: maker(name) for name in models}, rounds=10 if ON_CARD else 7)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        timms(size).to(DEVICE).eval()(images[:1])
    record(
        benchmark, seconds, work=batch, unit="images/s", clock=CLOCK_NAME, left_out=left_out, forms=OUR_FORMS,
        limit=arithmetic_limit(counter.get_total_flops()), **environment(),
    )  # fmt: skip
