"""How fast a run would be if batches were there at once, or the teacher, or the augmentation, took no time.

Measured by a few steps of each at the end of a training, when all of it is on disk: at learning rate 0, over the run's
first batches. It may take SHARE of the training's time and MOST_SECONDS; a shorter training leaves it out and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import repeat
from time import perf_counter
from typing import Any

import torch

from ..data.batch import Batch
from .prepare import Prepared

SHARE, MOST_SECONDS = 0.02, 60.0
WARM_UP, FEWEST, MOST = 4, 4, 20  # steps of a measurement: those before it, and those that count


def headroom(prepared: Prepared, seconds: float, images_per_second: float) -> dict[str, Any]:
    """{"as it is", "loader", "teacher", "augment": images/s, "steps"}, or {"left_out": why}; one process only.

    Args:
        seconds: how long the training took.
        images_per_second: its newest speed.
    """
    if prepared.ranks.world_size > 1:
        return {"left_out": "it is measured in trainings of one process only"}
    batch_size = prepared.data.optim.batch_size
    budget = min(SHARE * seconds, MOST_SECONDS)
    count = int(budget / 4 / (batch_size / images_per_second)) - WARM_UP
    if count < FEWEST:
        return {"left_out": f"a few steps of each would have taken more than {SHARE:.0%} of so short a training"}
    count = min(count, MOST)
    devices = [prepared.ranks.device] if prepared.ranks.device.type == "cuda" else []
    step, teacher = prepared.step, prepared.step.teacher
    measured: dict[str, Any] = {"steps": count}
    prepared.batches.seek(0)
    with torch.random.fork_rng(devices), closing(iter(prepared.batches)) as batches:
        kept = next(batches)

    def images_a_second(batches: Iterable[Batch], labels: Callable[[Batch], Any] | None) -> float:
        step.teacher = labels
        with torch.random.fork_rng(devices), closing(_own(batches)) as own:
            for _ in range(WARM_UP):
                step(next(own), 0.0)
            _synchronize(prepared)
            began = perf_counter()
            for _ in range(count):
                step(next(own), 0.0)
            _synchronize(prepared)
            return batch_size * count / (perf_counter() - began)

    try:
        if prepared.data.total_steps >= WARM_UP + count:
            measured["as it is"] = images_a_second(prepared.batches, teacher)
            if teacher is not None:
                measured["teacher"] = images_a_second(prepared.batches, _remembered(teacher))
            if not prepared.data.config.in_memory:  # else nothing is read, and the loader is the augmentation
                unaugmented = prepared.loaders.training(
                    range(prepared.data.total_steps), device=torch.device("meta"), in_memory=False
                )
                measured["augment"] = images_a_second((kept for _ in unaugmented), teacher)
        measured["loader"] = images_a_second(repeat(kept), teacher)
    finally:
        step.teacher = teacher
    return measured


def _own(batches: Iterable[Batch]) -> Iterator[Batch]:
    """An iterator that can be closed, and closes what it goes through."""
    yield from batches


def _remembered(teacher: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
    """The teacher's labels of the first rows of each number: as fast as labels can be."""
    known: dict[int, Any] = {}

    def labels(batch: Batch) -> Any:
        rows = len(batch.labels)
        if rows not in known:
            known[rows] = teacher(batch)
        return known[rows]

    return labels


def _synchronize(prepared: Prepared) -> None:
    if prepared.ranks.device.type == "cuda":
        torch.cuda.synchronize(prepared.ranks.device)
