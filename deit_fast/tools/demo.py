"""The demo: a teacher, a student that learns from it, and the same student without it, compared on MNIST's digits.

    deit-fast demo            a few minutes on two CPU cores

Each side has the augmentation and the learning rate that suited it best (docs/the-claim.md); the teacher's labels are
the only other difference. All three are ordinary runs, below --out: the same command continues where it stopped, and
ends with a table and picture of the three. One seed shows how it looks; deit-fast replicate decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from tyro.conf import arg

from .. import command
from ..config import Config
from ..files import write_json
from ..names import HEADS
from ..picture import picture
from ..recipes.named import recipe
from ..run.provenance import provenance
from ..run.report import table_of
from .replicate.trials import finished, train_all, trial
from .report.page import write_missing

# Name of the run → recipe, what the model is called, and the head that speaks for it.
STUDENTS = {
    "with-teacher": ("mnist5k", "student, taught", "softmax"),
    "without-teacher": ("mnist5k-alone", "the same student, not taught", "cls"),
}
EVALUATIONS = 10  # in each training


@dataclass(frozen=True)
class Settings:
    """How the demo runs: the command line."""

    # How much of it
    epochs: int = 0  # of each student (default: as the recipe)
    seed: int = 0  # of both students

    # Where and how
    out: Annotated[str, arg(metavar="FOLDER")] = "runs/demo"  # of the three runs, the table and the picture
    threads: int = 0  # that decode the images (default: one a core)


def trials(settings: Settings) -> dict[str, Config]:
    """The two students, by the name of their run folder; the first trains the teacher."""
    if settings.epochs < 0:
        raise ValueError(f"--epochs {settings.epochs}: type the number of passes, or leave it out for the recipe's")
    found = {}
    for name, (recipe_name, *_) in STUDENTS.items():
        base, seed = recipe(recipe_name), settings.seed
        every = max(1, (settings.epochs or base.optim.epochs) // EVALUATIONS)
        found[name] = trial(
            base, Path(settings.out) / name, settings.epochs, seed=seed, data_seed=seed, threads=settings.threads,
            eval_every=every,
        )  # fmt: skip
        found[name].check()
    return found


def demo(settings: Settings, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Train the three, write demo.json and demo.png; returns what demo.json holds.

    {"teacher": {"row", "top1"}, "with-teacher": {…, "curve": [[epoch, top-1]]}, "without-teacher": {…}, "gain", "n",
    …}, top-1 in per cent, the gain in points.
    """
    both, folder = trials(settings), Path(settings.out)
    for trained in train_all(both):
        write_missing(trained.finished)
    summaries = finished(both)
    row = f"teacher, a ConvNet ({recipe('mnist5k-teacher').model.model})"
    found: dict[str, Any] = {"teacher": {"row": row, "top1": summaries["with-teacher"]["teacher"]["top1"]}}
    for name, (_, row, head) in STUDENTS.items():
        score, epochs = summaries[name]["student"][head], both[name].optim.epochs
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        evaluations = [line for line in lines if "student" in line]
        per_epoch = evaluations[-1]["step"] / epochs
        curve = [[line["step"] / per_epoch, line["student"][head]["top1"]] for line in evaluations]
        found[name] = {"row": row, "head": HEADS[head], "top1": score["top1"], "curve": curve}
    gain = found["with-teacher"]["top1"] - found["without-teacher"]["top1"]
    source = provenance("deit-fast demo", arguments)
    results = {**found, "gain": gain, "n": score["n"], "epochs": epochs, **source}
    write_json(folder / "demo.json", results)
    draw(results, folder / "demo.png")
    return results


def show(results: dict[str, Any], folder: Path) -> None:
    """Print the table, the gain, and the paths of the files."""
    console = Console(soft_wrap=True, highlight=False)
    table = table_of(f"top-1 on {results['n']:,} test images of MNIST-5k, per cent", "", "top-1", "errors")
    for key in ("teacher", *STUDENTS):
        row = results[key]
        table.add_row(row["row"], f"{row['top1']:.1f}", f"{round((100 - row['top1']) * results['n'] / 100)}")
    console.print(table)
    console.print(f"the teacher's labels gave {results['gain']:+.1f} points, with this seed", markup=False)
    console.print(f"{folder / 'demo.json'}, {folder / 'demo.png'}", markup=False)


def draw(results: dict[str, Any], target: Path) -> None:
    """Left the test accuracy over the training, right the three at its end."""
    colors = {"teacher": "black", "with-teacher": "tab:green", "without-teacher": "tab:red"}
    with picture(target, 1, 2, figsize=(11, 4.5), width_ratios=(3, 2)) as (figure, (course, end)):
        figure.suptitle(f"MNIST-5k, {results['n']:,} test images: what a student gains from its teacher")
        for name in STUDENTS:
            row = results[name]
            course.plot(*zip(*row["curve"], strict=True), color=colors[name], marker=".", label=row["row"])
        course.axhline(results["teacher"]["top1"], color="black", linestyle=":", label=results["teacher"]["row"])
        lowest = min(results[name]["top1"] for name in colors)
        course.set(xlabel="epochs", ylabel="top-1, per cent", ylim=(max(0, lowest - 20), 100))
        course.legend(loc="lower right")
        names = ["teacher", "taught", "not taught"]
        for place, name in enumerate(colors):
            end.plot(results[name]["top1"], place, "o", color=colors[name], markersize=10)
            end.annotate(f"{results[name]['top1']:.1f}", (results[name]["top1"], place), (10, -4),
                         textcoords="offset points")  # fmt: skip
        end.set_yticks(range(len(names)), names)
        end.set(title=f"at the end: {results['gain']:+.1f} points, one seed",
                xlabel="top-1, per cent", xlim=(max(0, lowest - 2), 101), ylim=(2.5, -0.5))  # fmt: skip
        for axes in (course, end):
            axes.grid(alpha=0.3)


@command.entry("demo")
def main(arguments: Sequence[str]) -> None:
    given = command.parse(Settings, arguments, program="deit-fast demo", description=__doc__)
    # So small a model gains little from a second thread, and beside another program it becomes much slower with one.
    torch.set_num_threads(1)
    show(demo(given, arguments), Path(given.out))


if __name__ == "__main__":
    command.leave(main())
