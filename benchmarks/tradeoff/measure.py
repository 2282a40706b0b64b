"""Accuracy against speed, in the manner of the paper's Table 5 and Figure 1, measured on this machine.

    python -m benchmarks.tradeoff                                      every network of the table
    python -m benchmarks.tradeoff --networks DeiT-S RegNetY-8GF        those whose names begin so
    python -m benchmarks.tradeoff --runs runs/flowers                  beside them, with the run's own accuracy
    python -m benchmarks.tradeoff --batch-size 256 --precision bf16    on a GPU

Parameters, multiply-accumulates of one image, memory of one batch and images/s are measured: random weights, the same
precision, the same batch size and the same harness for all, ConvNets in the channels_last layout, which is faster for
them. Top-1 on ImageNet, ReaL and ImageNet-V2 and the V100's images/s are the paper's (arXiv 2012.12877, Table 5) and
marked so; a run's accuracy is its own, on its own data. On a machine that others use too even ratios are rough: the
file holds the slowest round beside the fastest.
The same command measures a GPU; none has been measured yet. benchmarks/results/tradeoff-cpu.json took five minutes on
two cores of an AMD EPYC with nothing else on them (--rounds 5, torch 2.14.1, timm 1.0.31, 2026-11-25). How rough it is
shows in pairs of one network with and without the distillation token: within 3 % for S and B, 13 % for Ti.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
import tyro
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure.device_timing import CLOCK, DEVICE, ON_CARD, prepare
from benchmarks.tradeoff import report
from benchmarks.tradeoff.table import Network, select
from deit_fast.files import write_json
from deit_fast.model import CONFIGS, create_model
from deit_fast.run.provenance import provenance
from deit_fast.weights.prediction import Trained
from deit_fast.weights.trained import load

BASELINE = "DeiT-B"  # what ratios are to


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and how."""

    networks: tuple[str, ...] = ()  # labels of the table, or their beginnings; none: all
    runs: tuple[str, ...] = ()  # run folders to stand beside them
    batch_size: int = 0  # images of a call; 0: 64 on a GPU, 2 on a CPU
    rounds: int = 3  # timed calls of each; the fastest counts, what others take from the machine does not
    precision: Literal["fp32", "bf16"] = "fp32"
    json: str = ""  # write the table into this file
    picture: str = ""  # draw Figure 1 into this PNG


class Measured(NamedTuple):
    """Numbers of one architecture at one size; `seconds` holds the time of each batch."""

    parameters: int
    gmacs: float
    memory_bytes: int
    seconds: list[float]


def build(architecture: str) -> nn.Module:
    """The architecture with random weights, as it is measured."""
    return laid_out(create_model(architecture) if architecture in CONFIGS else timm.create_model(architecture))


def layout(model: nn.Module) -> torch.memory_format:
    """What suits the model: channels_last, if it is a ConvNet."""
    convolutional = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return torch.channels_last if convolutional else torch.contiguous_format


def laid_out(model: nn.Module) -> nn.Module:
    """In evaluation mode on the device, in the layout that suits it."""
    return model.eval().to(DEVICE).to(memory_format=layout(model))


def measure(model: nn.Module, size: int, batch_size: int, precision: str) -> Measured:
    """Parameters, GMACs, memory and the time of one batch.

    Memory is the most that is alive at once in a forward pass, weights and images included: on a GPU as its allocator
    counts, on a CPU the results of PyTorch's ops (their scratch memory is not counted).
    """
    images = torch.randn(batch_size, 3, size, size, device=DEVICE).contiguous(memory_format=layout(model))

    def call() -> Tensor:
        with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            return model(images)

    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    memory = memory_of(call) if ON_CARD else weights + images.nbytes + memory_of(call)
    run, _ = prepare([call], capture=False)
    run()  # on a CPU nothing has warmed up yet
    began = CLOCK()
    run()
    seconds = [CLOCK() - began]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Measured(parameters, gmacs(model, images[:1]), memory, seconds)


def gmacs(model: nn.Module, image: Tensor) -> float:
    """Multiply-accumulates of one image in convolutions and matrix products, attention's among them, in 10⁹."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        model(image)
    return counter.get_total_flops() / 2e9


def memory_of(call: Callable[[], object]) -> int:
    """Bytes: the most that is allocated on the card during a call, or that ops have made on the CPU."""
    if ON_CARD:
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    tracker = MemTracker()
    with tracker:
        call()
    return tracker.get_tracker_snapshot("peak")[DEVICE][_MemRefType.ACT]


def tradeoff(settings: Settings, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Measure everything once per round of the whole list, so that a busy minute spoils no network alone.

    Args:
        arguments: as typed, for the record.

    Returns:
        {"rows": [row], "reference": label that ratios are to, "batch_size", "precision", …}. A row has "label", "size",
        "parameters", "gmacs", "memory_bytes", "images_per_second" (of the fastest round), "slowest", "ratio", "paper"
        (images_per_second, imagenet, real, v2; or None) and "ours" (top1, data, classes; or None).

    Raises:
        ValueError: unknown network, a folder that is not a run, or sizes below one.
    """
    if settings.batch_size < 0 or settings.rounds < 1:
        raise ValueError(f"--batch-size {settings.batch_size} --rounds {settings.rounds}: type 1 or more")
    networks = select(settings.networks)
    runs = {run: load(run) for run in settings.runs}
    networks += [Network(Path(run).name, run, each.policy.size, None, "runs") for run, each in runs.items()]
    models = {run: laid_out(trained.model) for run, trained in runs.items()}
    batch_size = settings.batch_size or (64 if ON_CARD else 2)
    measured: dict[tuple[str, int], Measured] = {}
    for number in range(settings.rounds):
        for name, size in dict.fromkeys((network.architecture, network.size) for network in networks):
            print(f"\rround {number + 1} of {settings.rounds}: {name:<40}", end="", file=sys.stderr, flush=True)
            model = models[name] if name in models else build(name)  # again each time: together they take 4 GB
            new = measure(model, size, batch_size, settings.precision)
            before = measured[name, size].seconds if (name, size) in measured else []
            measured[name, size] = new._replace(seconds=[*before, *new.seconds])
    print("\r" + " " * 70 + "\r", end="", file=sys.stderr)
    rows = [
        _row(network, measured[network.architecture, network.size], runs.get(network.architecture), batch_size)
        for network in networks
    ]
    reference = next((row for row in rows if row["label"] == BASELINE), rows[0])
    for row in rows:
        row["ratio"] = row["images_per_second"] / reference["images_per_second"]
    return {
        "rows": rows,
        "reference": reference["label"],
        "batch_size": batch_size,
        "precision": settings.precision,
        "threads": torch.get_num_threads(),
        "rounds": settings.rounds,
        **provenance("python -m benchmarks.tradeoff", arguments),
    }


def _row(network: Network, measured: Measured, trained: Trained | None, batch: int) -> dict[str, Any]:
    rates = [batch / seconds for seconds in measured.seconds]
    return {
        "label": network.label,
        "family": network.family,
        "architecture": network.architecture,
        "size": network.size,
        "parameters": measured.parameters,
        "gmacs": measured.gmacs,
        "memory_bytes": measured.memory_bytes,
        "images_per_second": max(rates),
        "slowest": min(rates),
        "paper": network.paper._asdict() if network.paper else None,
        "ours": trained and _accuracy(trained),
    }


def _accuracy(trained: Trained) -> dict[str, Any] | None:
    """The top-1 of a finished run's weights, its data and the number of classes."""
    if not trained.scores or trained.config is None:
        return None
    top1 = trained.scores["fused" if "fused" in trained.scores else "cls"]["top1"]
    return {"top1": top1, "data": trained.config.data.data, "classes": len(trained.classes)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        settings = tyro.cli(Settings, args=list(arguments), prog="python -m benchmarks.tradeoff", description=__doc__)
        results = tradeoff(settings, arguments)
        report.show(results)
        if settings.json:
            write_json(Path(settings.json), results)
        if settings.picture:
            report.draw(results, Path(settings.picture))
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
