"""`--dry-run`: set everything up, take a few steps, print what the run would need; write nothing.

    python -m deit_fast.train --data /imagenet --dry-run

Steps are timed on one batch, then loading without steps, then both together: the slower of the first two is the limit;
if both together are slower still, they compete for the same cores. All ranks measure at the same time.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import torch

from ..data import Batch
from ..ranks.group import Ranks
from ..run.report import Reporter
from .meter import memory_used
from .prepare import Prepared
from .step import TrainingStep

_SECONDS = 4.0  # of each measurement, unless its fewest steps take longer
_FEWEST, _MOST = 2, 200  # steps of a measurement
_LOGS = 1 << 20  # bytes of logs and curves, about


@dataclass(frozen=True)
class Plan:
    """What was measured, and the run that it is for."""

    step_alone: float  # images/s of all processes, as the next two
    data_alone: float
    together: float
    images: int  # of the whole run, once for every epoch
    processes: int
    teacher_share: float | None  # of the step's time; None without a teacher
    memory: int  # bytes, of the rank that has least left, as its limit
    memory_limit: int
    disk: int  # bytes, as the free ones
    disk_free: int
    on_gpu: bool
    cores: int  # of a process
    read_share: float  # of the time of decoding threads, as the next one
    decode_share: float

    @property
    def hours(self) -> float:
        """Without evaluations and checkpoints."""
        return self.images / self.together / 3600

    def lines(self) -> list[tuple[str, str, str]]:
        """(what, value, reason) of each, for `Reporter.decide`."""
        where = "GPU" if self.on_gpu else "process"
        spare = self.memory_limit - self.memory
        labels = "" if self.teacher_share is None else f"the teacher takes {self.teacher_share:.0%} of it"
        rate = self.together / self.processes
        duration = f"{self.hours:.1f} hours" if self.hours >= 1 else f"{60 * self.hours:.1f} minutes"
        too_full = ": TOO LITTLE SPACE, type another --out or a smaller --keep" if self.disk > self.disk_free else ""
        formula = f"{self.images:,} images / ({self.processes} x {rate:,.0f} images/s), without evaluations"
        return [
            ("memory", f"{_gib(self.memory)} of {_gib(self.memory_limit)}", f"the fullest {where}; {_gib(spare)} left"),
            ("disk", f"{_gib(self.disk)} of {_gib(self.disk_free)} free", "checkpoints and logs" + too_full),
            ("data", f"{self.data_alone:,.0f} images/s alone", "read, decoded, augmented"),
            ("step", f"{self.step_alone:,.0f} images/s alone", labels),
            ("together", f"{self.together:,.0f} images/s", ""),
            ("time", f"{duration}, an estimate", formula),
            ("limit", *self.limit()),
        ]

    def limit(self) -> tuple[str, str]:
        """(what bounds the speed, what to do about it)."""
        slower = min(self.step_alone, self.data_alone)
        if self.together < 0.8 * slower and not self.on_gpu:
            return f"{self.cores} cores, which data and step share", "start fewer other programs, or use a GPU"
        if self.data_alone < self.step_alone:
            if self.read_share > 0.5:
                return "reading files", "copy the data to a local disk, or pack it: deit-fast data pack"
            if self.decode_share > 0.5:
                advice = "pack them smaller (deit-fast data pack), or --in-memory where they fit"
                return "decoding images", f"{advice}; {self.cores} cores a process do it now"
            return "augmenting images", "give each process more cores, or install the CUDA extension on a GPU machine"
        if self.teacher_share is not None and self.teacher_share > 0.4:
            return "the step, mostly its teacher", "keep its labels with --teacher-cache, or choose a smaller teacher"
        return "the step", "add GPUs, or choose a smaller model or image size"


def make_plan(run: Path, prepared: Prepared, reporter: Reporter) -> Plan:
    """Take two steps, measure, print the plan and return it. This changes the model, but no file."""
    config, batch_size = prepared.config, prepared.config.optim.batch_size
    step, batches, ranks, schedule = prepared.step, prepared.batches, prepared.ranks, prepared.schedule
    step.model.train(config.model.train_mode == "train")
    batches.seek(0)  # any steps will do, and a run that is almost finished has few left
    stream = (batch for again in repeat(batches) for batch in again)  # endless
    for batch in islice(stream, 2):
        loss = step(batch, schedule(batch.step)).losses.loss
    if not torch.isfinite(loss):
        half = config.optim.lr / 2
        raise ValueError(f"the loss of the second step is {loss.item()}: try half the rate, --lr {half:g}")
    reporter.say("two steps done; now the speed of each part")

    lr = schedule(0)
    alone, teacher = _measure(lambda: step(batch, lr), ranks, step)
    before = vars(batches.seconds).copy()
    data = max(ranks.gather(_seconds_of_a_batch(stream)))
    spent = {name: value - before[name] for name, value in vars(batches.seconds).items()}
    together, _ = _measure(lambda: step(next(stream), lr), ranks, step)
    stream.close()

    work = spent["read"] + spent["decode"] + spent["augment"] + 1e-9
    weights = sum(value.nbytes for value in step.model.state_dict().values())
    copies = 4 if step.ema else 3  # in a checkpoint: the weights, AdamW's two moments of each, the moving average
    memory, limit = max(ranks.gather(_memory(ranks.device)), key=lambda pair: pair[0] - pair[1])
    existing = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    plan = Plan(
        step_alone=batch_size / alone,
        data_alone=batch_size / data,
        together=batch_size / together,
        images=prepared.data.total_steps * batch_size,
        processes=ranks.world_size,
        teacher_share=teacher / alone if step.teacher else None,
        memory=memory,
        memory_limit=limit,
        disk=copies * weights * (config.run.keep + 1) + _LOGS,
        disk_free=shutil.disk_usage(existing).free,
        on_gpu=ranks.device.type == "cuda",
        cores=ranks.cores,
        read_share=spent["read"] / work,
        decode_share=spent["decode"] / work,
    )
    reporter.say("the plan")
    for line in plan.lines():
        reporter.decide(*line)
    return plan


def _seconds_of_a_batch(stream: Iterator[Batch]) -> float:
    """The mean on this rank, without the first batches, which were loaded ahead."""
    for _ in islice(stream, 4):
        continue
    began, count = time.perf_counter(), 0
    while count < _FEWEST or (count < _MOST and time.perf_counter() - began < _SECONDS):
        next(stream)
        count += 1
    return (time.perf_counter() - began) / count


def _measure(body: Callable[[], object], ranks: Ranks, step: TrainingStep) -> tuple[float, float]:
    """(seconds of a call, seconds of its teacher) on the slowest rank; every rank makes the same number of calls."""
    body()
    first, _ = _timed(body, 1, ranks, step)
    count = min(max(_FEWEST, int(_SECONDS / max(ranks.gather(first)))), _MOST)
    seconds, teacher = max(ranks.gather(_timed(body, count, ranks, step)))
    return seconds / count, teacher / count


def _timed(body: Callable[[], object], count: int, ranks: Ranks, step: TrainingStep) -> tuple[float, float]:
    _finish(ranks)
    step.teacher_watch.seconds()
    began = time.perf_counter()
    for _ in range(count):
        body()
    _finish(ranks)
    return time.perf_counter() - began, step.teacher_watch.seconds()


def _finish(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    ranks.wait()


def _memory(device: torch.device) -> tuple[int, int]:
    """(peak bytes used, bytes in total) on this rank's device."""
    if device.type == "cuda":
        return memory_used(device), torch.cuda.get_device_properties(device).total_memory
    return memory_used(device), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
