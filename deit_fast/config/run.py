"""Where a run lies, and when it logs, evaluates and saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .marks import Every, Free, Local, Once, Part, Shared, span


@dataclass(frozen=True)
class RunConfig(Part):
    # Run
    out: Once[str] = ""  # run folder; empty: runs/<recipe>-<model>-<hash of the configuration>
    fresh: Once[bool] = False  # discard what the run folder holds and start anew
    dry_run: Once[bool] = False  # set everything up, take a few steps, print the plan of the run; nothing is written
    gpus: Annotated[Local[Shared[int]], span(0, 1024)] = 0  # processes, one a GPU; 0: every visible GPU
    profile: Once[bool] = False  # trace steps 10 to 19, and say where their time goes, in the run folder's profile/
    log_every: Free[Every] = 20  # steps between lines of metrics.jsonl
    report: Once[bool] = True  # write report.html at the end: curves, mistakes, suspects, time; at most five minutes
    eval_every: Free[Every] = 1  # epochs between evaluations; the last epoch is always evaluated
    skip_limit: Free[Every] = 20  # steps in a row with a NaN or infinite loss or gradient, after which the run ends
    save_every: Annotated[Free[int], span(0, 10**9)] = 0  # steps between checkpoints; 0: an epoch
    keep: Annotated[Free[int], span(1, 10**6)] = 2  # checkpoints kept, the newest ones
