"""How fast, large and right models are in PyTorch and in ONNX, in one table: runs, exports, files and names.

    deit-fast benchmark runs/flowers flowers-onnx --data flowers
    deit-fast benchmark deit_tiny_patch16_224 deit_small_patch16_224 --forms eager onnx
    deit-fast benchmark runs/flowers --json speed.json --picture speed.png

A model is measured in up to four forms: PyTorch as it is and compiled, ONNX in float32 and in int8 (calibrated on
training images of the run, or of --data). An exported ONNX file is the one form that it is, without its preprocessing.
Each form has a process of its own, on the CPU; the forms take turns, a batch size after the other, and the order
changes every round. images/s is the median over the rounds. The first call opens the model, compiles it where that is
the form, and answers for one image. Memory is the peak of the process over what the libraries take.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, arg

from ... import command
from ...files import check_writable, shown, write_json
from ...picture import picture
from ...run.provenance import provenance, versions
from ...run.report import table_of
from ...run.timing import alternate
from .forms import FORMS, Form, FormName, forms_of
from .worker import Broken, Worker, workers

TURN = 0.2  # seconds of a turn, about


@dataclass(frozen=True, kw_only=True)
class Settings:
    # What is measured
    models: Annotated[tuple[str, ...], Positional, arg(metavar="MODEL")]  # run folders, files of their checkpoints,
    # exported folders, weights files, names, or module:function
    architecture: Annotated[str, arg(metavar="NAME")] = ""  # timm's name of what a weights file fits (default: a DeiT)
    forms: tuple[FormName, ...] = FORMS  # of models that are no ONNX file (default: all four)

    # On which images
    data: Annotated[str, arg(metavar="FOLDER")] = ""  # its validation images for top-1 (default: no top-1)
    batch_sizes: tuple[int, ...] = (1, 32)  # of random images, for the speed (default: 1 32)

    # The answer
    json: Annotated[str, arg(metavar="FILE")] = ""  # write every number there (default: no file)
    picture: Annotated[str, arg(metavar="PNG")] = ""  # draw images/s there (default: no picture)

    # How
    rounds: int = 9  # turns of each form (default: 9, of which the median counts)
    threads: int = 0  # of each process (default: one a core)


@command.entry("benchmark")
def main(arguments: Sequence[str]) -> None:
    given = command.parse(Settings, arguments, program="deit-fast benchmark", description=__doc__)
    for name, value in (("--rounds", given.rounds), ("--batch-sizes", min(given.batch_sizes))):
        if value < 1:
            raise ValueError(f"{name} is 1 or more, got {value}")
    if given.threads < 0:
        raise ValueError(f"--threads is 1 or more, or 0 for one a core, got {given.threads}")
    for path, advice in ((given.json, "--json"), (given.picture, "--picture")):
        if path:
            check_writable(Path(path), f"type {advice} and the path of a file in a folder that exists")
    if twice := {name for name in given.models if given.models.count(name) > 1}:
        raise ValueError(f"{min(twice)} is named twice: type every model once")
    threads = given.threads or len(os.sched_getaffinity(0))
    with TemporaryDirectory() as temporary:
        forms: list[Form] = []
        for model in given.models:
            found, left_out = forms_of(model, given.forms, Path(temporary), given.data, given.architecture)
            forms += found
            for sentence in left_out:
                print(f"left out: {shown(sentence)}", file=sys.stderr)
        if given.data:  # before minutes are spent
            forms = [form.of_data(given.data) for form in forms]
        with workers(forms, threads) as (running, broken):
            rows = measure(running, broken, given)
    for name, why in broken.items():
        print(f"left out: {shown(name)}: {shown(why)}", file=sys.stderr)
    if not rows:
        raise ValueError("none of the models runs here in any of these forms: the lines above say why")
    results: dict[str, Any] = {
        "threads": threads, "rounds": given.rounds, "rows": rows, "left_out": broken,
        **provenance("deit-fast benchmark", arguments),
    }  # fmt: skip
    results["versions"] |= versions(("onnxruntime", "onnx"))
    Console(highlight=False).print(table(results, given.batch_sizes))
    if given.json:
        write_json(Path(given.json), results)
    if given.picture:
        draw(rows, given.batch_sizes, results["machine"], Path(given.picture))


def measure(running: Mapping[str, Worker], broken: dict[str, str], given: Settings) -> list[dict[str, Any]]:
    """A row for each form that runs; those that fail on the way go to `broken`."""
    rates: dict[str, dict[str, list[float]]] = {name: {} for name in running}
    for batch in given.batch_sizes:
        turns: dict[str, int] = {}
        for name, worker in running.items():
            try:
                worker.run(batch, 1)  # which compiles
                turns[name] = max(1, int(TURN / worker.run(batch, 1)))
            except Broken as error:
                broken[name] = str(error)
        runs = {name: partial(running[name].run, batch, turns[name]) for name in running if name not in broken}
        # Time is what the processes count themselves, so that passing messages is not in it.
        seconds = alternate(runs, rounds=given.rounds, clock=lambda: sum(worker.spent for worker in running.values()))
        for name, spent in seconds.items():
            rates[name][str(batch)] = [batch * turns[name] / each for each in spent]
    rows = []
    for name, worker in running.items():
        if name in broken:
            continue
        try:
            memory = worker.ask("memory")  # of the speed alone
            top1, images = worker.ask("top1", given.data) if given.data else (None, 0)
        except Broken as error:
            broken[name] = str(error)
            continue
        form = worker.form
        rows.append({
            "model": form.model, "form": form.form, "top1": top1, "images": images,
            "images_per_second": {batch: statistics.median(each) for batch, each in rates[name].items()},
            "rates": rates[name], "first_call_seconds": worker.first.seconds, "file_megabytes": form.megabytes,
            "memory_megabytes": memory,
        })  # fmt: skip
    return rows


def table(results: Mapping[str, Any], batch_sizes: Sequence[int]) -> Table:
    """A row a form, below its model."""
    title = f"{results['machine']}, {results['threads']} threads, {results['date']}"
    speeds = [f"images/s,\nbatch {batch}" for batch in batch_sizes]
    drawn = table_of(escape(title), "", "top-1", *speeds, "first\ncall, s", "file,\nMB", "memory,\nMB")
    drawn.columns[0].overflow, drawn.columns[0].min_width = "fold", 12
    for column in drawn.columns[1:]:
        column.no_wrap = True  # a narrow terminal folds the names
    for model, rows in groupby(results["rows"], key=lambda row: row["model"]):
        drawn.add_row(escape(shown(model)))
        for row in rows:
            top1 = "" if row["top1"] is None else f"{row['top1']:.2f}"
            rates = [f"{row['images_per_second'][str(batch)]:,.1f}" for batch in batch_sizes]
            sizes = [f"{row['file_megabytes']:,.1f}", f"{row['memory_megabytes']:,.0f}"]
            drawn.add_row(f"  {row['form']}", top1, *rates, f"{row['first_call_seconds']:.2f}", *sizes)
    return drawn


def draw(rows: Sequence[Mapping[str, Any]], batch_sizes: Sequence[int], machine: str, target: Path) -> None:
    """images/s of every form, a panel a batch size."""
    names = [f"{shown(Path(row['model']).name)}, {row['form']}" for row in rows]
    size = (5.5 * len(batch_sizes) + 1, 1.2 + 0.4 * len(rows))
    with picture(target, 1, len(batch_sizes), figsize=size, squeeze=False, sharey=True) as (figure, axes):
        figure.suptitle(machine, fontsize="medium")
        for axis, batch in zip(axes[0], batch_sizes, strict=True):
            bars = axis.barh(names, [row["images_per_second"][str(batch)] for row in rows])
            axis.bar_label(bars, fmt="{:,.0f}", padding=3)
            axis.set_title(f"images/s, batches of {batch}")
            axis.margins(x=0.15)
        axes[0][0].invert_yaxis()


if __name__ == "__main__":
    command.leave(main())
