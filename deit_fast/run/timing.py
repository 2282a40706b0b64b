"""Several things timed in turn.

seconds = alternate({"eager": run, "compiled": run_compiled}, rounds=9, clock=time.perf_counter)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Run = Callable[[], object]
Seconds = dict[str, list[float]]


def alternate(
    contenders: Mapping[str, Run], *, rounds: int = 9, clock: Callable[[], float] = time.process_time, warmup: int = 1
) -> Seconds:
    """Seconds of every contender in every round, `warmup` further rounds not counted.

    They take turns, so that a busy moment of the machine meets all of them, and their order changes every round.
    """
    seconds: Seconds = {name: [] for name in contenders}
    order = list(contenders)
    for number in range(rounds + warmup):
        for name in order:
            began = clock()
            contenders[name]()
            if number >= warmup:
                seconds[name].append(clock() - began)
        order = order[1:] + order[:1]
    return seconds
