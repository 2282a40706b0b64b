"""Checkpoints written beside the training: a copy of the tensors now, the file in a thread.

    with Snapshots(run, keep=2, device=device, saved=None) as snapshots:
        snapshots.take(step, tensors_of(model, ema, optimizer), state)    # returns when the tensors are copied
        snapshots.offer(step, model.state_dict(), {"top1": 81.2})         # written when it is the best so far

One is written at a time: `take` waits for the write before it. If the disk refuses, that is a warning; the run goes
on, and the checkpoint before stays the newest. Leaving the context waits for the last write.

On a GPU the copy to pinned memory is one more piece of work between two steps: the host does not wait for it. The CUDA
side has not yet been run on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from . import checkpoint

logger = logging.getLogger(__name__)


class Snapshots:
    """Writes the checkpoints of one run, of which the `keep` newest stay.

    `before` is called in the thread before each checkpoint is written: what it syncs is durable first.
    """

    def __init__(
        self, run: Path, keep: int, device: torch.device, saved: int | None, before: Callable[[], None] = lambda: None
    ) -> None:
        self._run, self._keep, self._device, self._before = run, keep, device, before
        self._memory: dict[tuple[str, str], Tensor] = {}  # the copies, by file and name; a shape never changes
        self._thread = ThreadPoolExecutor(1, "deit_fast-checkpoint")
        self._writing: Future[None] | None = None
        found = checkpoint.best(run)
        self._best: float = found[1]["top1"] if found else -1.0
        self.saved = saved  # the step of the newest checkpoint on disk, or None
        self.failures: list[str] = []  # a sentence for each write that the disk refused

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def wait(self) -> None:
        """Wait for the last write."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def take(self, step: int, tensors: checkpoint.Tensors, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`; the tensors may change as soon as this returns."""

        def write(copies: checkpoint.Tensors) -> None:
            self._before()
            checkpoint.save(self._run, step, copies, state, self._keep)
            self.saved = step

        self._submit(f"the checkpoint of step {step}", tensors, write)

    def offer(self, step: int, tensors: Mapping[str, Tensor], score: Mapping[str, Any]) -> None:
        """Write these weights, and their score beside them, if its "top1" is higher than that of the best on disk."""

        def write(copies: checkpoint.Tensors) -> None:
            checkpoint.save_best(self._run, step, copies["best"], score)
            self._best = score["top1"]

        self.wait()
        if score["top1"] > self._best:
            self._submit(f"the best weights, of step {step},", {"best": dict(tensors)}, write)

    def _submit(self, what: str, tensors: checkpoint.Tensors, write: Callable[[checkpoint.Tensors], None]) -> None:
        self.wait()  # so nobody reads the copies any more
        copies = {
            file: {name: self._copy(file, name, values[name]) for name in values} for file, values in tensors.items()
        }
        copied = torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None

        def body() -> None:
            if copied is not None:
                copied.synchronize()
            try:
                write(copies)
            except (OSError, SafetensorError) as error:
                before = "" if self.saved is None else f"; the one of step {self.saved} stays"
                self.failures.append(f"{what} is not written ({error}){before}")
                logger.warning(f"{self.failures[-1]}, and the training goes on")

        self._writing = self._thread.submit(body)

    def _copy(self, file: str, name: str, value: Tensor) -> Tensor:
        """In host memory; on a GPU complete when its present work is done."""
        if (file, name) not in self._memory:
            pinned = self._device.type == "cuda"
            self._memory[file, name] = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=pinned)
        return self._memory[file, name].copy_(value.detach(), non_blocking=True)
