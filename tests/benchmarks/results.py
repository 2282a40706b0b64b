"""Results files as a machine with a known noise would write them."""

import random


def measured(seed: int, factor: float = 1.0, noise: float = 0.03, rounds: int = 9, rows: int = 40) -> dict:
    """A file whose rows all take `factor` times as long on our side.

    Args:
        noise: standard deviation of a round, for ours and the peer apart; every tenth round is disturbed and takes
            half as long again, and the whole machine is up to a third faster or slower from run to run.
    """
    generator = random.Random(seed)
    machine = generator.uniform(0.75, 1.33)
    entries = []
    for number in range(rows):
        seconds: dict[str, list[float]] = {}
        for name, share in (("ours", factor), ("peer", 2.0)):
            seconds[name] = [
                machine * share * generator.lognormvariate(0, noise) * (1.5 if generator.random() < 0.1 else 1.0)
                for _ in range(rounds)
            ]
        info = {"ours": "ours", "unit": "calls/s", "rate": {"ours": 1.0, "peer": 0.5}, "ratio_to_peer": 2.0}
        entries.append({"group": "made up", "name": f"test_{number}", "extra_info": {**info, "seconds": seconds}})
    return {"machine": "made-up", "rows": entries}
