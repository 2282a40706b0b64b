"""Why the teacher's labels help, to look at: images that augmentation spoiled, and who disagrees with whom (Table 4).

A crop keeps its image's label, whatever is left of the object, and a mixed image the shares of its two; the teacher
labels what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_kernels import MixedTarget

from ...config import Config
from ...data import EvalLoader, open_dataset
from ...data.training import TrainingData
from ...model import Normalisation
from ...picture import picture
from ...ranks.group import join
from ...scores import TRUTH, Renormalised, head_logits, predict
from ...weights.trained import load
from ..pixels import pixels_of

# As the paper's Table 4 has them; `none` is the student without a teacher.
NAMES = {
    TRUTH: "true labels",
    "teacher/cls": "teacher",
    "none/cls": "not distilled",
    "token/cls": "class token",
    "token/dist": "distillation token",
    "token/softmax": "both",
}
# What the paper's Table 4 has of DeiT-B and RegNetY-16GF on ImageNet, per cent.
PAPER = {
    ("teacher/cls", "none/cls"): 13.3,
    ("teacher/cls", "token/cls"): 11.2,
    ("teacher/cls", "token/dist"): 10.0,
    ("teacher/cls", "token/softmax"): 10.2,
    ("token/cls", "token/dist"): 5.0,
}
SAYING = ("teacher", "cls", "dist")
ROWS, COLUMNS = 3, 8  # of images in the picture
_STEPS = 60  # whose images are looked at


def table4(pairs: Sequence[tuple[Config, Config]]) -> dict[str, Any]:
    """The share of validation images that two models or heads classify differently, the mean of all seeds.

    A pair is the student without a teacher and the taught one of the same seed.

    {"names": [words], "percent": [[per cent]], "seeds": n, "paper": [[name, name, per cent]]}.
    """
    found: list[NDArray[np.float64]] = []
    for alone, student in pairs:
        taught = load(student.run_folder())
        given = taught.preprocessing.normalisation
        models = {
            "teacher": _seeing(student.distill.teacher, given),
            "none": _seeing(alone.run_folder(), given),
            "token": taught.model,
        }
        _, images = open_dataset(student.data.data)
        predictions = predict(models, EvalLoader(images, taught.policy, batch_size=250, threads=1))
        found.append(100 * predictions.disagreement(list(NAMES)))
    return {
        "names": list(NAMES.values()),
        "percent": np.mean(found, axis=0).round(2).tolist(),
        "seeds": len(found),
        "paper": [[NAMES[one], NAMES[other], percent] for (one, other), percent in PAPER.items()],
    }


def draw_labels(taught: Config, target: Path) -> dict[str, Any]:
    """Draw training images that the teacher labels otherwise than the data does, and what the student's tokens say.

    Looked at are the images of the first `_STEPS` steps of the run, exactly as it saw them: cropped, and mixed where it
    mixes. The data's label of a mixed image is the heavier of its two. The picture shows the first of each label in
    turn; nothing else is selected.

    Returns:
        {"images", "other": share of them that the teacher labels otherwise, "neither": share that it gives neither of
        the mixed labels, "cls_with_teacher": share of the others on which the class token says what the teacher says,
        "cls_with_label", "dist_with_teacher", "dist_with_label"}, all in per cent but the first.
    """
    student = load(taught.run_folder())
    teacher = _seeing(taught.distill.teacher, student.preprocessing.normalisation)
    columns: dict[str, list[Tensor]] = {}
    with join(taught.agreed(), taught.check) as ranks, torch.no_grad():
        data = TrainingData.open(taught.data, taught.optim, ranks)
        loaders = data.loaders(student.preprocessing.normalisation, ranks)
        models = [model.to(ranks.device) for model in (teacher, student.model)]
        for batch in loaders.training(range(min(_STEPS, data.total_steps))):
            mixed = isinstance(batch.target, MixedTarget)
            partner, weight = (
                batch.target[1:] if mixed else (batch.labels, torch.ones_like(batch.labels, dtype=torch.float32))
            )
            swapped = weight < 0.5
            logits = {"teacher": models[0](batch.images), **head_logits(models[1], batch.images)}
            row = {
                "images": batch.images,
                "label": torch.where(swapped, partner, batch.labels),
                "partner": torch.where(swapped, batch.labels, partner),
                "weight": torch.where(swapped, 1 - weight, weight),
                **{name: logits[name].argmax(1) for name in SAYING},
            }
            for name, value in row.items():
                columns.setdefault(name, []).append(value.cpu().clone())
    seen = {name: torch.cat(values) for name, values in columns.items()}
    images = seen.pop("images")
    said = {name: values.numpy() for name, values in seen.items()}
    (others,) = np.nonzero(said["teacher"] != said["label"])
    agreeing = {
        f"{head}_with_{name}": _percent(said[head][others] == said[name][others])
        for head in ("cls", "dist")
        for name in ("teacher", "label")
    }
    classes = data.train_set.classes
    by_label = [others[said["label"][others] == number] for number in range(len(classes))]
    turns = range(max(map(len, by_label)))
    shown = [rows[turn] for turn in turns for rows in by_label if turn < len(rows)][: ROWS * COLUMNS]
    with picture(target, ROWS, COLUMNS, figsize=(COLUMNS * 1.45, ROWS * 2.0), squeeze=False) as (_, axes):
        for panel in axes.flat:
            panel.axis("off")
        for panel, row in zip(axes.flat, shown, strict=False):
            panel.imshow(pixels_of(images[row : row + 1], loaders.policy)[0])
            words = {name: classes[values[row]] for name, values in said.items() if name != "weight"}
            label, weight = f"label {words['label']}", said["weight"][row]
            if weight < 1:
                label += f" ({weight:.0%}), {words['partner']} ({1 - weight:.0%})"
            tokens = f"class token {words['cls']}\ndistillation token {words['dist']}"
            panel.set_title(f"{label}\nteacher {words['teacher']}\n{tokens}", fontsize=7)
    return {
        "images": len(images),
        "other": _percent(said["teacher"] != said["label"]),
        "neither": _percent((said["teacher"] != said["label"]) & (said["teacher"] != said["partner"])),
        **agreeing,
    }


def _percent(hits: NDArray[np.bool_]) -> float | None:
    return 100 * float(hits.mean()) if len(hits) else None


def _seeing(run: str | Path, given: Normalisation) -> Renormalised:
    """The model of a run, for images of another normalisation."""
    trained = load(run)
    return Renormalised(trained.model, given, trained.preprocessing.normalisation)
