"""What two ranks cost beside one for the same work: processor time from the first step to the last, on CPUs.

    pytest benchmarks/bench_ranks.py
    pytest benchmarks/bench_ranks.py --benchmark-json=benchmarks/results/ranks-cpu.json

A DeiT of 1.3 million parameters learns from photographs, decoded and augmented in full, 32 images a step in all; each
number of ranks does the same steps on the same global batches. Counted is the processor time of all ranks with their
threads (`time.process_time`), from after their set-up to the end of the training, evaluation included: loader,
augmentation, model, the exchange of gradients. What starting costs, mostly importing torch, is reported beside it, once
a process. Runs of one and two ranks alternate; the ratio is that of their medians, so that other programs on the
machine disturb both. All processes share one core: on two, which may be the two threads of one, neighbours would slow
each other down and the second rank would pay for it. Wall-clock times are reported too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from deit_fast.config import Config
from deit_fast.recipes.named import recipe
from deit_fast.train import loop as training

ROUNDS, EPOCHS = 3, 1


def one_rank(arguments: list[str]) -> None:
    """The program of one rank: trains, and writes what the processor did before and after the set-up."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    out, measured = arguments
    config = Config(**json.loads(Path(measured).read_text()))
    config = config.replace(crop_scale=tuple(config.data.crop_scale), out=out)
    began: list[tuple[float, float]] = []
    progress = training.report.Reporter.progress

    def first_step(*given: Any) -> Any:
        began.append((time.process_time(), time.perf_counter()))
        return progress(*given)

    training.report.Reporter.progress = first_step
    training.train(config)
    (start, wall) = began[0]
    result = {"start": start, "training": time.process_time() - start, "wall": time.perf_counter() - wall}
    Path(f"{out}.rank{os.environ['RANK']}.json").write_text(json.dumps(result))


def run(ranks: int, config: Config, folder: Path) -> dict[str, float]:
    """Processor seconds of all ranks together, and the slowest one's wall-clock seconds."""
    out, settings = folder / f"run{ranks}-{time.monotonic_ns()}", folder / "config.json"
    settings.write_text(json.dumps(config.flat()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", "benchmarks.bench_ranks", str(out), str(settings)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=True)
    each = [json.loads(Path(f"{out}.rank{rank}.json").read_text()) for rank in range(ranks)]
    totals = {name: sum(result[name] for result in each) for name in ("start", "training")}
    return {**totals, "wall": max(result["wall"] for result in each)}


def test_two_ranks_cost_as_much_as_one(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    config = recipe("demo").replace(
        distill="none", teacher="", model="deit_tiny_patch16_224", epochs=EPOCHS, warmup_epochs=0.5,
        threads=1, rand_augment="rand-m9-mstd0.5-inc1", erase=0.25, eval_every=EPOCHS,
    )  # fmt: skip
    measured: dict[int, list[dict[str, float]]] = {1: [], 2: []}

    def rounds() -> None:
        for _ in range(ROUNDS):
            for ranks, results in measured.items():
                results.append(run(ranks, config, tmp_path))

    benchmark.pedantic(rounds, rounds=1)
    one, two = (
        {name: round(statistics.median(result[name] for result in results), 2) for name in results[0]}
        for results in measured.values()
    )
    benchmark.extra_info.update(
        one_rank_seconds=one,
        two_ranks_seconds=two,
        processor_ratio=round(two["training"] / one["training"], 3),
        rounds=ROUNDS,
        cores=len(os.sched_getaffinity(0)),
    )


if __name__ == "__main__":
    one_rank(sys.argv[1:])
