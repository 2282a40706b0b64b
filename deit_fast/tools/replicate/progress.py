"""Many trainings, one after another: how long they will take, how far they are, and two processes that share them."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

from ...config import Config
from ...files import Busy, read_json
from ...train import train

_WAIT = 5.0  # seconds between two looks at what another process trains


class Training(NamedTuple):
    """One run: a teacher, or a student of one seed."""

    name: str
    config: Config


def finished(config: Config) -> dict[str, Any] | None:
    """summary.json of a run that is finished, else None."""
    file = config.run_folder() / "summary.json"
    return read_json(file) if file.is_file() else None


def train_all(trainings: Sequence[Training]) -> None:
    """Train those that are not finished, in their order; a student's teacher stands before it.

    What another process is training comes last, so the same command in two terminals halves the work.
    """
    todo = [training for training in trainings if finished(training.config) is None]
    expected = _expected(todo, trainings)
    spent = done = 0.0
    for training in trainings:
        if training not in todo:
            train(training.config)  # which refuses a run of another configuration
    if todo:
        whole = _time(sum(expected.values()))
        print(f"\n{len(todo)} trainings of {len(trainings)} to go: {whole}, an estimate", flush=True)
    left: list[Training] = []
    while todo:
        waiting, left = left, []
        for place, training in enumerate(todo):
            if training.config.teacher in [str(one.config.run_folder()) for one in left]:
                left.append(training)
                continue
            if training not in waiting:
                ahead = sum(expected[one.name] for one in (*left, *todo[place:]))
                about = _time(ahead * (spent / done if done else 1))
                number = trainings.index(training) + 1
                print(f"\ntraining {number} of {len(trainings)}: {training.name}; about {about} to go", flush=True)
            began = time.perf_counter()
            try:
                train(training.config)
            except Busy as busy:
                if training not in waiting:
                    print(busy, flush=True)
                left.append(training)
                continue
            if (taken := time.perf_counter() - began) > 1:  # else another process has trained it
                spent, done = spent + taken, done + expected[training.name]
        if len(left) == len(todo):
            time.sleep(_WAIT)
        todo = left


def _expected(todo: Sequence[Training], every: Sequence[Training]) -> dict[str, float]:
    """Seconds of each training by its name, without evaluations, from a dry run of one of each model.

    A teacher adds its forward passes to those of a student that learns nothing from it: a third of a training step.
    """
    teachers = {str(one.config.run_folder()): one.config for one in every}
    speeds: dict[tuple[object, ...], tuple[float, float]] = {}  # images of an epoch, images/s

    def speed(config: Config) -> tuple[float, float]:
        alone = dataclasses.replace(
            config, model=config.model.replace("_distilled", ""), distill="none", distill_on="token", teacher="",
            alpha=None, tau=None, kl_normalizer=None, out=f"{config.run_folder()}-speed", dry_run=True,
        )  # fmt: skip
        key = (alone.model, alone.width, alone.depth, alone.image_size, alone.batch_size)
        if key not in speeds:
            print(f"measuring the speed of {alone.model}", flush=True)
            with redirect_stdout(io.StringIO()):
                plan = train(alone).scores["plan"]
            speeds[key] = plan["images"] / config.epochs, plan["together"]
        return speeds[key]

    seconds = {}
    for name, config in todo:
        images, rate = speed(config)
        seconds[name] = images * config.epochs / rate
        if config.teacher in teachers:
            seconds[name] += images * config.epochs / (3 * speed(teachers[config.teacher])[1])
    return seconds


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"
