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

import dataclasses
from collections.abc import Iterator, Sequence
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
from . import explained, progress, report
from .progress import Training, finished

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


def teachers(settings: Settings) -> dict[str, Training]:
    """The two teachers, "convnet" and "transformer", each trained once."""
    student, convnet = _recipes(settings)
    transformer = dataclasses.replace(
        student, distill="none", teacher="", ema_decay=0.0, **TRANSFORMERS.get(settings.data, TRANSFORMERS["photos"])
    )
    return {
        name: Training(f"teacher, {name}", _run(settings, config, f"teacher-{name}"))
        for name, config in (("convnet", convnet), ("transformer", transformer))
    }


def students(settings: Settings) -> Iterator[tuple[int, str, Training]]:
    """(seed, key, training) of every student.

    The keys are those of TRAININGS, "transformer" for Table 2, and "none-shorter" and "token-shorter" after all others.
    """
    taught, _ = _recipes(settings)
    alone = recipe(f"{taught.recipe}-alone") if f"{taught.recipe}-alone" in RECIPES else taught
    known = teachers(settings)
    kinds = {key: (1, changes) for key, changes in (TRAININGS | {"transformer": TRAININGS["token"]}).items()}
    shorter = {f"{key}-shorter": (settings.shorter, TRAININGS[key]) for key in SHORTER if settings.shorter}
    for part in (kinds, shorter):
        for seed in range(settings.seeds):
            for key, (divisor, changes) in part.items():
                base = alone if changes["distill"] == "none" else taught
                epochs = max(1, (settings.epochs or base.epochs) // divisor)
                teacher = known.get(key, known["convnet"])
                spec = "" if changes["distill"] == "none" else str(teacher.config.run_folder())
                config = dataclasses.replace(
                    base, **changes, teacher=spec, seed=seed, data_seed=seed, epochs=epochs, ema_decay=0.0,
                    warmup_epochs=base.warmup_epochs * epochs / base.epochs,
                )  # fmt: skip
                yield seed, key, Training(f"seed {seed}, {key}", _run(settings, config, f"seed{seed}-{key}"))


def replicate(settings: Settings, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Train what is not trained yet, write results.json and results.png; returns what results.json holds.

    `arguments` are those of the command line, for the record.
    """
    settings.check()
    folder = settings.folder()
    both, every = teachers(settings), list(students(settings))
    trainings = [*both.values(), *(training for *_, training in every)]
    # What is wrong with any of them is found before the first is trained.
    for training in trainings:
        training.config.check()
    if not settings.report:
        progress.train_all(trainings)
    summaries = {training.name: summary for training in trainings if (summary := finished(training.config))}
    scores = {key: summaries[one.name]["student"]["cls"] for key, one in both.items() if one.name in summaries}
    measured: dict[str, dict[int, dict[str, Any]]] = {}
    for seed, key, training in every:
        if training.name in summaries:
            measured.setdefault(key, {})[seed] = summaries[training.name]["student"]
    if not scores or not measured:
        raise ValueError(f"{folder} holds no teacher and its student yet: leave out --report, and they are trained")
    results = {
        "data": settings.data,
        "epochs": every[0][2].config.epochs,
        "seeds": max(map(len, measured.values())),
        "divisor": settings.shorter,
        **report.results(measured, scores),
        **provenance("deit-fast replicate", arguments),
        "configurations": {key: training.config.identity() for seed, key, training in every if not seed}
        | {f"teacher-{key}": training.config.identity() for key, training in both.items()},
    }
    results["sentence"] = report.sentence(results)
    configs = {(seed, key): training.config for seed, key, training in every if training.name in summaries}
    pairs = [
        explained.Pair(configs[seed, "none"], one)
        for (seed, key), one in configs.items()
        if key == "token" and (seed, "none") in configs
    ]
    if pairs:
        results["table4"] = explained.table4(pairs)
        results["labels"] = explained.draw_labels(pairs[0].taught, folder / "labels.png")
    results["runs"] = {Path(one.config.out).name: summaries[one.name] for one in trainings if one.name in summaries}
    write_json(folder / "results.json", results)
    report.draw(results, folder / "results.png")
    return results


def _recipes(settings: Settings) -> tuple[Config, Config]:
    """The student's and the ConvNet's configuration on this data."""
    name = OF_BUILT_IN_DATA.get(settings.data, "demo")
    return recipe(name), recipe(f"{name}-teacher")


def _run(settings: Settings, config: Config, name: str) -> Config:
    """A configuration with its place, on this data, evaluated at its end only."""
    return dataclasses.replace(
        config, data=settings.data, threads=settings.threads, eval_every=config.epochs, keep=1,
        batch_size=settings.batch_size or config.batch_size, report=False, out=str(settings.folder() / name),
    )  # fmt: skip


@command.entry("replicate")
def main(arguments: Sequence[str]) -> None:
    given = command.parse(Settings, arguments, program="deit-fast replicate", description=__doc__)
    report.show(replicate(given, arguments), given.folder())


if __name__ == "__main__":
    command.leave(main())
