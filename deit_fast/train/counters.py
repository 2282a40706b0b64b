"""Counts that stay on the device until they are read: skipped steps, and the time of one part of every step.

    skipped = SkippedSteps(device)
    skipped.add(result.finite)              # after every step; the host does not wait
    count, in_a_row = skipped.read()        # at a log line, which waits for the device anyway

    with Stopwatch(device) as watch:
        teacher(images)
    watch.seconds()                         # where the host has waited for the device anyway

`TrainingStep` skips a step on every rank when the loss or a gradient is NaN or infinite: weights, moments, averages and
statistics stay as they are, to the bit. The schedule is a function of the step's number and goes on. A single bad batch
costs one step so; after `--skip-limit` of them in a row the run ends.
"""

from __future__ import annotations

import math
import time
from collections import deque

import torch
from torch import Tensor, nn


def gradient_of(loss: Tensor) -> Tensor:
    """What `backward` starts with: 1, or NaN where the loss is no number.

    So a bad loss makes the gradients bad, which ranks share: all of them see it without asking each other.
    """
    return torch.where(loss.detach().isfinite(), 1.0, math.nan)


class Statistics:
    """A model's buffers: batch norm's, which a forward pass changes before its numbers are known to be any."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._before: list[Tensor] = []

    def remember(self) -> None:
        """As they are before a step."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def restore_unless(self, finite: Tensor) -> None:
        """Put them back where the flag, a bool scalar on the device, is false."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))


class SkippedSteps:
    """Counts; the flags are the same on every rank, so no rank asks another."""

    def __init__(self, device: torch.device) -> None:
        self._count, self._row, self._longest = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))

    def add(self, finite: Tensor) -> None:
        """One step's flag, a bool scalar on the device."""
        skipped = finite.logical_not().long()
        self._count += skipped
        self._row = (self._row + 1) * skipped
        self._longest = torch.maximum(self._longest, self._row)

    def read(self) -> tuple[int, int]:
        """(steps skipped, most of them in a row) since the last call; a row may have begun before it."""
        count, longest = torch.stack([self._count, self._longest]).tolist()
        self._count.zero_()
        self._longest = self._row.clone()
        return count, longest

    def state(self) -> dict[str, int]:
        """What `load` takes, as JSON values."""
        count, row, longest = torch.stack([self._count, self._row, self._longest]).tolist()
        return {"count": count, "row": row, "longest": longest}

    def load(self, state: dict[str, int]) -> None:
        self._count.fill_(state["count"])
        self._row.fill_(state["row"])
        self._longest.fill_(state["longest"])


class Stopwatch:
    """Adds up what lies between `__enter__` and `__exit__`: two events a time on a GPU, the host's clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds = 0.0
        self._began: float | torch.cuda.Event = 0.0

    def __enter__(self) -> Stopwatch:
        self._began = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        ended = self._now()
        if self._cuda:
            self._events.append((self._began, ended))
        else:
            self._seconds += ended - self._began

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        """Of all that has finished since the last call."""
        while self._events and self._events[0][1].query():
            began, ended = self._events.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
        seconds, self._seconds = self._seconds, 0.0
        return seconds
