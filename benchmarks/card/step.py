"""The compiled DeiT-S step on a card, kernel time by part, beside what the roofline allows for the part.

    python -m benchmarks.card.step --out step.json      # most of a minute, of which most is compilation

The step is bench_train's with cached labels: 256 images, bfloat16 autocast, AdamW, moving average. The augmentation of
as many images of noise runs beside it where its extension is built. A part is told by the names of its kernels; what no
name tells is "other" and listed. Predictions are those of `benchmarks.compiled.roofline` for an H100, whatever card
runs. Not run on a card yet.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import bench_train
from benchmarks.bench_train import ROWS, Form, name_of, ours, turns
from benchmarks.card.counters import augmentation
from benchmarks.compiled.roofline import Settings, step_parts
from benchmarks.measure.interleaved import alternate

CALLS = 5
OTHER, GAPS = "other", "gaps"
# A part's kernels, by the first expression that a name holds, and how the names of the roofline's parts begin.
PARTS = {
    "attention, forward": (r"attention_forward|flash_fwd|fmha_cutlassF|sdpa\w*_fprop", "attention, forward"),
    "attention, backward": (r"attention_(backward|delta)|flash_bwd|fmha_cutlassB|sdpa\w*_bprop", "attention, backward"),
    "augmentation": (r"(resize|plan_ops|ops|finish)_kernel", "augmentation"),
    "loss": (r"^(forward|mean|backward)_kernel", "loss"),
    "AdamW, norm, moving average": (r"multi_tensor_apply|FusedAdam|LpNorm|triton_for_fused", "AdamW"),
    "matrix products": (r"gemm|nvjet|xmma|cutlass|splitK|cublas|cudnn|convolve|triton_tem_", r"\d+ matrix products"),
    # Inductor names a reduction in two orders, as of LN's gradients, "unk".
    "norms, GELU, sums, casts": (
        r"triton_(poi|red|per|spl|unk)_|elementwise|reduce_kernel|layer_norm|CatArray|^Mem", "LN|sums|casts",
    ),
}  # fmt: skip


def part_of(kernel: str) -> str:
    return next((part for part, (names, _) in PARTS.items() if re.search(names, kernel)), OTHER)


def by_part(kernels: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each part, of seconds by the names of kernels."""
    seconds = dict.fromkeys([*PARTS, OTHER], 0.0)
    for kernel, taken in kernels.items():
        seconds[part_of(kernel)] += taken
    return seconds


def predicted() -> dict[str, float]:
    """Seconds of each part by the roofline.

    Raises:
        ValueError: it has a part that belongs to no part of a step.
    """
    seconds = dict.fromkeys([*PARTS, GAPS], 0.0)
    for part in step_parts(Settings(name_of("small"), ROWS)):
        named = [name for name, (_, theirs) in PARTS.items() if re.match(theirs, part.name)]
        if not named and not part.name.startswith(GAPS):
            raise ValueError(f"the roofline's part {part.name!r} belongs to no part of the step: add it to PARTS")
        seconds[named[0] if named else GAPS] += part.seconds
    return seconds


def kernel_seconds(call: Callable[[], object]) -> dict[str, float]:
    """Seconds a call of every kernel, copy and fill, by name; the first calls compile."""
    for _ in range(4):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    events = [event for event in trace.key_averages() if event.device_type == DeviceType.CUDA]
    return {event.key: event.self_device_time_total / 1e6 / CALLS for event in events}


def report(kernels: Mapping[str, float], wall: float, augmented: Mapping[str, float]) -> dict[str, Any]:
    """What the results file holds, in milliseconds.

    Args:
        kernels: seconds of a step by kernel.
        wall: seconds of a step; what its kernels do not fill are gaps.
        augmented: seconds of the augmentation by kernel, which are no part of `wall`.
    """
    measured, floor = by_part(kernels), predicted()
    measured["augmentation"] = sum(augmented.values())
    measured[GAPS] = max(0.0, wall - sum(kernels.values()))
    rows = [
        {
            "name": part, "op": "augmentation" if part == "augmentation" else "", "ms": round(seconds * 1e3, 3),
            "predicted ms": round(floor[part] * 1e3, 3) if part in floor else None,
        }
        for part, seconds in measured.items()
        if part != "augmentation" or augmented
    ]  # fmt: skip
    largest = sorted(kernels.items(), key=lambda each: -each[1])
    return {
        "step ms": round(wall * 1e3, 3),
        "parts": rows,
        "other": {name: round(seconds * 1e3, 4) for name, seconds in largest if part_of(name) == OTHER},
        "kernels": {name: round(seconds * 1e3, 4) for name, seconds in largest[:40]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card.step", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    (turn,) = turns({"ours": ours(Form("small"), nn.Identity(), cached=True)}).values()
    kernels = {name: seconds / bench_train.STEPS for name, seconds in kernel_seconds(turn).items()}
    wall = min(alternate({"ours": turn}, rounds=10, clock=time.perf_counter)["ours"]) / bench_train.STEPS
    augment = augmentation()
    found = report(kernels, wall, kernel_seconds(augment) if augment else {})
    out.write_text(json.dumps(found, indent=1) + "\n")
    for row in found["parts"]:
        print(f"{row['name']:<28}{row['ms']:8.2f} ms, predicted {row['predicted ms']}")
    print(f"a step {found['step ms']:.2f} ms; kernels in no part: {', '.join(found['other']) or 'none'}")


if __name__ == "__main__":
    main()
