"""Counts that stay on the device until they are read: skipped steps, and the time of one part of every step.

    skipped = SkippedSteps(device)
    skipped.add(result.finite)              # after every step; the host does not wait
    count, in_a_row = skipped.read()        # at a log line, which waits for the device anyway

    with Stopwatch(device) as watch:
        teacher(images)
    watch.seconds()                         # where the host has waited for the device anyway

`TrainingStep` skips a step on every rank when the loss or a gradient is NaN or infinite: weights, moments, averages and
statistics keep their bits. The learning rate depends on the number of the step alone and goes on. So a single bad batch
costs one step; after `--skip-limit` of them in a row the run ends.
"""

from __future__ import annotations

import math
import time
from collections import deque

import torch
from torch import Tensor, nn


def gradient_of(loss: Tensor) -> Tensor:
    """The gradient that `backward` starts from: 1, or NaN when the loss is NaN or infinite.

    The gradients are then NaN as well, and ranks exchange gradients anyway: every rank notices a bad loss of any rank.
    """
    return torch.where(loss.detach().isfinite(), 1.0, math.nan)


class Statistics:
    """A model's buffers: a forward pass changes batch norm's before anyone knows whether the step is skipped."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._before: list[Tensor] = []

    def remember(self) -> None:
        """Copy the buffers before a step."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    def restore_unless(self, finite: Tensor) -> None:
        """Restore where the flag, a bool scalar on the device, is false."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))


class SkippedSteps:
    """Counts skipped steps. The flags are the same on every rank, so the ranks need not communicate."""

    _NAMES = ("count", "row", "longest")

    def __init__(self, device: torch.device) -> None:
        self._values = torch.zeros(3, dtype=torch.int64, device=device)
        self._count, self._row, self._longest = self._values  # views

    def add(self, finite: Tensor) -> None:
        """One step's flag, a bool scalar on the device."""
        skipped = finite.logical_not().long()
        self._count += skipped
        self._row.add_(1).mul_(skipped)
        torch.maximum(self._longest, self._row, out=self._longest)

    def read(self) -> tuple[int, int]:
        """(steps skipped, longest series of them) since the last call; the series may have begun before it."""
        count, _, longest = self._values.tolist()
        self._count.zero_()
        self._longest.copy_(self._row)
        return count, longest

    def state(self) -> dict[str, int]:
        """JSON values for `load`."""
        return dict(zip(self._NAMES, self._values.tolist(), strict=True))

    def load(self, state: dict[str, int]) -> None:
        self._values.copy_(torch.tensor([state[name] for name in self._NAMES]))


class Stopwatch:
    """Adds up the time spent inside `with`: by a pair of events on a GPU, by the host's clock on a CPU."""

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
        """The time of all parts that have finished since the last call."""
        while self._events and self._events[0][1].query():
            began, ended = self._events.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
        seconds, self._seconds = self._seconds, 0.0
        return seconds
