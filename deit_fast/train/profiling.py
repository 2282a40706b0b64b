"""Where a training step's time goes: `--profile` writes a trace, a table and a picture into the run folder.

    runs/NAME/profile/trace.json.gz     for https://ui.perfetto.dev or chrome://tracing
    runs/NAME/profile/breakdown.txt     milliseconds a step, by part
    runs/NAME/profile/breakdown.png

Steps 10 to 19 of the run are traced: by then everything is compiled and allocated. Parts of the step (wait, teacher,
forward, loss, backward, optimiser) follow one another; reading, decoding, copying and augmenting run beside them in the
loader's threads, and the exchange of gradients runs beside the backward pass. On a GPU a part's time is that of the
kernels that it launched; that has not been tried on a GPU yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from ..data import TrainLoader
from ..files import write_file
from ..picture import picture
from ..ranks.group import Ranks
from ..run.report import Reporter

FIRST, STEPS = 10, 10
IN_STEP = ("wait", "teacher", "forward", "loss", "backward", "optimiser", "the rest")
BESIDE = ("read", "decode", "copy", "augment", "all-reduce")
_EXCHANGE = ("nccl", "gloo:", "c10d::allreduce_")


class Part(NamedTuple):
    """Milliseconds of one step."""

    name: str
    milliseconds: float
    where: str


class StepProfile:
    """Traces the steps FIRST … FIRST + STEPS − 1 of a run, and writes its files after the last.

    with StepProfile(config.run.profile, run, batches, ranks, reporter) as profiled:
        for batch in batches:
            step(batch, lr)
            profiled.step_done()
    """

    def __init__(self, wanted: bool, run: Path, batches: TrainLoader, ranks: Ranks, reporter: Reporter) -> None:
        self._wanted, self._done = wanted, 0
        self._folder, self._batches, self._ranks, self._reporter = run / "profile", batches, ranks, reporter
        self._profile: profile | None = None

    def __enter__(self) -> StepProfile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._profile is not None:  # a run of fewer steps
            self._finish()
        elif self._wanted and self._done < FIRST:
            self._reporter.say(f"nothing was profiled: the run had fewer than {FIRST + 1} steps")

    def step_done(self) -> None:
        """After every step."""
        self._done += 1
        if self._wanted and self._done == FIRST:
            self._begin()
        elif self._profile is not None and self._done == FIRST + STEPS:
            self._finish()

    def _begin(self) -> None:
        on_gpu = self._ranks.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self._synchronize()
        self._profile = profile(activities=activities)
        self._profile.start()
        self._seconds_before = vars(self._batches.seconds).copy()
        self._began = time.perf_counter()

    def _finish(self) -> None:
        self._synchronize()
        seconds, steps = time.perf_counter() - self._began, max(self._done - FIRST, 1)
        assert self._profile is not None
        self._profile.stop()
        finished, self._profile = self._profile, None
        if not self._ranks.main:
            return
        loader = {name: after - self._seconds_before[name] for name, after in vars(self._batches.seconds).items()}
        parts = breakdown(finished.key_averages(), loader, seconds, steps, self._ranks.device)
        text = table(parts, f"{1000 * seconds / steps:.1f} ms a step, mean of {steps} steps on {self._ranks.device}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(self._folder / "trace.json.gz"))
            write_file(self._folder / "breakdown.txt", lambda path: path.write_text(text + "\n"))
            draw(parts, self._folder / "breakdown.png")
        except OSError as error:
            self._reporter.say(f"the profile could not be written ({error.strerror}): the run goes on")
        self._reporter.say(f"{text}\n{self._folder}")

    def _synchronize(self) -> None:
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize(self._ranks.device)


def breakdown(
    events: Iterable, loader: dict[str, float], seconds: float, steps: int, device: torch.device
) -> list[Part]:
    """The parts of a step in milliseconds, the mean of `steps` that took `seconds`.

    Args:
        events: the profiler's averages by name.
        loader: seconds of the loader's threads and of the wait for it.
    """
    on_gpu = device.type == "cuda"
    spent: dict[str, float] = {}
    exchange = kernels = 0.0
    for event in events:
        microseconds = event.device_time_total if on_gpu else event.cpu_time_total
        if event.key in IN_STEP and not (on_gpu and event.device_type == torch.autograd.DeviceType.CUDA):
            spent[event.key] = microseconds / 1e6
        elif event.key.startswith(_EXCHANGE):
            exchange += microseconds / 1e6
        if on_gpu and event.device_type == torch.autograd.DeviceType.CUDA and event.key not in IN_STEP:
            kernels += event.self_device_time_total / 1e6
    spent["wait"] = loader["wait"]
    if on_gpu:  # autograd launches the backward's kernels from a thread of its own: those that no other part launched
        others = sum(spent.get(name, 0.0) for name in ("teacher", "forward", "loss", "optimiser"))
        spent["backward"] = max(kernels - others - exchange, 0.0)
    spent["the rest"] = max(seconds - sum(spent.values()), 0.0)
    where = "GPU" if on_gpu else "main thread"
    parts = [
        Part(name, 1000 * spent.get(name, 0.0) / steps, "main thread" if name in ("wait", "the rest") else where)
        for name in IN_STEP
    ]
    beside = {**loader, "all-reduce": exchange}
    places = {"copy": "GPU", "all-reduce": "beside the backward"} if on_gpu else {"all-reduce": "in the backward"}
    return parts + [Part(name, 1000 * beside[name] / steps, places.get(name, "loader's threads")) for name in BESIDE]


def table(parts: list[Part], title: str) -> str:
    """The parts as text, with their shares of the step."""
    whole = sum(part.milliseconds for part in parts if part.name in IN_STEP) or 1.0
    lines = [title]
    for part in parts:
        share = f"{part.milliseconds / whole:5.0%}" if part.name in IN_STEP else "     "
        if part.name == BESIDE[0]:
            lines.append("beside them:")
        lines.append(f"  {part.name:<11}{part.milliseconds:9.2f} ms {share}  {part.where}")
    return "\n".join(lines)


def draw(parts: list[Part], target: Path) -> None:
    """The step as one bar, what runs beside it as bars below."""
    with picture(target, figsize=(10, 4)) as (_, axes):
        left = 0.0
        for part in parts:
            if part.name in IN_STEP:
                axes.barh("step", part.milliseconds, left=left, label=part.name)
                left += part.milliseconds
            else:
                axes.barh(part.name, part.milliseconds, color="grey")
        axes.invert_yaxis()
        axes.set(xlabel="ms a step", title="where a training step's time goes; grey runs beside it")
        axes.legend(ncols=4, fontsize="small")
        axes.grid(axis="x", alpha=0.3)
