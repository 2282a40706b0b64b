"""Trials: trainings that differ in a few settings, trained or found finished, and compared seed by seed.

trials = {name: trial(base, folder / name, seed=seed, distill="none") for name, seed in …}
train_all(trials, expected(trials))               # the same command in a second terminal takes its share
compare([90.1, 90.4], [89.8, 90.2])               # top-1 of two kinds, equal seeds side by side
"""

from __future__ import annotations

import io
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ...config import Config
from ...files import Busy, read_json
from ...train import Summary, train

Trials = Mapping[str, Config]  # by name; a teacher stands before its students
# 97.5 % quantile of Student's t for 1, 2, … degrees of freedom; for more, the last: a little too wide.
T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
_WAIT = 5.0  # seconds between two looks at what another process trains


def trial(base: Config, out: Path, epochs: int = 0, **changes: Any) -> Config:
    """`base` with changes, in its run folder; with other `epochs` (0: those of `base`) the warm-up keeps its share."""
    epochs = epochs or base.optim.epochs
    warmup = base.optim.warmup_epochs * epochs / base.optim.epochs
    return base.replace(**{"epochs": epochs, "warmup_epochs": warmup, "out": str(out)} | changes)


def finished(trials: Trials) -> dict[str, dict[str, Any]]:
    """summary.json of each trial that is finished."""
    files = {name: config.run_folder() / "summary.json" for name, config in trials.items()}
    return {name: read_json(file) for name, file in files.items() if file.is_file()}


def train_all(trials: Trials, seconds: Mapping[str, float] | None = None) -> list[Summary]:
    """Train the trials that are not finished, in their order.

    What another process is training comes last, so the same command in two terminals halves the work. `seconds`, as
    `expected` gives them, let every line say how much time is to go.
    """
    done, names = finished(trials), list(trials)
    # A finished run of another configuration is refused before the first is trained.
    summaries = [train(trials[name]) for name in done]
    todo = [name for name in names if name not in done]
    if todo and seconds:
        whole = _words(sum(seconds[name] for name in todo))
        print(f"\n{len(todo)} trainings of {len(names)} to go: {whole}, an estimate", flush=True)
    announced: set[str] = set()
    spent = counted = 0.0
    while todo:
        left: list[str] = []
        for place, name in enumerate(todo):
            if trials[name].distill.teacher in [str(trials[busy].run_folder()) for busy in left]:
                left.append(name)
                continue
            if first := name not in announced:
                announced.add(name)
                ahead = sum(seconds[other] for other in (*left, *todo[place:])) if seconds else 0.0
                about = f"; about {_words(ahead * (spent / counted if counted else 1))} to go" if seconds else ""
                print(f"\ntraining {names.index(name) + 1} of {len(names)}: {name}{about}", flush=True)
            began = time.perf_counter()
            try:
                summaries.append(train(trials[name]))
            except Busy as busy:
                if first:
                    print(busy, flush=True)
                left.append(name)
                continue
            if seconds and (taken := time.perf_counter() - began) > 1:  # else another process has trained it
                spent, counted = spent + taken, counted + seconds[name]
        if len(left) == len(todo):
            time.sleep(_WAIT)
        todo = left
    return summaries


def expected(trials: Trials) -> dict[str, float]:
    """Seconds of each unfinished trial, without evaluations, from a dry run of one of each model.

    A teacher adds its forward passes to those of a student that learns nothing from it: a third of a training step.
    """
    teachers = {str(config.run_folder()): config for config in trials.values()}
    speeds: dict[tuple[object, ...], tuple[float, float]] = {}  # images of an epoch, images/s

    def speed(config: Config) -> tuple[float, float]:
        model = config.model
        key = (model.model.replace("_distilled", ""), model.width, model.depth, config.data.image_size,
               config.optim.batch_size)  # fmt: skip
        if key not in speeds:
            print(f"measuring the speed of {key[0]}", flush=True)
            alone = config.replace(
                model=key[0], distill="none", distill_on="token", teacher="", alpha=None, tau=None, kl_normalizer=None,
                out=f"{config.run_folder()}-speed", dry_run=True,
            )  # fmt: skip
            with redirect_stdout(io.StringIO()):
                plan = train(alone).scores["plan"]
            speeds[key] = plan["images"] / config.optim.epochs, plan["together"]
        return speeds[key]

    seconds, done = {}, finished(trials)
    for name, config in trials.items():
        if name in done:
            continue
        images, rate = speed(config)
        taught = config.distill.teacher in teachers
        by_teacher = 1 / (3 * speed(teachers[config.distill.teacher])[1]) if taught else 0.0
        seconds[name] = images * config.optim.epochs * (1 / rate + by_teacher)
    return seconds


def compare(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """The mean of first − second over equal seeds, half its 95 % interval, and the verdict; one seed has neither."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, n = statistics.mean(differences), len(differences)
    if n == 1:
        return {"difference": mean, "half_interval": None, "verdict": "undecided"}
    half = T[min(n - 2, len(T) - 1)] * statistics.stdev(differences) / math.sqrt(n)
    verdict = "undecided" if abs(mean) <= half else "holds" if mean > 0 else "reversed"
    return {"difference": mean, "half_interval": half, "verdict": verdict}


def _words(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"
