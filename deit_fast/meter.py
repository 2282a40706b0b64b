"""Numbers of the steps since the last line of metrics.jsonl, kept on the device until they are read."""

from __future__ import annotations

import time
from typing import Any

import torch

from .data import TrainLoader
from .distributed import Ranks
from .skipped_steps import SkippedSteps
from .step import StepResult


class Meter:
    """Sums losses on the device, those of steps that were left out excepted; `row` reads them, once an interval.

    Args:
        batches: whose waiting time is reported.
        ranks: the losses are means over all of them.
        batch_size: images of a step, all ranks together.

    Attributes:
        skipped_in_a_row: the most steps in a row that were left out, as of the last row.
    """

    def __init__(self, batches: TrainLoader, ranks: Ranks, batch_size: int) -> None:
        self._batches, self._ranks, self._batch_size = batches, ranks, batch_size
        self._sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        self._skipped = SkippedSteps(ranks.device)
        self.skipped_in_a_row = 0
        self._distils = False
        self._restart()

    def _restart(self) -> None:
        self._sums.zero_()
        self._steps = self._not_timed = 0
        self._began, self._waited, self._excluded = time.perf_counter(), self._batches.wait_seconds, 0.0
        self._paused: float | None = None

    def add(self, result: StepResult) -> None:
        """One step's loss and its two terms; nothing is read here."""
        loss, label_term, teacher_term = result.losses
        self._distils = teacher_term is not None
        terms = torch.stack([loss, label_term, torch.zeros_like(label_term) if teacher_term is None else teacher_term])
        self._sums += torch.where(result.finite, terms, 0.0)
        self._skipped.add(result.finite)
        self._steps += 1

    def state(self) -> dict[str, Any]:
        """What was added up since the last row, over all ranks, as JSON values."""
        sums = self._ranks.total(self._sums.clone()).tolist()
        return {"sums": sums, "steps": self._steps, "skipped": self._skipped.state()}

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from another meter's `state`, also with another number of ranks."""
        if state is not None:
            if self._ranks.main:  # the sums are those of all ranks, and are added up again
                self._sums += torch.tensor(state["sums"], dtype=torch.float64, device=self._sums.device)
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
        """A line of metrics.jsonl for the steps since the last one; this is where the host waits for the device."""
        skipped, self.skipped_in_a_row = self._skipped.read()
        count = (self._steps - skipped) * self._ranks.world_size
        sums = self._ranks.total(self._sums).tolist()
        loss, label, distillation = (value / count if count else None for value in sums)
        seconds = max(time.perf_counter() - self._began - self._excluded, 1e-9)
        row = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": loss,
            "label": label,
            "distillation": distillation if self._distils else None,
            "skipped": skipped,
            "lr": lr,
            "images_per_second": (self._steps - self._not_timed) * self._batch_size / seconds,
            "data_wait": min((self._batches.wait_seconds - self._waited) / seconds, 1.0),
        }
        self._restart()
        return row
