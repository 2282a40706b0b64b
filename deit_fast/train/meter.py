"""Means over the steps since the last line of metrics.jsonl, summed on the device until they are read.

Model FLOPs utilisation (MFU) is the floating-point operations of the model, divided by what the card can do. A
multiplication and an addition count as two; only matrix products and convolutions are counted, as is usual.
"""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..data import TrainLoader
from ..model import VisionTransformer, ViTConfig
from ..ranks.group import Ranks
from ..weights.build import Frozen
from .counters import SkippedSteps
from .step import StepResult, TrainingStep

# Dense bf16 rate with fp32 accumulation, in 1e12/s, from NVIDIA's data sheets. The first entry that the
# card's name contains is used, so longer entries come first.
_PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H200": 989.4,
    "A100": 312.0,
    "B200": 2250.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A30": 165.0,
    "A40": 149.7,
    "RTX 4090": 165.2,
}

_NAMED = 0.05  # the rank that waits longest for data is named if its share of the time exceeds the mean by this
_SUMS = 5  # loss, its label term, its teacher term, top-1, the gradient's norm


@dataclass(frozen=True)
class Scale:
    """Constants of a run that turn counts into images/s, time left and MFU."""

    batch_size: int  # images of a step, all ranks together
    total_steps: int
    flops: float | None = None  # of an image in a training step; None where unknown
    peak: float | None = None  # FLOP/s of all GPUs together; None where unknown

    @classmethod
    def of(
        cls, batch_size: int, image_size: int, total_steps: int, step: TrainingStep, ranks: Ranks,
        autocast: AbstractContextManager,
    ) -> Scale:  # fmt: skip
        """FLOPs are counted only if the run uses the card's 16-bit rate and that is known."""
        known = None
        if ranks.device.type == "cuda" and isinstance(autocast, torch.autocast):
            known = peak_flops(torch.cuda.get_device_name(ranks.device))
        if known is None:
            return cls(batch_size, total_steps)
        teacher = step.teacher.engine.module if step.teacher and step.teacher.live else None
        flops = training_flops(step.model, teacher, image_size)
        return cls(batch_size, total_steps, flops, known * ranks.world_size)


class Meter:
    """Sums the losses of all steps but skipped ones on the device; `row` reads them, once an interval.

    `skipped_in_a_row` is the longest series of skipped steps, as of the last row.
    """

    def __init__(self, step: TrainingStep, batches: TrainLoader, ranks: Ranks, scale: Scale) -> None:
        self._step, self._batches, self._ranks, self._scale = step, batches, ranks, scale
        self._sums = torch.zeros(_SUMS, dtype=torch.float64, device=ranks.device)
        self._skipped = SkippedSteps(ranks.device)
        self.skipped_in_a_row = 0
        self._aside: dict[str, float] = {}
        self._norm_known = True
        self._restart()

    def _restart(self) -> None:
        self._sums.zero_()
        self._steps = self._not_timed = 0
        self._began, self._waited = time.perf_counter(), self._batches.wait_seconds
        self._labelled = self._batches.labelled
        self._loader = vars(self._batches.seconds).copy()

    def add(self, result: StepResult) -> None:
        """Add a step's loss, its two terms, its accuracy and gradient norm, without waiting for the device."""
        (loss, label, distillation, top1), norm = result.losses, result.grad_norm
        terms = torch.stack(
            [loss, label, torch.zeros_like(label) if distillation is None else distillation, top1, norm]
        )
        self._sums += torch.where(result.finite, terms, 0.0)
        self._skipped.add(result.finite)
        self._steps += 1

    def state(self) -> dict[str, Any]:
        """The sums since the last row over all ranks, and the steps, as JSON values."""
        sums = self._ranks.total(self._sums.clone()).tolist()
        return {"sums": sums, "ranks": self._ranks.world_size, "steps": self._steps, "skipped": self._skipped.state()}

    def load(self, state: dict[str, Any] | None) -> None:
        """Continue from the `state` of another meter, also of another number of ranks."""
        if state is not None:
            if self._ranks.main:  # on rank 0 alone: `row` adds the ranks' sums, and these are of all ranks already
                known = state["sums"] + [0.0] * (_SUMS - len(state["sums"]))
                sums = torch.tensor(known, dtype=torch.float64, device=self._sums.device)
                self._sums += sums * (self._ranks.world_size / state["ranks"])  # `row` divides by today's number
            self._norm_known = len(state["sums"]) == _SUMS or not state["steps"]  # an older version had no norm
            self._steps = self._not_timed = state["steps"]
            self._skipped.load(state["skipped"])

    @contextmanager
    def paused(self, stage: str = "") -> Iterator[None]:
        """The time inside `with` (an evaluation, a checkpoint) does not count as training time, but as `stage`'s."""
        began = time.perf_counter()
        yield
        lasted = time.perf_counter() - began
        self._began += lasted
        if stage:
            self._aside[stage] = self._aside.get(stage, 0.0) + lasted

    def asides(self) -> dict[str, float]:
        """Seconds of every stage that has ended since the last call."""
        stages, self._aside = self._aside, {}
        return stages

    def row(self, step: int, epoch: float, lr: float) -> dict[str, Any]:
        """A line of metrics.jsonl for the steps since the last one; the host waits for the device here.

        Raises:
            ValueError: no image of these steps is readable, on any rank.
        """
        ranks, scale = self._ranks, self._scale
        # A single all-reduce: each rank puts its waiting time into a place of its own, which is 0 at the others.
        own = torch.zeros(1 + ranks.world_size, dtype=torch.float64)
        own[0] = self._batches.labelled - self._labelled
        own[1 + ranks.rank] = self._batches.wait_seconds - self._waited
        both = ranks.total(torch.cat([self._sums, own.to(ranks.device)])).tolist()
        sums, labelled, waits = both[:_SUMS], both[_SUMS], both[_SUMS + 1 :]
        if not labelled:
            path, reason = next(iter(self._batches.bad_images.items()))
            raise ValueError(f"no image of the steps up to {step} is readable; the first is {path}: {reason}")
        skipped, self.skipped_in_a_row = self._skipped.read()
        count = (self._steps - skipped) * ranks.world_size
        loss, label, distillation, top1, norm = (value / count if count else None for value in sums)
        seconds = max(time.perf_counter() - self._began, 1e-9)
        shares = [min(wait / seconds, 1.0) for wait in waits]
        speed = max(self._steps - self._not_timed, 1) * scale.batch_size / seconds
        parts = {name: watch.seconds() for name, watch in self._step.watches.items()}
        loader = {name: value - self._loader[name] for name, value in vars(self._batches.seconds).items()}
        teacher = parts["teacher"] / seconds if self._step.teacher else None
        row = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": loss,
            "label": label,
            "distillation": distillation if self._step.teacher else None,
            "top1": 100 * top1 if count else None,
            "grad_norm": norm if self._norm_known else None,
            "skipped": skipped,
            "lr": lr,
            "images_per_second": speed,
            "data_wait": sum(shares) / len(shares),
            "teacher_share": teacher,
            "memory": memory_used(ranks.device),
            "eta": (scale.total_steps - step) * scale.batch_size / speed,
            "seconds": {name: round(value, 6) for name, value in (parts | loader | self.asides()).items()},
        }
        self._norm_known = True
        if scale.flops and scale.peak:
            row["mfu"] = speed * scale.flops / scale.peak
        if max(shares) > row["data_wait"] + _NAMED:
            row["slowest_wait"] = max(shares)
            row["slowest_rank"] = shares.index(max(shares))
        self._restart()
        return row


def memory_used(device: torch.device) -> int:
    """Peak bytes that this process has allocated so far: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(card: str) -> float | None:
    """Dense bf16 FLOP/s of a card by its driver's name for it; None for a card that is not in the table."""
    # Whole words only: "NVIDIA L40" contains "L4".
    words = f" {card} ".replace("-", " ")
    return next((1e12 * peak for name, peak in _PEAKS.items() if f" {name} " in words), None)


def forward_flops(model: nn.Module, image_size: int) -> float | None:
    """FLOPs of one image's forward pass; None for a model that does not run on the meta device."""
    if isinstance(model, Frozen):
        model = model.model
    if isinstance(model, VisionTransformer):
        return _transformer_flops(model.config)
    shapes = copy.deepcopy(model).to("meta").eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            dtype = next((parameter.dtype for parameter in shapes.parameters()), torch.float32)
            shapes(torch.empty(1, 3, image_size, image_size, dtype=dtype, device="meta"))
    except Exception:  # a model that is not ours may raise anything on tensors without values
        return None
    return float(counter.get_total_flops()) or None


def training_flops(student: nn.Module, teacher: nn.Module | None, image_size: int) -> float | None:
    """FLOPs of one image in a training step: the student's forward, its backward (twice that), the teacher's."""
    ours = forward_flops(student, image_size)
    theirs = forward_flops(teacher, image_size) if teacher is not None else 0.0
    return None if ours is None or theirs is None else 3 * ours + theirs


def _transformer_flops(config: ViTConfig) -> float:
    patches, width = config.grid**2, config.width
    tokens = patches + config.prefix_tokens
    hidden = int(width * config.mlp_ratio)
    block = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    heads = (2 if config.distilled else 1) * width * config.classes
    embedding = patches * 3 * config.patch_size**2 * width
    return 2.0 * (embedding + config.depth * block + heads)
