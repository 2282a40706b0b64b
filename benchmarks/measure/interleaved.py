"""Ours and its peers in turn, and what a row of the results says about them.

    def test_something(benchmark):
        seconds = alternate({"ours": run, "timm": run_timm})
        record(benchmark, seconds, work=64, unit="images/s", clock="processor time")

The contenders take turns, so that a busy moment of the machine meets all of them, and their order changes every round.
A number is the median over the rounds; `record` keeps the seconds of every round, from which benchmarks/compare.py
tells noise from change. A row in a results file is the `extra_info` that `record` fills:

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
from collections.abc import Collection, Mapping
from typing import NamedTuple

from pytest_benchmark.fixture import BenchmarkFixture

from deit_fast.run.timing import Seconds, alternate

__all__ = ["Limit", "Seconds", "alternate", "record", "rounded", "version"]

# The distribution that a peer's version is that of, where its name is another.
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


def record(
    benchmark: BenchmarkFixture,
    seconds: Seconds,
    *,
    work: float = 1,
    unit: str = "calls/s",
    clock: str,
    limit: Limit | None = None,
    versions: Mapping[str, str] | None = None,
    variants: bool = False,
    forms: Collection[str] = (),
    **more: object,
) -> None:
    """Fill the row of a test.

    Args:
        seconds: as `alternate` gives them; the first contender is ours.
        work: units of work in one turn.
        clock: "processor time", "wall clock" or "device time".
        limit: of our rate.
        versions: of peers that are not distributions of the same name.
        variants: the other contenders are our own variants, not peers: they get no ratio.
        forms: the contenders that are our own variants, where others are peers.
        more: further fields of the row.
    """
    own, *others = seconds
    peers = [] if variants else [name for name in others if name not in forms]
    benchmark.pedantic(lambda: None, rounds=1)  # the row's own numbers are the seconds
    each = {name: [spent / work for spent in times] for name, times in seconds.items()}
    rate = {name: 1 / statistics.median(times) for name, times in each.items()}
    info = benchmark.extra_info
    info.update(ours=own, unit=unit, clock=clock, rate={name: rounded(value) for name, value in rate.items()})
    for name in peers:
        info[f"ratio_to_{name}"] = round(rate[own] / rate[name], 2)
    if peers:
        best = max(peers, key=rate.__getitem__)
        ratios = [theirs / mine for mine, theirs in zip(each[own], each[best], strict=True)]
        info["best_peer"], info["smallest"], info["largest"] = best, round(min(ratios), 2), round(max(ratios), 2)
    if limit is not None:
        info["percent_of_limit"], info["limit"] = rounded(100 * rate[own] / limit.rate), limit.name
    info["versions"] = {name: version(name) for name in peers if version(name)} | dict(versions or {})
    info["seconds"] = {name: [rounded(spent) for spent in times] for name, times in each.items()}
    info.update(more)


def version(peer: str) -> str | None:
    """Of the package that a peer is named after; None where it is torch's or this project's own."""
    for name in (DISTRIBUTIONS.get(peer, peer), peer.split(",")[0].split(" ")[0]):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
