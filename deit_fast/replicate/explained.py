"""Why the teacher's labels help, to look at: crops that lost the object, and who disagrees with whom (Table 4).

A crop of a training image keeps its label, whatever is left of the object; the teacher labels what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deit_kernels.augment import ImageBatch, apply, sample_plan

from ..config import Config
from ..data import EvalLoader, decode, open_dataset
from ..data.preview import named_ops, pixels_of
from ..model import Normalisation
from ..picture import picture
from ..scores import TRUTH, Renormalised, head_logits, predict
from ..weights.trained import load

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
ROWS, COLUMNS = 3, 8  # of crops in the picture
_COPIES = 4  # crops of each training image that are looked at


class Pair(NamedTuple):
    """The two students of one seed; `taught` knows its teacher."""

    alone: Config
    taught: Config


def table4(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The share of validation images that two models or heads classify differently, the mean of all seeds.

    {"names": [words], "percent": [[per cent]], "seeds": n, "paper": [[name, name, per cent]]}.
    """
    found: list[NDArray[np.float64]] = []
    for pair in pairs:
        taught = load(pair.taught.run_folder())
        given = taught.preprocessing.normalisation
        models = {
            "teacher": _seeing(pair.taught.teacher, given),
            "none": _seeing(pair.alone.run_folder(), given),
            "token": taught.model,
        }
        _, images = open_dataset(pair.taught.data)
        predictions = predict(models, EvalLoader(images, taught.policy, batch_size=250, threads=1))
        found.append(100 * predictions.disagreement(list(NAMES)))
    return {
        "names": list(NAMES.values()),
        "percent": np.mean(found, axis=0).round(2).tolist(),
        "seeds": len(found),
        "paper": [[NAMES[one], NAMES[other], percent] for (one, other), percent in PAPER.items()],
    }


def draw_crops(taught: Config, target: Path) -> dict[str, Any]:
    """Draw training crops that the teacher labels otherwise than their image is labelled, and what the tokens say.

    Looked at are the first epochs' crops of all training images, without mixing. The picture shows the first of each
    class in turn; nothing else is selected. Returns {"crops", "relabelled": per cent, "cls_with_teacher": per cent of
    the relabelled on which the class token says what the teacher says, "dist_with_teacher", "cls_with_label",
    "dist_with_label"}.
    """
    student = load(taught.run_folder())
    teacher = _seeing(taught.teacher, student.preprocessing.normalisation)
    images, _ = open_dataset(taught.data)
    policy = replace(taught.training_policy(student.preprocessing.normalisation), mix=None)
    originals = [pixels_in_colour(images, index) for index in range(len(images))]
    sample = np.arange(len(images)).repeat(_COPIES)
    batch = ImageBatch.from_images(originals)
    batch = ImageBatch(batch.data, *(table.repeat_interleave(_COPIES) for table in batch[1:]))
    plan = sample_plan(
        policy, seed=taught.data_seed, epoch=0, sample=sample, copy=np.tile(np.arange(_COPIES), len(images)),
        height=batch.height.numpy(), width=batch.width.numpy(),
    )  # fmt: skip
    crops = apply(batch, plan)
    with torch.no_grad():
        parts = [{"teacher": teacher(part), **head_logits(student.model, part)} for part in crops.split(500)]
    said = {key: torch.cat([part[key] for part in parts]).argmax(1).numpy() for key in ("teacher", "cls", "dist")}
    label = images.labels[sample]
    (lost,) = np.nonzero(said["teacher"] != label)
    percent = {
        f"{head}_with_{name}": 100 * float(np.mean(said[head][lost] == other[lost])) if len(lost) else None
        for head in ("cls", "dist")
        for name, other in (("teacher", said["teacher"]), ("label", label))
    }
    by_class = [lost[label[lost] == number] for number in range(len(images.classes))]
    turns = max(map(len, by_class), default=0)
    shown = [rows[turn] for turn in range(turns) for rows in by_class if turn < len(rows)][: ROWS * COLUMNS]
    pixels = pixels_of(crops[shown], policy) if shown else []
    with picture(target, ROWS, 2 * COLUMNS, figsize=(2 * COLUMNS * 0.95, ROWS * 1.75), squeeze=False) as (_, axes):
        for panel in axes.flat:
            panel.axis("off")
        for place, row in enumerate(shown):
            line, column = divmod(place, COLUMNS)
            before, after = axes[line, 2 * column], axes[line, 2 * column + 1]
            before.imshow(originals[sample[row]])
            before.set_title(f"labelled {images.classes[label[row]]}", fontsize=8)
            after.imshow(pixels[place])
            words = {key: images.classes[values[row]] for key, values in said.items()}
            tokens = f"class {words['cls']}, dist. {words['dist']}"
            after.set_title(f"{named_ops(plan.table[row])}\nteacher {words['teacher']}\n{tokens}", fontsize=7)
    return {"crops": len(sample), "relabelled": 100 * len(lost) / len(sample), **percent}


def pixels_in_colour(images: Any, index: int) -> NDArray[np.uint8]:
    """The decoded image, uint8 (H, W, 3)."""
    content = images.read(index)
    return decode(content) if isinstance(content, bytes) else content


def _seeing(run: str | Path, given: Normalisation) -> Renormalised:
    """The model of a run, for images of another normalisation."""
    trained = load(run)
    return Renormalised(trained.model, given, trained.preprocessing.normalisation)
