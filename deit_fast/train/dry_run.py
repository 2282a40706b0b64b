"""How fast a training will be, `--dry-run`, and at its end how fast it could have been, for the report.

    python -m deit_fast.train --data /imagenet --dry-run

Both take steps of the training's own code, and the same ones again with a part that is free: batches that are there at
once, labels that are known. The dry run also loads without steps: the slower of step and data is the limit; if both
together are slower still, they compete for the same cores. Neither writes a file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch

from ..data import Batch
from ..run.report import Reporter
from .meter import Meter, measured_speed, memory_used
from .prepare import Prepared

_SECONDS = 10.0  # of each of the dry run's measurements, unless its fewest steps take longer
_FEWEST, _MOST = 2, 20  # steps of a measurement
_AHEAD = 4  # batches that were loaded before the measurement began, or nearly so
_LOGS = 1 << 20  # bytes of logs and curves, about
SHARE, MOST_SECONDS = 0.02, 60.0  # of the training's time that `headroom` may take


def lines(plan: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, reason) of each, for `Reporter.decide`."""
    where = "GPU" if plan["on_gpu"] else "process"
    labels = "" if plan["teacher_share"] is None else f"the teacher takes {plan['teacher_share']:.0%} of it"
    rate, hours = plan["together"] / plan["processes"], plan["images"] / plan["together"] / 3600
    duration = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    disk, free, memory, limit = (
        f"{plan[name] / 2**30:.2f} GiB" for name in ("disk", "disk_free", "memory", "memory_limit")
    )
    too_full = ": TOO LITTLE SPACE, type another --out or a smaller --keep" if plan["disk"] > plan["disk_free"] else ""
    spare = f"{(plan['memory_limit'] - plan['memory']) / 2**30:.2f} GiB left"
    formula = f"{plan['images']:,} images / ({plan['processes']} x {rate:,.0f} images/s), without evaluations"
    return [
        ("memory", f"{memory} of {limit}", f"the fullest {where}; {spare}"),
        ("disk", f"{disk} of {free} free", "checkpoints and logs" + too_full),
        ("data", f"{plan['data_alone']:,.0f} images/s alone", "read, decoded, augmented"),
        ("step", f"{plan['step_alone']:,.0f} images/s alone", labels),
        ("together", f"{plan['together']:,.0f} images/s", ""),
        ("time", f"{duration}, an estimate", formula),
        ("limit", *limited_by(plan)),
    ]


def limited_by(plan: dict[str, Any]) -> tuple[str, str]:
    """(what bounds the speed, what to do about it)."""
    step, data, cores, teacher = plan["step_alone"], plan["data_alone"], plan["cores"], plan["teacher_share"]
    if plan["together"] < 0.8 * min(step, data) and not plan["on_gpu"]:
        return f"{cores} cores, which data and step share", "start fewer other programs, or use a GPU"
    if data < step:
        if plan["read_share"] > 0.5:
            return "reading files", "copy the data to a local disk, or pack it: deit-fast data pack"
        if plan["decode_share"] > 0.5:
            advice = "pack them smaller (deit-fast data pack), or --in-memory where they fit"
            return "decoding images", f"{advice}; {cores} cores a process do it now"
        return "augmenting images", "give each process more cores, or install the CUDA extension on a GPU machine"
    if teacher is not None and teacher > 0.4:
        return "the step, mostly its teacher", "keep its labels with --teacher-cache, or choose a smaller teacher"
    return "the step", "add GPUs, or choose a smaller model or image size"


def make_plan(run: Path, prepared: Prepared, reporter: Reporter) -> dict[str, Any]:
    """Take steps, measure, print the plan and return it; all ranks at the same time. This changes the model, no file.

    Raises:
        ValueError: the loss of the second step is NaN or infinite.
    """
    config, batch_size = prepared.config, prepared.config.optim.batch_size
    step, batches, ranks = prepared.step, prepared.batches, prepared.ranks
    step.model.train(config.model.train_mode == "train")
    batches.seek(0)  # any steps will do, and a run that is almost finished has few left
    stream = (batch for again in repeat(batches) for batch in again)  # endless
    for batch in islice(stream, 2):
        loss = step(batch, prepared.schedule(batch.step)).losses.loss
    if not torch.isfinite(loss):
        half = config.optim.lr / 2
        raise ValueError(f"the loss of the second step is {loss.item()}: try half the rate, --lr {half:g}")
    reporter.say("two steps done; now the speed of each part")

    lr = prepared.schedule(0)
    speed = partial(measured_speed, batch_size=batch_size, ranks=ranks)
    a_step = batch_size / speed(lambda batch: step(batch, lr), repeat(batch), 1, warm_up=1)
    count = min(max(_FEWEST, int(_SECONDS / a_step)), _MOST)
    step.clock.seconds()  # of the steps so far
    step_alone = speed(lambda batch: step(batch, lr), repeat(batch), count)
    teacher = step.clock.seconds()["teacher"] * step_alone / (count * batch_size)
    data_alone = speed(lambda _: None, stream, count, warm_up=_AHEAD)
    meter = Meter(step.clock, batches, ranks, batch_size=batch_size, total_steps=0, taught=step.teacher is not None)
    together = speed(lambda batch: meter.add(step(batch, lr)), stream, count)
    row = meter.row(0, 0, lr)
    stream.close()

    seconds = row["seconds"]
    work = seconds["read"] + seconds["decode"] + seconds["augment"] + 1e-9
    weights = sum(value.nbytes for value in step.model.state_dict().values())
    copies = 4 if step.ema else 3  # in a checkpoint: the weights, AdamW's two moments of each, the moving average
    memory, limit = max(ranks.gather(_memory(ranks.device)), key=lambda pair: pair[0] - pair[1])
    existing = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    plan = {
        "step_alone": step_alone,  # images/s of all processes, as the next two
        "data_alone": data_alone,
        "together": together,
        "images": prepared.data.total_steps * batch_size,  # of the whole run
        "processes": ranks.world_size,
        "teacher_share": teacher if step.teacher else None,  # of the time of a step alone
        "memory": memory,  # bytes, of the rank that has least left, as its limit
        "memory_limit": limit,
        "disk": copies * weights * (config.run.keep + 1) + _LOGS,
        "disk_free": shutil.disk_usage(existing).free,
        "on_gpu": ranks.device.type == "cuda",
        "cores": ranks.cores,  # of a process
        "read_share": seconds["read"] / work,  # of the time of decoding threads, as the next one
        "decode_share": seconds["decode"] / work,
    }
    reporter.say("the plan")
    for line in lines(plan):
        reporter.decide(*line)
    return plan


def headroom(prepared: Prepared, seconds: float, images_per_second: float) -> dict[str, Any]:
    """{"as it is", "loader", "teacher", "augment": images/s if that were free, "steps"}, or {"left_out": why}.

    Measured at the end of a training, when all of it is on disk: at learning rate 0, over the run's first batches. A
    training of several processes, and one so short that this would take more than SHARE of its time, leaves it out.

    Args:
        seconds: how long the training took.
        images_per_second: its newest speed.
    """
    if prepared.ranks.world_size > 1:
        return {"left_out": "it is measured in trainings of one process only"}
    batch_size = prepared.data.optim.batch_size
    budget = min(SHARE * seconds, MOST_SECONDS)
    count = min(int(budget / 4 / (batch_size / images_per_second)) - _AHEAD, _MOST)
    if count < _AHEAD:
        return {"left_out": f"a few steps of each would have taken more than {SHARE:.0%} of so short a training"}
    step, teacher, steps = prepared.step, prepared.step.teacher, range(prepared.data.total_steps)
    labels: dict[int, Any] = {}  # by their number of rows, as the teacher first gave them

    def remembered(batch: Batch) -> Any:
        rows = len(batch.labels)
        if rows not in labels and teacher is not None:
            labels[rows] = teacher(batch)
        return labels[rows]

    def speed(batches: Iterable[Batch]) -> float:
        return measured_speed(lambda batch: step(batch, 0.0), iter(batches), count, batch_size, prepared.ranks, _AHEAD)

    measured: dict[str, Any] = {"steps": count}
    prepared.batches.seek(0)
    with torch.random.fork_rng([prepared.ranks.device] if prepared.ranks.device.type == "cuda" else []):
        kept = next(iter(prepared.batches))
        if len(steps) >= _AHEAD + count:
            measured["as it is"] = speed(prepared.batches)
            if teacher is not None:
                step.teacher = remembered
                try:
                    measured["teacher"] = speed(prepared.batches)
                finally:
                    step.teacher = teacher
            if not prepared.data.config.in_memory:  # else nothing is read, and the loader is the augmentation
                unaugmented = prepared.loaders.training(steps, device=torch.device("meta"), in_memory=False)
                measured["augment"] = speed(kept for _ in unaugmented)
        measured["loader"] = speed(repeat(kept))
    return measured


def _memory(device: torch.device) -> tuple[int, int]:
    """(peak bytes used, bytes in total) on this rank's device."""
    if device.type == "cuda":
        return memory_used(device), torch.cuda.get_device_properties(device).total_memory
    return memory_used(device), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
