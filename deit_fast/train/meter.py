"""Numbers of the steps since the last line of metrics.jsonl, kept on the device until they are read.

Model FLOPs utilisation (MFU) is the model's floating-point operations over what the card can do. A multiplication and
an addition count as two; only matrix products and convolutions are counted, as is usual.
"""

from __future__ import annotations

import copy
import resource
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..config import Config
from ..data import TrainLoader
from ..model import VisionTransformer, ViTConfig
from ..ranks.group import Ranks
from ..weights.build import Frozen
from .counters import SkippedSteps
from .step import StepResult, TrainingStep

# Dense bf16 rate with fp32 accumulation, in 1e12/s, from NVIDIA's data sheets. The first name that is part of the
# card's is taken, so the longer ones come first.
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

_NAMED = 0.05  # a rank that waits this much longer for data than the average is named
SUMS = ("loss", "label", "distillation", "top1")


@dataclass(frozen=True)
class Scale:
    """What turns counts into what people ask for.

    Attributes:
        batch_size: images of a step, all ranks together.
        total_steps: of the run.
        flops: of an image in a training step; None where unknown.
        peak: FLOP/s of all GPUs together; None where unknown.
    """

    batch_size: int
    total_steps: int
    flops: float | None = None
    peak: float | None = None

    @classmethod
    def of(
        cls, config: Config, total_steps: int, step: TrainingStep, ranks: Ranks, autocast: AbstractContextManager
    ) -> Scale:
        """With FLOPs where the 16-bit rate of the card is known, and used."""
        known = None
        if ranks.device.type == "cuda" and isinstance(autocast, torch.autocast):
            known = peak_flops(torch.cuda.get_device_name(ranks.device))
        if known is None:
            return cls(config.batch_size, total_steps)
        teacher = step.teacher.engine.module if step.teacher and step.teacher.live else None
        flops = training_flops(step.model, teacher, config.image_size)
        return cls(config.batch_size, total_steps, flops, known * ranks.world_size)


class Meter:
    """Sums losses on the device, those of steps that were left out excepted; `row` reads them, once an interval.

    Args:
        step: whose teacher is timed.
        batches: whose waiting time is reported.
        ranks: the losses are means over all of them.
        scale: of the run.

    Attributes:
        skipped_in_a_row: the most steps in a row that were left out, as of the last row.
    """

    def __init__(self, step: TrainingStep, batches: TrainLoader, ranks: Ranks, scale: Scale) -> None:
        self._step, self._batches, self._ranks, self._scale = step, batches, ranks, scale
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=ranks.device)
        self._skipped = SkippedSteps(ranks.device)
        self.skipped_in_a_row = 0
        self._restart()

    def _restart(self) -> None:
        self._sums.zero_()
        self._steps = self._not_timed = 0
        self._began, self._waited, self._excluded = time.perf_counter(), self._batches.wait_seconds, 0.0
        self._labelled = self._batches.labelled
        self._paused: float | None = None

    def add(self, result: StepResult) -> None:
        """One step's loss, its two terms and its accuracy; nothing is read here."""
        loss, label, distillation, top1 = result.losses
        terms = torch.stack([loss, label, torch.zeros_like(label) if distillation is None else distillation, top1])
        self._sums += torch.where(result.finite, terms, 0.0)
        self._skipped.add(result.finite)
        self._steps += 1

    def state(self) -> dict[str, Any]:
        """What was added up since the last row, over all ranks, as JSON values."""
        sums = self._ranks.total(self._sums.clone()).tolist()
        return {"sums": sums, "ranks": self._ranks.world_size, "steps": self._steps, "skipped": self._skipped.state()}

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from another meter's `state`, also with another number of ranks."""
        if state is not None:
            if self._ranks.main:  # the sums are those of all ranks, and are added up again
                sums = torch.tensor(state["sums"], dtype=torch.float64, device=self._sums.device)
                self._sums += sums * (self._ranks.world_size / state["ranks"])  # of each rank's losses the mean counts
            self._steps = self._not_timed = state["steps"]
            self._skipped.load(state["skipped"])

    def pause(self) -> None:
        """What follows (an evaluation, a checkpoint) is not training time."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        assert self._paused is not None
        self._excluded += time.perf_counter() - self._paused
        self._paused = None

    def row(self, step: int, epoch: float, lr: float) -> dict[str, Any]:
        """A line of metrics.jsonl for the steps since the last one; this is where the host waits for the device.

        Raises:
            ValueError: none of these steps had a readable image, on any rank.
        """
        ranks, scale = self._ranks, self._scale
        # One sum over ranks for everything: each writes its own waiting into a place that is 0 at the others.
        own = torch.zeros(1 + ranks.world_size, dtype=torch.float64)
        own[0] = self._batches.labelled - self._labelled
        own[1 + ranks.rank] = self._batches.wait_seconds - self._waited
        both = ranks.total(torch.cat([self._sums, own.to(ranks.device)])).tolist()
        sums, labelled, waits = both[: len(SUMS)], both[len(SUMS)], both[len(SUMS) + 1 :]
        if not labelled:
            path, reason = next(iter(self._batches.bad_images.items()))
            raise ValueError(f"no image of the steps up to {step} is readable; the first is {path}: {reason}")
        skipped, self.skipped_in_a_row = self._skipped.read()
        count = (self._steps - skipped) * ranks.world_size
        mean = {name: value / count if count else None for name, value in zip(SUMS, sums, strict=True)}
        seconds = max(time.perf_counter() - self._began - self._excluded, 1e-9)
        shares = [min(wait / seconds, 1.0) for wait in waits]
        speed = max(self._steps - self._not_timed, 1) * scale.batch_size / seconds
        teacher = self._step.teacher_watch.seconds() / seconds if self._step.teacher else None
        row = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": mean["loss"],
            "label": mean["label"],
            "distillation": mean["distillation"] if self._step.teacher else None,
            "top1": 100 * mean["top1"] if count else None,
            "skipped": skipped,
            "lr": lr,
            "images_per_second": speed,
            "data_wait": sum(shares) / len(shares),
            "teacher_share": teacher,
            "memory": memory_used(ranks.device),
            "eta": (scale.total_steps - step) * scale.batch_size / speed,
        }
        if scale.flops and scale.peak:
            row["mfu"] = speed * scale.flops / scale.peak
        if max(shares) > row["data_wait"] + _NAMED:
            row["slowest_wait"] = max(shares)
            row["slowest_rank"] = shares.index(max(shares))
        self._restart()
        return row


def memory_used(device: torch.device) -> int:
    """The most bytes of memory that this process has held so far: of the GPU's, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(card: str) -> float | None:
    """Dense bf16 FLOP/s of a card by the name its driver gives; None for one that is not in the table."""
    # "NVIDIA L40" is no L4: a name counts only as whole words.
    words = f" {card} ".replace("-", " ")
    return next((1e12 * peak for name, peak in _PEAKS.items() if f" {name} " in words), None)


def forward_flops(model: nn.Module, image_size: int) -> float | None:
    """FLOPs of one image's forward pass; None for a model that cannot be run without its values."""
    if isinstance(model, Frozen):
        model = model.model
    if isinstance(model, VisionTransformer):
        return _transformer_flops(model.config)
    shapes = copy.deepcopy(model).to("meta").eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            dtype = next((parameter.dtype for parameter in shapes.parameters()), torch.float32)
            shapes(torch.empty(1, 3, image_size, image_size, dtype=dtype, device="meta"))
    except Exception:  # whatever a foreign model's forward may raise on tensors without values
        return None
    return float(counter.get_total_flops()) or None


def training_flops(student: nn.Module, teacher: nn.Module | None, image_size: int) -> float | None:
    """FLOPs of one image in a training step: three forward passes' worth of the student, one of its teacher."""
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
