"""Where a training step's time goes: `--profile` writes torch's trace and table into the run folder.

    runs/NAME/profile/trace.json.gz     for https://ui.perfetto.dev or chrome://tracing
    runs/NAME/profile/breakdown.txt     milliseconds a step, and torch's table of parts and ops

Steps 10 to 19 of the run are traced: by then everything is compiled and allocated. The table begins with the steps and
their parts (teacher, forward, loss, backward, optimiser), which follow one another; reading, decoding, copying and
augmenting run beside them in the loader's threads. On a GPU autograd launches the kernels of the backward pass from a
thread of its own, so they are among the ops only; that has not been tried on a GPU yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ..data import TrainLoader
from ..files import write_file
from ..ranks.group import Ranks
from ..run.report import Reporter

FIRST, STEPS, ROWS = 10, 10, 30


@contextmanager
def profiled(folder: Path, batches: TrainLoader, ranks: Ranks, reporter: Reporter) -> Iterator[Callable[[], None]]:
    """A function to be called after every step; what rank 0 traced is written into `folder`."""
    on_gpu = ranks.device.type == "cuda"
    began, lasted, loader = 0.0, 0.0, vars(batches.seconds)

    def step_done() -> None:
        nonlocal began, lasted, loader
        if on_gpu and tracing.step_num + 1 in (FIRST, FIRST + STEPS):
            torch.cuda.synchronize(ranks.device)
        lasted = time.perf_counter() - began
        if tracing.step_num + 1 == FIRST:
            began, loader = time.perf_counter(), vars(batches.seconds).copy()
        tracing.step()

    def write(finished: profile) -> None:
        steps = finished.step_num - FIRST
        if not steps or not ranks.main:
            return
        a_step = 1000 / steps
        spent = {name: a_step * (after - loader[name]) for name, after in vars(batches.seconds).items()}
        beside = " · ".join(f"{name} {value:.2f}" for name, value in spent.items())
        by = "device_time_total" if on_gpu else "cpu_time_total"
        table = finished.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=50)
        text = (
            f"{a_step * lasted:.1f} ms a step, mean of {steps} steps on {ranks.device}\n"
            f"loading, in ms a step: {beside}\n{table}"
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(folder / "trace.json.gz"))
            write_file(folder / "breakdown.txt", lambda path: path.write_text(text + "\n"))
        except OSError as error:
            reporter.say(f"the profile could not be written ({error.strerror}): the run goes on")
        reporter.say(f"{text}\n{folder}")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    when = schedule(skip_first=FIRST - 1, wait=0, warmup=1, active=STEPS, repeat=1)
    with profile(activities=activities, schedule=when, on_trace_ready=write) as tracing:
        yield step_done
    if tracing.step_num <= FIRST:
        reporter.say(f"nothing was profiled: the run had fewer than {FIRST + 1} steps")
