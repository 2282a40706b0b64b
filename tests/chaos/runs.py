"""Whole trainings in processes of their own, to be killed, stopped and fed with bad numbers.

A process is forked from a server that has imported torch once, so its start takes a fraction of a second; it is killed,
by SIGKILL, as any other is. `interrupted` starts one again and again until the training is done.
"""

import dataclasses
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors.torch import load_file

from deit_fast.config import Config
from deit_fast.run import checkpoint
from tests.deit_fast.command import command_line
from tests.deit_fast.world import World, world

TIMES = {"images_per_second", "data_wait", "eta", "memory", "teacher_share", "mfu", "slowest_wait", "slowest_rank",
         "seconds", "headroom", "machine"}  # fmt: skip
SETTING_UP = 60.0  # seconds after which a process that has not printed anything is broken


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong inside of a training process.

    Attributes:
        disk_call: SIGKILL instead of so many-th fsync or rename; 0: none.
        bad_steps: batches of these steps hold a NaN, on `rank` only.
    """

    disk_call: int = 0
    bad_steps: Collection[int] = ()
    rank: int = 0


def training(rank: int, config: Config, fault: Fault, digests: str) -> int:
    """The body of a process: `python -m deit_fast.train`, with a fault; returns its exit code."""
    from deit_fast.data.loader import TrainLoader
    from deit_fast.train import __main__ as train
    from deit_fast.train import prepare as preparation

    if fault.disk_call:
        _kill_at_disk_call(fault.disk_call)
    batches = TrainLoader.__iter__

    def spoiled(loader):
        for batch in batches(loader):
            if rank == fault.rank and batch.step in fault.bad_steps:
                batch.images[0, 0, 0, 0] = math.nan
            yield batch

    TrainLoader.__iter__ = spoiled
    steps, build = [], preparation.TrainingStep
    preparation.TrainingStep = lambda *arguments, **options: steps.append(build(*arguments, **options)) or steps[-1]
    code = train.main(command_line(config))
    if digests and steps:
        states = [steps[-1].model.state_dict(), steps[-1].ema.module.state_dict()]
        values = [value.double().sum().item() for state in states for value in state.values()]
        Path(digests, f"rank_{rank}.json").write_text(json.dumps(values))
    return code


def _kill_at_disk_call(number: int) -> None:
    calls = []

    def counted(real: Callable) -> Callable:
        def call(*arguments):
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)


def start(config: Config, ranks: int, folder: Path, fault: Fault = Fault(), digests: str = ""):
    """A context: the running processes of one training."""
    return world(ranks, folder, training, config, fault, digests)


def finished(config: Config, ranks: int, folder: Path, fault: Fault = Fault(), digests: str = "") -> World:
    """The training, uninterrupted."""
    with start(config, ranks, folder, fault, digests) as running:
        codes = running.wait(300)
        assert codes == [0] * ranks, [running.printed(rank) for rank in range(ranks)]
    return running


def until_it_speaks(running: World) -> None:
    """Until rank 0 has printed its first line: by then every rank listens to signals."""
    deadline, output = time.monotonic() + SETTING_UP, running.outputs[0]
    while not (output.exists() and output.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)


def killed_again_and_again(config: Config, ranks: int, folder: Path, kills: int, seconds: float, seed: int) -> int:
    """Kill a training at random moments until `kills` kills have hit it, then let it end.

    Every other kill comes at a random moment of the first `seconds` seconds, on one rank or on all; the others inside
    of a call to the disk while a checkpoint, a metric or a summary is written.

    Returns:
        how many kills hit a process that was alive.
    """
    draw = random.Random(seed)
    hit = 0
    for attempt in range(10 * kills):
        if hit == kills:
            break
        inside = attempt % 2
        fault = Fault(disk_call=draw.randrange(1, 120)) if inside else Fault()
        with start(config, ranks, folder / f"attempt_{attempt}", fault) as running:
            if inside:
                running.processes[0].join(seconds * 10)
            else:
                until_it_speaks(running)
                time.sleep(draw.uniform(0, seconds))
            victims = range(ranks) if draw.random() < 0.5 else [draw.randrange(ranks)]
            for victim in victims:
                running.processes[victim].kill()
            codes = running.wait(60)
        if codes == [0] * ranks:
            break
        assert -signal.SIGKILL in codes, [running.printed(rank) for rank in range(ranks)]
        hit += 1
    if not (Path(config.run.out) / "summary.json").exists():
        finished(config, ranks, folder / "last")
    return hit


def assert_same_run(run: str | Path, other: str | Path) -> None:
    """Weights, averages, moments, best weights, metrics and scores are equal to the bit."""
    folders = [checkpoint.newest(Path(each)) for each in (run, other)]
    assert folders[0].name == folders[1].name
    for file in ("model", "ema", "optimizer"):
        assert_same_tensors(*(load_file(folder / f"{file}.safetensors") for folder in folders))
    bests = [checkpoint.best(Path(each)) for each in (run, other)]
    assert bests[0][1] == bests[1][1]
    assert_same_tensors(*(load_file(file) for file, _ in bests))
    assert lines(run) == lines(other)
    assert (Path(run) / "summary.json").read_text() == (Path(other) / "summary.json").read_text()


def assert_same_tensors(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def lines(run: str | Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock measured."""
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
