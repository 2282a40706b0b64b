"""What our packages cost before any work is done: the import, and one call on the smallest tensors.

    pytest benchmarks/bench_overhead.py

An import is timed in a new interpreter that has imported torch already, because everybody here needs that. A call on
one row is all overhead: checks, dispatch, and the way into the implementation. The limit of a call is the smallest op
of torch, a view of its argument.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from timm.data import create_transform

from benchmarks.measure import interleaved
from benchmarks.measure.device_timing import DEVICE, ON_CARD
from benchmarks.measure.interleaved import record, repeated
from deit_kernels import attention, attention_qkvpacked, cross_entropy
from deit_kernels.augment import ImageBatch, Policy, apply, sample_plan

pytestmark = [pytest.mark.benchmark(group="overhead"), pytest.mark.usefixtures("one_thread")]

CALLS, ROUNDS = 200, 15
IMPORT = "import time, torch; began = time.process_time(); import {}; print(time.process_time() - began)"


def test_import(benchmark: BenchmarkFixture) -> None:
    """The ops, against packages that offer parts of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ("deit_kernels", "torchvision", "timm")}
    # pip compiles what it installs: a checkout is compiled in the first round, which is not counted
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(7):
        for name, times in seconds.items():
            command = [sys.executable, "-c", IMPORT.format(name)]
            times.append(
                float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
            )
    record(benchmark, {name: times[1:] for name, times in seconds.items()}, unit="imports/s", clock="processor time")


def compare(benchmark: BenchmarkFixture, contenders: Mapping[str, Callable[[], object]]) -> None:
    number, smallest = torch.zeros(1, device=DEVICE), "torch's smallest op, a view"
    calls = {**contenders, smallest: lambda: torch.ops.aten.alias(number)}
    turns = {name: repeated(call, CALLS) for name, call in calls.items()}
    interleaved.compare(benchmark, turns, rounds=ROUNDS, work=CALLS, limited_by=smallest)


@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (8, 3)])
def test_call_attention_packed(benchmark: BenchmarkFixture, tokens: int, heads: int) -> None:
    """The packed form against the three lines that timm writes, in the type and width of our kernels on a card."""
    qkv = torch.randn(1, tokens, 3, heads, 64, device=DEVICE, dtype=torch.bfloat16 if ON_CARD else torch.float32)

    def as_timm_writes_it() -> torch.Tensor:
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    compare(benchmark, {"ours": lambda: attention_qkvpacked(qkv), "torch": as_timm_writes_it})


@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (8, 3)])
def test_call_attention(benchmark: BenchmarkFixture, tokens: int, heads: int) -> None:
    """The form with SDPA's signature, against SDPA."""
    shape, dtype = (1, heads, tokens, 64), torch.bfloat16 if ON_CARD else torch.float32
    query, key, value = (torch.randn(shape, device=DEVICE, dtype=dtype) for _ in range(3))
    runs = {
        "ours": lambda: attention(query, key, value),
        "torch": lambda: F.scaled_dot_product_attention(query, key, value),
    }
    compare(benchmark, runs)


def test_call_cross_entropy(benchmark: BenchmarkFixture) -> None:
    """One row of two classes."""
    logits, target = torch.randn(1, 2, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    runs = {"ours": lambda: cross_entropy(logits, target), "torch": lambda: F.cross_entropy(logits, target)}
    compare(benchmark, runs)


def test_call_augmentation(benchmark: BenchmarkFixture) -> None:
    """DeiT's recipe on one image of one pixel, into 8 × 8; on the host on every machine."""
    batch = ImageBatch.from_images([np.zeros((1, 1, 3), np.uint8)])
    policy = Policy.deit(8)
    transform = create_transform(
        (3, 8, 8), is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, interpolation="bicubic"
    )
    image = Image.new("RGB", (8, 8))

    def ours() -> torch.Tensor:
        plan = sample_plan(policy, seed=0, epoch=0, sample=[0], copy=0, height=1, width=1)
        return apply(batch, plan, dtype=torch.float32)

    compare(benchmark, {"ours": ours, "timm": lambda: transform(image)})
