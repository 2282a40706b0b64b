"""Ours and its peers in turn, and what a row of the results says about them.

    def test_something(benchmark):
        compare(benchmark, {"ours": run, "timm": run_timm}, work=64, unit="images/s")

The contenders take turns, so that a busy moment of the machine meets all of them, and their order changes every round.
A number is the median over the rounds; `record` keeps the seconds of every round, from which benchmarks.compare tells
noise from change. A row in a results file is the `extra_info` that `record` fills:

    ours, unit, clock        the name of our side; what a second is counted in (images/s, calls/s); which clock
    seconds                  {contender: seconds for each unit of work, one number a round}
    rate                     {contender: units of work a second}
    ratio_to_<peer>          our rate over the peer's: above 1, ours is faster
    versions                 {peer: version}
    percent_of_limit, limit  our rate over the most that the machine allows, where that is known, and what limits it
    smallest, largest        the range of the ratio to the best peer over the rounds

A row of variants compares our own variants with each other and has no ratios.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from deit_fast.run.timing import Run, Seconds, alternate

__all__ = ["Limit", "Seconds", "alternate", "compare", "record", "repeated", "version"]

TORCHS = ("torch", "sdpa", "flex", "eager", "compiled")  # how peers are called that are torch's own
# Peers whose distribution has another name.
DISTRIBUTIONS = {
    "torchvision v2": "torchvision",
    "timm's host share": "timm",
    "hugging face": "transformers",
    "liger": "liger-kernel",
    "flash_attn": "flash-attn",
    "flash_attn_3": "flash-attn-3",
    "flash_attn_3_unstacked": "flash-attn-3",
}


class Limit(NamedTuple):
    """The most that the machine allows.

    Attributes:
        rate: units of work a second.
        name: what limits, and how it was measured.
    """

    rate: float
    name: str


def repeated(call: Run, times: int) -> Run:
    """A turn of several calls."""

    def run() -> None:
        for _ in range(times):
            call()

    return run


def compare(
    benchmark: BenchmarkFixture, runs: Mapping[str, Run], *, rounds: int = 9, warmup: int = 1,
    clock: Callable[[], float] = time.process_time, limited_by: str = "", limit: Limit | None = None, **row: Any,
) -> None:  # fmt: skip
    """A row of contenders that take turns.

    Args:
        runs: {contender: its turn}, ours first.
        limited_by: the contender that is no peer, but the most that the machine allows; its name says what limits.
        row: as `record` takes it.
    """
    seconds = alternate(runs, rounds=rounds, clock=clock, warmup=warmup)
    if limited_by:
        limit = Limit(row.get("work", 1) / statistics.median(seconds.pop(limited_by)), limited_by)
    record(
        benchmark, seconds, clock="processor time" if clock is time.process_time else "wall clock", limit=limit, **row
    )  # fmt: skip


def record(
    benchmark: BenchmarkFixture, seconds: Seconds, *, work: float | Mapping[str, float] = 1, unit: str = "calls/s",
    clock: str, limit: Limit | None = None, variants: bool = False, forms: Collection[str] = (), **more: Any,
) -> None:  # fmt: skip
    """Fill the row of a test.

    Args:
        seconds: as `alternate` gives them; the first contender is ours.
        work: units of work in one turn, of all or of each contender.
        clock: "processor time", "wall clock" or "device time".
        limit: of our rate.
        variants: the other contenders are our own variants, not peers: they get no ratio.
        forms: the contenders that are our own variants, where others are peers.
        more: further fields of the row.
    """
    own, *others = seconds
    peers = [] if variants else [name for name in others if name not in forms]
    benchmark.pedantic(lambda: None, rounds=1)  # the row's own numbers are the seconds
    units = work if isinstance(work, Mapping) else dict.fromkeys(seconds, work)
    each = {name: [spent / units[name] for spent in times] for name, times in seconds.items()}
    rate = {name: 1 / statistics.median(times) for name, times in each.items()}
    info = benchmark.extra_info
    info.update(ours=own, unit=unit, clock=clock, rate={name: _rounded(value) for name, value in rate.items()})
    for name in peers:
        info[f"ratio_to_{name}"] = round(rate[own] / rate[name], 2)
    if peers:
        best = max(peers, key=rate.__getitem__)
        ratios = [theirs / mine for mine, theirs in zip(each[own], each[best], strict=True)]
        info["best_peer"], info["smallest"], info["largest"] = best, round(min(ratios), 2), round(max(ratios), 2)
    if limit is not None:
        info["percent_of_limit"], info["limit"] = _rounded(100 * rate[own] / limit.rate), limit.name
    info["versions"] = {name: found for name in peers if (found := version(name))}
    info["seconds"] = {name: [_rounded(spent) for spent in times] for name, times in each.items()}
    info.update(more)


def version(peer: str) -> str | None:
    """The version of the package that a peer is named after; None where no package has that name."""
    distribution = DISTRIBUTIONS.get(peer, peer.split(",")[0].split(" ")[0])
    if distribution.split("_")[0] in TORCHS:
        return torch.__version__
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
