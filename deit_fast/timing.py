"""Seconds that a device spends in one part of every step, without waiting for it.

watch = Stopwatch(device)
with watch:
    teacher(images)
watch.seconds()         # where the host has waited for the device anyway
"""

from __future__ import annotations

import time
from collections import deque

import torch


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
