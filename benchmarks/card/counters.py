"""Nsight Compute's counters of five kernels, where ncu is there and may read them.

    python -m benchmarks.card.counters --out counters.json

ncu runs this module with `--work`, which calls every op of `KERNELS` three times, and looks at each kernel's second
launch. Where there is no ncu, or no permission, the file holds no kernels and the reason. Not run on a card yet.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit_kernels import _extension, attention_qkvpacked, distillation_loss
from deit_kernels.augment import ImageBatch, Policy, apply, sample_plan

IMAGES = 256
# Expressions of the kernels' names, and the op that a failed test puts into quarantine.
KERNELS = {
    "attention_forward": "attention",
    "attention_backward": "attention",
    "^forward_kernel": "loss",
    "^backward_kernel": "loss",
    "resize_kernel": "augmentation",
}
METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_bytes.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed", "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor.sum", "sm__inst_executed_pipe_xu.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active", "launch__registers_per_thread",
    "l1tex__data_bank_conflicts_pipe_lsu.sum",
)  # fmt: skip


def augmentation() -> Callable[[], object] | None:
    """The recipe on `IMAGES` images of 500 x 375; None where its extension does not run."""
    if _extension.cuda_missing is not None:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, 375, 500, 3), dtype=np.uint8)
    batch = ImageBatch.from_images(list(noise)).to("cuda")
    plan = sample_plan(Policy.deit(), seed=0, epoch=0, sample=np.arange(IMAGES), copy=0, height=375, width=500)
    return lambda: apply(batch, plan, dtype=torch.bfloat16)


def work() -> None:
    """Attention of DeiT-S and the hard loss on 256 images; the augmentation where its extension runs."""
    qkv = torch.randn(IMAGES, 198, 3, 6, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    logits = [torch.randn(IMAGES, 1000, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    labels = torch.randint(1000, (IMAGES,), device="cuda")
    augment = augmentation()
    for _ in range(3):
        attention_qkvpacked(qkv).sum().backward()
        torch.autograd.backward(distillation_loss(logits[0], logits[1], logits[2].detach(), labels))
        if augment:
            augment()
    torch.cuda.synchronize()


def command(ncu: str) -> list[str]:
    chosen = [word for name in KERNELS for word in ("--kernel-id", f"::regex:{name}:2")]
    options = ["--csv", *chosen, "--metrics", ",".join(METRICS)]
    return [ncu, *options, sys.executable, "-m", "benchmarks.card.counters", "--work"]


def read(printed: str) -> list[dict[str, object]]:
    """Kernels with their metrics, of what ncu prints; lines of its own begin with "=="."""
    lines = printed.splitlines()
    table = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[str, dict] = {}
    for row in csv.DictReader(line for line in lines[table:] if line.startswith('"')):
        name = row["Kernel Name"].partition("(")[0]
        op = next((op for part, op in KERNELS.items() if part.strip("^") in name), "")
        kernel = kernels.setdefault(row["ID"], {"name": name, "op": op, "metrics": {}})
        kernel["metrics"][row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(kernels.values())


def counters() -> dict[str, Any]:
    """{"kernels": …, "reason": why there are none, or ""}."""
    ncu = shutil.which("ncu")
    if ncu is None:
        return {"kernels": [], "reason": "ncu is not on PATH: no counters"}
    run = subprocess.run(command(ncu), capture_output=True, text=True)
    printed = run.stdout + run.stderr
    if "ERR_NVGPUCTRPERM" in printed:
        advice = "load the driver with NVreg_RestrictProfilingToAdminUsers=0, or run as root"
        return {"kernels": [], "reason": f"ncu may not read the counters of this card: {advice}"}
    kernels = read(run.stdout)
    last = (printed.strip().splitlines() or ["it printed nothing"])[-1]
    return {"kernels": kernels, "reason": "" if kernels else f"ncu ended with exit code {run.returncode}: {last}"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card.counters", description=__doc__.split("\n")[0])
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--out", type=Path)
    chosen.add_argument("--work", action="store_true", help="what ncu looks at")
    arguments = parser.parse_args()
    if arguments.work:
        return work()
    found = counters()
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(found["reason"] or f"counters of {', '.join(each['name'] for each in found['kernels'])}")


if __name__ == "__main__":
    main()
