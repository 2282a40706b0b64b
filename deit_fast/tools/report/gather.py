"""What a report says of a run's images: confusions, mistakes, suspects, with the thumbnails to show them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...data import Dataset, open_dataset
from ...data.training import describe
from ...files import shown
from ...names import HEADS, headline
from ...teacher.load import load_teacher, recipe_config
from ...weights.prediction import Trained
from ...weights.trained import run_model
from .duplicates import CORRELATION, near_duplicates
from .facts import Facts
from .gallery import Gallery, Thumbnail
from .look import Seen, look
from .suspects import Votes, cached_votes, doubtful

WHOLE_MATRIX = 24  # classes up to which the matrix is shown whole, else its largest pairs
MOST_PAIRS = 60
MISTAKES, RIGHTS, SUSPECTS, DUPLICATES = 24, 12, 48, 40  # that are shown; --json lists all
EACH, ALL = 8, 480  # thumbnails of one confusion, and of all
OWN = "model"  # the run's model among those that look
PARTS = {"val": "validation", "train": "training"}


class Gone(ValueError):
    """The images, or the weights to look at them with, are not there (any more); the text says what to do."""


@dataclass
class Looked:
    """A run's images as its model and its teacher see them."""

    facts: Facts
    sets: dict[str, Dataset]  # "val", "train"
    trained: Trained
    seen: dict[str, Seen]
    votes: Votes | None  # of the training images in `seen`, from the label cache
    notes: list[str] = field(default_factory=list)  # what is missing, and why

    @property
    def heads(self) -> dict[str, str]:
        """Name in `seen` -> words, the teacher last."""
        names = {f"{OWN}/{head}": words for head, words in HEADS.items()} | {"teacher/cls": "teacher"}
        return {name: words for name, words in names.items() if name in self.seen["val"].top}

    @property
    def head(self) -> str:
        """The name in `seen` of the answer that --fusion makes the model's own."""
        own = [name.partition("/")[2] for name in self.heads if name != "teacher/cls"]
        return f"{OWN}/{headline(own, self.facts.config.model.fusion)}"

    def path(self, split: str, sample: int) -> str:
        return shown(self.sets[split].path(sample))


def look_at(
    facts: Facts, device: torch.device, threads: int, most: int, enough: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Looked:  # fmt: skip
    """Look at up to `most` images of each split, 0: all; a random part of a larger one, and less when `enough`.

    Raises:
        Gone: the images or the weights are not there.
    """
    config, notes = facts.config, list[str]()
    try:
        train_set, val_set = open_dataset(config.data.data)
        trained = run_model(facts.folder)
    except (ValueError, OSError) as error:
        raise Gone(str(error)) from error
    now = describe(train_set, val_set)
    if changed := [name for name in ("classes", "train", "val", "labels") if now[name] != facts.data.get(name)]:
        parts = " and ".join(changed)
        raise Gone(f"the images of {config.data.data} are others than those of the run: its {parts} changed")
    models: dict[str, nn.Module] = {OWN: trained.model.to(device).eval()}
    if (teacher := _teacher(facts, trained, notes)) is not None:
        models["teacher"] = teacher.to(device).eval()
    sets = {"val": val_set, "train": train_set}
    seen = {}
    for split, dataset in sets.items():
        say(f"looking at {min(most or len(dataset), len(dataset)):,} {PARTS[split]} images")
        chosen = np.random.default_rng(0).permutation(len(dataset))[: most or None]
        try:
            seen[split] = looked = look(dataset, chosen, trained, models, device, threads, enough)
        except ValueError as error:
            raise Gone(str(error)) from error
        if len(looked) + len(looked.bad) < len(dataset):
            notes.append(f"Looked at {len(looked):,} of {len(dataset):,} {PARTS[split]} images, chosen at random.")
        if looked.bad:
            notes.append(f"{len(looked.bad):,} {PARTS[split]} images cannot be read: deit-fast data check says why.")
    votes = None
    if config.distill.distill != "none":
        with suppress(ValueError, OSError):  # a damaged cache: the one pass serves
            policy = config.data.training_policy(trained.preprocessing.normalisation)
            votes = cached_votes(facts, train_set.labels, policy)
    if votes is not None:
        here = seen["train"].sample
        votes = replace(votes, views=votes.views[here], against=votes.against[here], proposed=votes.proposed[here])
    return Looked(facts, sets, trained, seen, votes, notes)


def _teacher(facts: Facts, trained: Trained, notes: list[str]) -> nn.Module | None:
    config = facts.config
    if config.distill.distill == "none":
        return None
    recipe = recipe_config(config.replace(fresh=False))
    spec = str(recipe.run_folder()) if recipe is not None else config.distill.teacher
    architecture, given = config.distill.teacher_model, trained.preprocessing.normalisation
    try:
        return load_teacher(spec, architecture, config.data.image_size, facts.data["classes"], given)
    except (ValueError, OSError) as error:
        notes.append(f"The teacher's answers are missing: {error}.")
        return None


def content(looked: Looked, threads: int) -> dict[str, Any]:
    """The sections about images, JSON values but for the `Thumbnail` under "image"."""
    gallery = Gallery(looked.sets, looked.trained)
    found = {
        "notes": looked.notes,
        "of": looked.trained.source.removeprefix(f"{looked.facts.folder}, "),
        "head": looked.heads[looked.head],
        "looked": {split: len(seen) for split, seen in looked.seen.items()},
        "confusions": _confusions(looked, gallery),
        "per_class": looked.seen["val"].per_class(looked.head),
        **_extremes(looked, gallery),
        "labels": _labels(looked, gallery),
        "duplicates": _duplicates(looked, gallery, threads),
    }
    gallery.fill()
    for image in (image for cell in found["confusions"]["cells"] for image in cell["images"]):
        image["src"] = image.pop("image").src  # page.js reads them
    return found


def _named(looked: Looked, split: str, row: int) -> dict[str, Any]:
    """An image and its label."""
    seen = looked.seen[split]
    path = looked.path(split, int(seen.sample[row]))
    return {"split": split, "path": path, "file": os.path.basename(path), "label": int(seen.label[row])}


def _answered(looked: Looked, split: str, row: int, image: Thumbnail | None) -> dict[str, Any]:
    """An image, its label, every head's answer."""
    seen = looked.seen[split]
    answers = [
        {"head": words, "class": int(seen.answer(name)[row]), "probability": float(seen.probability[name][row]),
         "given": float(seen.given[name][row])}
        for name, words in looked.heads.items()
    ]  # fmt: skip
    own = list(looked.heads).index(looked.head)
    return _named(looked, split, row) | {"answers": answers, "own": own, "image": image}


def _confusions(looked: Looked, gallery: Gallery) -> dict[str, Any]:
    """Every pair of a class and what it is taken for, with the images of the most frequent."""
    val, head = looked.seen["val"], looked.head
    confused = val.confused(head)
    mistakes = {pair: rows for pair, rows in confused.items() if pair[0] != pair[1]}
    whole = val.classes <= WHOLE_MATRIX
    shown_pairs = [*mistakes, *(pair for pair in confused if pair not in mistakes)] if whole else mistakes
    left, cells, matrix = ALL, list[dict[str, Any]](), None
    for pair in list(shown_pairs)[: None if whole else MOST_PAIRS]:
        rows = confused[pair]
        shown_rows = rows[: min(EACH, left)]
        images = [
            {"file": os.path.basename(looked.path("val", sample)),
             "probability": round(float(val.probability[head][row]), 4), "image": gallery.ask("small", "val", sample)}
            for row, sample in zip(shown_rows.tolist(), val.sample[shown_rows].tolist(), strict=True)
        ]  # fmt: skip
        left -= len(images)
        cells.append({"true": pair[0], "taken": pair[1], "count": len(rows), "images": images})
    if whole:
        counts = np.zeros((val.classes, val.classes), np.int64)
        for pair, rows in confused.items():
            counts[pair] = len(rows)
        matrix = counts.tolist()
    listed = [
        {"true": true, "taken": taken, "count": len(rows),
         "paths": [looked.path("val", sample) for sample in val.sample[rows].tolist()]}
        for (true, taken), rows in mistakes.items()
    ]  # fmt: skip
    return {"matrix": matrix, "cells": cells, "pairs": listed, "images": len(val),
            "mistakes": sum(map(len, mistakes.values()))}  # fmt: skip


def _extremes(looked: Looked, gallery: Gallery) -> dict[str, Any]:
    """The mistakes of which the model is surest, and the right answers of which it is least sure."""
    val, head = looked.seen["val"], looked.head
    wrong = val.answer(head) != val.label
    surest = np.argsort(-val.probability[head], kind="stable")
    chosen = {"mistakes": surest[wrong[surest]][:MISTAKES], "rights": surest[~wrong[surest]][::-1][:RIGHTS]}
    return {
        name: [
            _answered(looked, "val", row, gallery.ask("large", "val", int(val.sample[row]))) for row in rows.tolist()
        ]
        for name, rows in chosen.items()
    }


def _labels(looked: Looked, gallery: Gallery) -> dict[str, Any]:
    """Labels that are doubted, of training and validation images together, the most doubtful first."""
    *others, student = (name for name in looked.heads if name in (f"{OWN}/cls", f"{OWN}/dist"))
    teacher = ["teacher/cls"] if "teacher/cls" in looked.heads else []
    ranked = [
        (split, suspect)
        for split, seen in looked.seen.items()
        for suspect in doubtful(seen, looked.votes if split == "train" else None, student, others, *teacher)
    ]
    ranked.sort(key=lambda pair: -pair[1].doubt)
    items = []
    for number, (split, suspect) in enumerate(ranked):
        sample = int(looked.seen[split].sample[suspect.row])
        image = gallery.ask("small", split, sample) if number < SUSPECTS else None
        doubt = suspect._asdict()
        items.append(_answered(looked, split, doubt.pop("row"), image) | doubt)
    source = looked.votes.source if looked.votes else ("one pass" if teacher else "")
    return {"items": items, "source": source, "student": looked.heads[student]}


def _duplicates(looked: Looked, gallery: Gallery, threads: int) -> dict[str, Any]:
    """Pairs of images that show the same; those across training and validation first."""
    places = [(split, row) for split, seen in looked.seen.items() for row in range(len(seen))]
    found = near_duplicates(np.concatenate([seen.grey for seen in looked.seen.values()]), threads)
    alike = [((places[pair.first], places[pair.second]), pair) for pair in found.pairs]
    alike.sort(key=lambda item: item[0][0][0] == item[0][1][0])  # across the splits first, then as they were found
    items = []
    for number, (both, pair) in enumerate(alike):
        images = [_named(looked, *place) for place in both]
        for image, (split, row) in zip(images, both, strict=True):
            sample = int(looked.seen[split].sample[row])
            image["image"] = gallery.ask("whole", split, sample) if number < DUPLICATES else None
        items.append({
            "images": images, "across": images[0]["split"] != images[1]["split"], "bits": pair.bits,
            "correlation": pair.correlation, "labels_differ": images[0]["label"] != images[1]["label"],
        })  # fmt: skip
    counts = {key: sum(item[key] for item in items) for key in ("across", "labels_differ")}
    return {"items": items, **counts, "images": len(places), "flat": found.flat, "left": found.left,
            "threshold": found.correlation, "ordinary": CORRELATION}  # fmt: skip
