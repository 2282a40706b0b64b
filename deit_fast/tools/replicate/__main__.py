"""The paper's Tables 2, 3 and 4 at a scale that runs anywhere: four trainings, two kinds of teacher, on small data.

    deit-fast replicate                               300 digits of MNIST, five seeds
    deit-fast replicate --seeds 10 --shorter 3        what docs/the-claim.md confirms
    deit-fast replicate --data /flowers --seeds 3     your own images, with the photographs' models

Four trainings give the six rows of Table 3: none; soft and hard distillation of the class token; hard distillation with
the distillation token, evaluated as class token, distillation token and both (summed softmaxes, paper section 4). Table
2 is the last training again, from a transformer instead of a ConvNet. A seed means initialisation, order and
augmentation; all seeds learn from the same two teachers, and rows are compared seed by seed. Table 4 is who disagrees
with whom, and labels.png shows training images that the teacher labels otherwise than the data does. On MNIST's digits
the settings are those that docs/the-claim.md found best for either side.

An estimate of the time comes first. Every training is a run folder below --out: the same command continues where it
stopped, and typed in a second terminal it takes its share of the trainings. At the end results.json, results.png and
labels.png lie there, and one sentence says in which comparisons the paper's order holds, whatever they are. Numbers at
this scale are about this scale: they neither confirm nor refute the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from ... import command
from ...config import Config
from ...files import write_json
from ...recipes.named import OF_BUILT_IN_DATA, RECIPES, recipe
from ...recipes.paper import SOFT
from ...run.provenance import provenance
from . import explained, tables
from .trials import expected, finished, train_all, trial

PLAIN, DISTILLED = "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"
TRAININGS: dict[str, dict[str, Any]] = {
    "none": {"model": PLAIN, "distill": "none"},
    "soft": {"model": PLAIN, "distill": "soft", "distill_on": "class", **SOFT["paper"]},
    "hard": {"model": PLAIN, "distill": "hard", "distill_on": "class"},
    "token": {"model": DISTILLED, "distill": "hard", "distill_on": "token"},
}
# The transformer teacher: the student's kind, wider and trained longer, to be about as good as the ConvNet; with 300
# digits it stays behind.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "mnist5k": {"model": PLAIN, "width": 128, "heads": 4, "epochs": 400, "warmup_epochs": 20},
    "digits": {"model": PLAIN, "width": 128, "depth": 6, "heads": 4, "epochs": 60, "warmup_epochs": 4, "lr": 0.015},
    "photos": {"model": PLAIN, "epochs": 40, "warmup_epochs": 4},
}
SHORTER = ("none", "token")  # what --shorter trains once more


@dataclass(frozen=True)
class Settings:
    """What is replicated, and how much of it: the command line."""

    # What is replicated
    data: str = "mnist5k"  # mnist5k, photos, digits, or a folder with train/ and val/

    # How much of it
    seeds: int = 5  # trainings of each kind (default: 5; one decides nothing)
    shorter: int = 0  # trains none and token once more, with the epochs divided by this (default: 0, not)
    epochs: int = 0  # of each student (default: as the data's recipe)
    batch_size: int = 0  # of every training, for small data (default: as the data's recipe)

    # Where and how
    out: Annotated[str, arg(metavar="FOLDER")] = ""  # of the runs and the results (default: runs/replicate-DATA)
    threads: int = 0  # that decode the images (default: one a core)
    report: bool = False  # the results of what is finished; nothing is trained

    def folder(self) -> Path:
        return Path(self.out or f"runs/replicate-{Path(self.data).name}")

    def check(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds {self.seeds} trains nothing: type --seeds 5, or at least 1")
        if self.shorter < 0 or self.shorter == 1:
            raise ValueError(f"--shorter {self.shorter}: type a divisor of the epochs, such as 3, or leave it out")
        if self.epochs < 0:
            raise ValueError(f"--epochs {self.epochs}: type the number of passes, or leave it out for the recipe's")
        if self.batch_size < 0:
            raise ValueError(
                f"--batch-size {self.batch_size}: type a number of images, or leave it out for the recipe's"
            )


def trials(settings: Settings) -> dict[str, Config]:
    """Every training by the name of its run folder: teacher-convnet, teacher-transformer, seed0-none, ….

    Behind the seed stands a key of TRAININGS, or "transformer" for Table 2; those that end in "-shorter" come last.
    """
    name, folder = OF_BUILT_IN_DATA.get(settings.data, "demo"), settings.folder()
    taught, convnet = recipe(name), recipe(f"{name}-teacher")
    alone = recipe(f"{name}-alone") if f"{name}-alone" in RECIPES else taught
    found: dict[str, Config] = {}

    def add(run: str, base: Config, epochs: int = 0, **changes: Any) -> None:
        config = trial(base, folder / run, epochs, **changes)
        found[run] = config.replace(
            data=settings.data, threads=settings.threads, batch_size=settings.batch_size or base.optim.batch_size,
            eval_every=config.optim.epochs, keep=1, report=False,
        )  # fmt: skip

    add("teacher-convnet", convnet)
    apart: dict[str, Any] = {"distill": "none", "teacher": "", "ema_decay": 0.0}
    add("teacher-transformer", taught, **apart | TRANSFORMERS.get(settings.data, TRANSFORMERS["photos"]))
    parts: list[tuple[int, str, Sequence[str]]] = [(1, "", [*TRAININGS, "transformer"])]
    parts += [(settings.shorter, "-shorter", SHORTER)] if settings.shorter else []
    for divisor, suffix, keys in parts:
        for seed in range(settings.seeds):
            for key in keys:
                base = alone if key == "none" else taught
                epochs = max(1, (settings.epochs or base.optim.epochs) // divisor)
                kind = "transformer" if key == "transformer" else "convnet"
                teacher = "" if key == "none" else str(folder / f"teacher-{kind}")
                changes: dict[str, Any] = {"teacher": teacher, "seed": seed, "data_seed": seed, "ema_decay": 0.0}
                add(f"seed{seed}-{key}{suffix}", base, epochs, **changes | TRAININGS.get(key, TRAININGS["token"]))
    return found


def replicate(settings: Settings, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Train what is not trained yet, write results.json and results.png; returns what results.json holds.

    `arguments` are those of the command line, for the record.
    """
    settings.check()
    folder, every = settings.folder(), trials(settings)
    # What is wrong with any of them is found before the first is trained.
    for config in every.values():
        config.check()
    if not settings.report:
        train_all(every, expected(every))
    summaries = finished(every)
    teachers: dict[str, Any] = {}
    measured: dict[str, dict[int, Any]] = {}
    for name, summary in summaries.items():
        first, _, key = name.partition("-")
        if first == "teacher":
            teachers[key] = summary["student"]["cls"]
        else:
            measured.setdefault(key, {})[int(first.removeprefix("seed"))] = summary["student"]
    if not teachers or not measured:
        raise ValueError(f"{folder} holds no teacher and its student yet: leave out --report, and they are trained")
    results = {
        "data": settings.data,
        "epochs": every["seed0-none"].optim.epochs,
        "seeds": max(map(len, measured.values())),
        "divisor": settings.shorter,
        **tables.results(measured, teachers),
        **provenance("deit-fast replicate", arguments),
        "configurations": {
            name.removeprefix("seed0-"): config.identity()
            for name, config in every.items()
            if name.startswith(("seed0-", "teacher-"))
        },
    }
    results["sentence"] = tables.sentence(results)
    seeds = [seed for seed in measured.get("token", ()) if seed in measured.get("none", ())]
    if pairs := [(every[f"seed{seed}-none"], every[f"seed{seed}-token"]) for seed in seeds]:
        results["table4"] = explained.table4(pairs)
        results["labels"] = explained.draw_labels(pairs[0][1], folder / "labels.png")
    results["runs"] = summaries
    write_json(folder / "results.json", results)
    tables.draw(results, folder / "results.png")
    return results


@command.entry("replicate")
def main(arguments: Sequence[str]) -> None:
    given = command.parse(Settings, arguments, program="deit-fast replicate", description=__doc__)
    tables.show(replicate(given, arguments), given.folder())


if __name__ == "__main__":
    command.leave(main())
