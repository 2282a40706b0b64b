"""Where a training step's time goes: `--profile` writes torch's trace and its table into the run folder.

    runs/NAME/profile/trace.json.gz     for https://ui.perfetto.dev or chrome://tracing
    runs/NAME/profile/breakdown.txt     milliseconds a step, by part, and the ops that took longest

Steps 10 to 19 of the run are traced: by then everything is compiled and allocated. Parts of the step (wait, teacher,
forward, loss, backward, optimiser) follow one another; reading, decoding, copying and augmenting run beside them in the
loader's threads. On a GPU a part's time is that of the kernels that it launched, and autograd launches those of the
backward pass from a thread of its own, so they are among the ops only; that has not been tried on a GPU yet.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ..data import TrainLoader
from ..files import write_file
from ..ranks.group import Ranks
from ..run.report import Reporter

FIRST, STEPS, OPS = 10, 10, 30
PARTS = ("teacher", "forward", "loss", "backward", "optimiser")  # the ranges that `TrainingStep` records


class StepProfile:
    """Traces the steps FIRST … FIRST + STEPS − 1 of a run, and writes its files after the last.

    with StepProfile(config.profile, run, batches, ranks, reporter) as profiled:
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
        text = breakdown(finished, loader, seconds, steps, self._ranks.device)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(self._folder / "trace.json.gz"))
            write_file(self._folder / "breakdown.txt", lambda path: path.write_text(text + "\n"))
        except OSError as error:
            self._reporter.say(f"the profile could not be written ({error.strerror}): the run goes on")
        self._reporter.say(f"{text}\n{self._folder}")

    def _synchronize(self) -> None:
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize(self._ranks.device)


def breakdown(finished: profile, loader: dict[str, float], seconds: float, steps: int, device: torch.device) -> str:
    """Milliseconds a step, the mean of `steps` that took `seconds`, and torch's table of the ops.

    Args:
        loader: seconds of the loader's threads, and of the wait for them.
    """
    events = finished.key_averages()
    attribute = "device_time_total" if device.type == "cuda" else "cpu_time_total"
    spent = {event.key: getattr(event, attribute) / 1e6 for event in events if event.key in PARTS}
    beside = dict(loader)
    step = {"wait": beside.pop("wait"), **{name: spent.get(name, 0.0) for name in PARTS}}
    lines = [f"{1000 * seconds / steps:.1f} ms a step, mean of {steps} steps on {device}"]
    for title, parts in (("in the step", step), ("beside it, in the loader's threads", beside)):
        lines.append(f"{title}: " + " · ".join(f"{name} {1000 * part / steps:.2f}" for name, part in parts.items()))
    return "\n".join([*lines, events.table(sort_by=f"self_{attribute}", row_limit=OPS, max_name_column_width=50)])
