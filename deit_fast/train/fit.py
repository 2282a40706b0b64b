"""How many images go through the model at once: no more than the device's memory holds.

A process's rows go through the model `--micro-batch` at a time; the gradient is that of all rows, whatever the size.
When the device is out of memory the size is halved, and the rows are tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from ..command import OfOneRank
from ..data import Batch
from ..data.batch import parts, slices
from ..ranks.group import Ranks
from ..run.report import Reporter
from .meter import Losses

Learn = Callable[[Batch], Losses]  # forward and backward: adds the gradient of these rows
Undo = Callable[[], None]  # no gradients, and the batch-norm statistics of before


class Fit:
    """The parts in which this rank's rows of a global batch go through the model.

    `no_sync` is DDP's: a context in which gradients are added up and not exchanged.
    """

    def __init__(self, batch_size: int, micro_batch: int, image_size: int, ranks: Ranks, reporter: Reporter) -> None:
        self._batch_size, self._image_size, self._ranks, self._reporter = batch_size, image_size, ranks, reporter
        self._rows = batch_size // ranks.world_size
        self.slices = slices(self._rows, micro_batch)
        self.no_sync: Callable[[], AbstractContextManager] = nullcontext
        self._tried = ranks.world_size == 1
        share = f", {self.at_once} at once" if self.slices > 1 else ""
        reporter.decide("processes", f"{ranks.world_size}, {self._rows} images a step each{share}", str(ranks.device))

    @property
    def at_once(self) -> int:
        """Rows of a part."""
        return self._rows // self.slices

    def __call__(self, batch: Batch, learn: Learn, undo: Undo) -> Losses:
        """The losses of all rows, whose gradient is there afterwards.

        Raises:
            ValueError: one image at a time is too much for the device's memory.
            OfOneRank: of several ranks this one ran out of memory, in a later step than its first.
        """
        # Every rank first tries one batch alone, and all agree on the parts: later, the others would wait for the
        # gradients of a rank that is out of memory.
        while not self._tried:
            lacking = self._learn_parts(batch, learn, undo, alone=True) is None
            undo()
            self._tried = not self._ranks.total(torch.tensor(float(lacking), device=self._ranks.device)).item()
            if not self._tried:
                self._halve()
        while (losses := self._learn_parts(batch, learn, undo)) is None:
            self._halve()
        return losses

    def _learn_parts(self, batch: Batch, learn: Learn, undo: Undo, alone: bool = False) -> Losses | None:
        """None, and no gradients, when the device is out of memory.

        With `alone`, no gradients are exchanged; without, a rank that is out of memory ends, since the others already
        wait for its gradients.
        """
        total: Losses | None = None
        try:
            for index, part in enumerate(parts(batch, self.at_once)):
                with self.no_sync() if alone or index < self.slices - 1 else nullcontext():
                    losses = learn(part)
                total = losses if total is None else Losses(*map(torch.add, total, losses))
            return total
        except torch.OutOfMemoryError as error:
            undo()
            if self._ranks.world_size > 1 and not alone:
                rows = self.at_once
                less = f"add --micro-batch {rows // 2} to" if rows > 1 else "give the GPU to this run alone and repeat"
                raise OfOneRank(
                    f"rank {self._ranks.rank} ran out of memory with {rows} images at once, which fitted before: "
                    f"{less} the command, and it continues from the last checkpoint"
                ) from error
        return None

    def _halve(self) -> None:
        rows = self.at_once
        if rows == 1:
            raise ValueError(
                f"not even one image at a time of {self._image_size} x {self._image_size} pixels fits "
                f"into the memory of {self._ranks.device}: type a smaller --model or --image-size"
            )
        if self._ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        self.slices = slices(self._rows, rows // 2)
        self._reporter.say(
            f"out of memory with {rows} images at once: {self.at_once} from now on, and still "
            f"{self._batch_size} a step (type --micro-batch {self.at_once} to begin with that)"
        )
