"""`--dry-run`: everything set up, a few steps, and what the run would need; nothing is written.

    python -m deit_fast.train --data /imagenet --dry-run

The step is timed on one batch, the data path without steps, then both together: whichever of the first two is slower is
the limit, and where together they are slower than either, they compete for the same cores. All ranks measure at once.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from ..config import Config
from ..data import Batch, TrainLoader
from ..model import Normalisation
from ..ranks.group import Ranks
from ..run.report import Reporter
from ..weights.build import Frozen
from ..weights.trained import classifier
from .meter import memory_used
from .step import TrainingStep

_SECONDS = 4.0  # of each measurement, where a step is not longer
_STEPS = 2, 200  # fewest and most steps of a measurement
_LOGS = 1 << 20  # bytes of logs and curves, about


@dataclass(frozen=True)
class Plan:
    """What was measured, and what follows; images/s of all processes together.

    Attributes:
        step_alone, data_alone, together: images/s.
        images: of the whole run, every epoch counted.
        processes: ranks, one a GPU where there are GPUs.
        teacher_share: of the step's time; None without a teacher.
        memory, memory_limit: bytes, of the rank that has least left.
        disk, disk_free: bytes.
        on_gpu: where steps run.
        cores: of a process.
        read_share, decode_share: of the time of decoding threads.
    """

    step_alone: float
    data_alone: float
    together: float
    images: int
    processes: int
    teacher_share: float | None
    memory: int
    memory_limit: int
    disk: int
    disk_free: int
    on_gpu: bool
    cores: int
    read_share: float
    decode_share: float

    @property
    def hours(self) -> float:
        """Without evaluations and checkpoints."""
        return self.images / self.together / 3600

    def lines(self) -> list[tuple[str, str, str]]:
        """(what, value, reason), as decisions are printed."""
        where = "GPU" if self.on_gpu else "process"
        spare = self.memory_limit - self.memory
        labels = "" if self.teacher_share is None else f"the teacher takes {self.teacher_share:.0%} of it"
        rate = self.together / self.processes
        formula = f"{self.images:,} images / ({self.processes} x {rate:,.0f} images/s), without evaluations"
        return [
            ("memory", f"{_gib(self.memory)} of {_gib(self.memory_limit)}", f"the fullest {where}; {_gib(spare)} left"),
            ("disk", f"{_gib(self.disk)} of {_gib(self.disk_free)} free", "checkpoints and logs" + self._too_full()),
            ("data", f"{self.data_alone:,.0f} images/s alone", "read, decoded, augmented"),
            ("step", f"{self.step_alone:,.0f} images/s alone", labels),
            ("together", f"{self.together:,.0f} images/s", ""),
            ("time", f"{_duration(self.hours)}, an estimate", formula),
            ("limit", *self.limit()),
        ]

    def _too_full(self) -> str:
        return ": TOO LITTLE SPACE, type another --out or a smaller --keep" if self.disk > self.disk_free else ""

    def limit(self) -> tuple[str, str]:
        """(what bounds the speed, what to do about it)."""
        slower = min(self.step_alone, self.data_alone)
        if self.together < 0.8 * slower and not self.on_gpu:
            return f"{self.cores} cores, which data and step share", "start fewer other programs, or use a GPU"
        if self.data_alone < self.step_alone:
            if self.read_share > 0.5:
                return "reading files", "copy the data to a local disk, or pack it: python -m deit_fast.data pack"
            if self.decode_share > 0.5:
                advice = "pack them smaller (python -m deit_fast.data pack), or --in-memory where they fit"
                return "decoding images", f"{advice}; {self.cores} cores a process do it now"
            return "augmenting images", "give each process more cores, or install the CUDA extension on a GPU machine"
        if self.teacher_share is not None and self.teacher_share > 0.4:
            return "the step, mostly its teacher", "keep its labels with --teacher-cache, or choose a smaller teacher"
        return "the step", "add GPUs, or choose a smaller model or image size"


def rehearse(
    config: Config,
    run: Path,
    step: TrainingStep,
    batches: TrainLoader,
    ranks: Ranks,
    reporter: Reporter,
    schedule: Callable[[int], float],
    total_steps: int,
) -> Plan:
    """Take two steps, measure, print the plan and return it; the model has then changed, the disk has not.

    Raises:
        ValueError: the loss of the first steps is no number.
    """
    step.model.train(config.train_mode == "train")
    batches.seek(0)  # the speed of any steps: a run that is almost done has few left
    stream = _endless(batches)
    for batch in islice(stream, 2):
        loss = step(batch, schedule(batch.step)).losses.loss
    if not torch.isfinite(loss):
        raise ValueError(f"the loss of the second step is {loss.item()}: try half the rate, --lr {config.lr / 2:g}")
    reporter.say("two steps done; now the speed of each part")

    step.teacher_watch.seconds()
    lr = schedule(0)
    alone, teacher = _measure(lambda: step(batch, lr), ranks, step)
    before = vars(batches.seconds).copy()
    data = max(ranks.gather(_seconds_of_a_batch(stream)))
    spent = {name: value - before[name] for name, value in vars(batches.seconds).items()}
    together, _ = _measure(lambda: step(next(stream), lr), ranks, step)
    stream.close()

    work = spent["read"] + spent["decode"] + spent["augment"] + 1e-9
    memory, limit = max(ranks.gather(_memory(ranks.device)), key=lambda pair: pair[0] - pair[1])
    standing = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    plan = Plan(
        step_alone=config.batch_size / alone,
        data_alone=config.batch_size / data,
        together=config.batch_size / together,
        images=total_steps * config.batch_size,
        processes=ranks.world_size,
        teacher_share=teacher / alone if step.teacher else None,
        memory=memory,
        memory_limit=limit,
        disk=checkpoint_bytes(step) * (config.keep + 1) + _LOGS,
        disk_free=shutil.disk_usage(standing).free,
        on_gpu=ranks.device.type == "cuda",
        cores=ranks.cores,
        read_share=spent["read"] / work,
        decode_share=spent["decode"] / work,
    )
    reporter.say("the plan")
    for line in plan.lines():
        reporter.decide(*line)
    return plan


def stand_in(teacher: Config, _student: Config, _spec: str, classes: list[str], normalised: Normalisation) -> Frozen:
    """In place of `load_teacher`: the recipe's architecture, as fast as if it had been trained."""
    return Frozen(classifier(teacher, len(classes)), normalised)


def checkpoint_bytes(step: TrainingStep) -> int:
    """Of one checkpoint: the weights, AdamW's two averages of each, and the moving average."""
    weights = sum(value.numel() * value.element_size() for value in step.model.state_dict().values())
    return weights * (4 if step.ema else 3)


def _endless(batches: TrainLoader) -> Iterator[Batch]:
    while True:
        yield from batches


def _seconds_of_a_batch(stream: Iterator[Batch]) -> float:
    """Of this rank alone; those built ahead come first and do not count."""
    for _ in islice(stream, 4):
        continue
    fewest, most = _STEPS
    began, count = time.perf_counter(), 0
    while count < fewest or (count < most and time.perf_counter() - began < _SECONDS):
        next(stream)
        count += 1
    return (time.perf_counter() - began) / count


def _measure(body: Callable[[], object], ranks: Ranks, step: TrainingStep) -> tuple[float, float]:
    """(seconds of one call, of its teacher's part), on the slowest rank; all ranks make equally many calls."""
    fewest, most = _STEPS
    body()
    first, _ = _timed(body, 1, ranks, step)
    count = min(max(fewest, int(_SECONDS / max(ranks.gather(first)))), most)
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
    """(bytes used at most, bytes there are) on this rank's device."""
    if device.type == "cuda":
        return memory_used(device), torch.cuda.get_device_properties(device).total_memory
    return memory_used(device), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
