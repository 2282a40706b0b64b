"""What a report says of a run's images: confusions, mistakes, suspects, with the thumbnails to show them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...data.sources.dataset import Dataset
from ...data.sources.open import open_dataset
from ...data.training import describe
from ...files import shown
from ...names import HEADS, headline
from ...teacher.load import load_teacher, recipe_config
from ...weights.prediction import Trained
from ...weights.trained import run_model
from ..confusion import MOST_PAIRS, WHOLE_MATRIX, Confusion
from .duplicates import CORRELATION, Pair, near_duplicates
from .facts import Facts
from .gallery import Gallery, Wanted
from .look import Seen, look
from .suspects import Suspect, Votes, cached_votes, doubtful

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
    def head(self) -> str:
        """The name in `seen` of the answer that --fusion makes the model's own."""
        names = [name.partition("/")[2] for name in self.seen["val"].answer if name.startswith(f"{OWN}/")]
        return f"{OWN}/{headline(names, self.facts.config.model.fusion)}"

    def heads(self) -> list[tuple[str, str]]:
        """(name in `seen`, its words), the teacher last."""
        own = [(f"{OWN}/{head}", HEADS[head]) for head in HEADS if f"{OWN}/{head}" in self.seen["val"].answer]
        return own + [("teacher/cls", "teacher")] * ("teacher/cls" in self.seen["val"].answer)

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
        seen[split] = look(dataset, chosen, trained, models, device, threads, enough=enough)
        if len(seen[split]) + len(seen[split].bad) < len(dataset):
            notes.append(f"Looked at {len(seen[split]):,} of {len(dataset):,} {PARTS[split]} images, chosen at random.")
        if seen[split].bad:
            notes.append(
                f"{len(seen[split].bad):,} {PARTS[split]} images cannot be read: deit-fast data check says why."
            )
    if not len(seen["val"]):
        raise Gone(f"none of the validation images of {config.data.data} can be read")
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
    """The sections about images, JSON values but for "gallery" and what stands under "src"."""
    val, head = looked.seen["val"], looked.head
    confusion = Confusion(val.label, val.answer[head], len(looked.facts.data["classes"]), val.probability[head])
    gallery = Gallery(looked.sets, looked.trained)
    found = {
        "notes": looked.notes,
        "of": looked.trained.source.removeprefix(f"{looked.facts.folder}, "),
        "head": HEADS[head.partition("/")[2]],
        "looked": {split: len(seen) for split, seen in looked.seen.items()},
        "confusions": _confusions(looked, confusion, gallery),
        "per_class": confusion.per_class(),
        **_extremes(looked, head, gallery),
        "labels": _labels(looked, gallery),
        "duplicates": _duplicates(looked, gallery, threads),
    }
    gallery.fill()
    return found


def _item(looked: Looked, split: str, at: int, image: Wanted | None) -> dict[str, Any]:
    """An image, its label, every head's answer."""
    seen = looked.seen[split]
    answers = [
        {"head": words, "class": int(seen.answer[name][at]), "probability": float(seen.probability[name][at]),
         "given": float(seen.given[name][at])}
        for name, words in looked.heads()
    ]  # fmt: skip
    path = looked.path(split, int(seen.sample[at]))
    own = [name for name, _ in looked.heads()].index(looked.head)
    return {"split": split, "path": path, "file": os.path.basename(path), "label": int(seen.label[at]),
            "answers": answers, "own": own, "image": image}  # fmt: skip


def _confusions(looked: Looked, confusion: Confusion, gallery: Gallery) -> dict[str, Any]:
    """Every pair of a class and what it is taken for, with the images of the most frequent."""
    val, whole = looked.seen["val"], confusion.classes <= WHOLE_MATRIX
    pairs = confusion.pairs()
    shown_pairs = pairs if whole else pairs[:MOST_PAIRS]
    if whole:
        right = np.bincount(val.label[val.label == confusion.answer], minlength=confusion.classes)
        shown_pairs = shown_pairs + [(number, number, count) for number, count in enumerate(right.tolist()) if count]
    left, cells, probability = ALL, list[dict[str, Any]](), confusion.probability
    assert probability is not None
    for true, taken, count in shown_pairs:
        places = confusion.of(true, taken, min(EACH, left))
        left -= len(places)
        images = [
            {"file": os.path.basename(looked.path("val", int(val.sample[at]))),
             "probability": float(probability[at]), "image": gallery.small("val", int(val.sample[at]))}
            for at in places
        ]  # fmt: skip
        cells.append({"true": true, "taken": taken, "count": count, "images": images})
    listed = []
    for true, taken, count in pairs:
        samples = val.sample[confusion.of(true, taken, count)].tolist()
        listed.append(
            {"true": true, "taken": taken, "count": count, "paths": [looked.path("val", at) for at in samples]}
        )
    matrix = confusion.matrix().tolist() if whole else None
    mistakes = int((val.label != confusion.answer).sum())
    return {"matrix": matrix, "cells": cells, "pairs": listed, "images": len(val), "mistakes": mistakes}


def _extremes(looked: Looked, head: str, gallery: Gallery) -> dict[str, Any]:
    """The mistakes of which the model is surest, and the right answers of which it is least sure."""
    val = looked.seen["val"]
    wrong = val.answer[head] != val.label
    by_certainty = np.argsort(-val.probability[head], kind="stable")
    mistakes = by_certainty[wrong[by_certainty]][:MISTAKES].tolist()
    rights = by_certainty[~wrong[by_certainty]][::-1][:RIGHTS].tolist()
    return {
        name: [_item(looked, "val", at, gallery.large("val", int(val.sample[at]))) for at in places]
        for name, places in (("mistakes", mistakes), ("rights", rights))
    }


def _labels(looked: Looked, gallery: Gallery) -> dict[str, Any]:
    """Labels that are doubted, of training and validation images together, the most doubtful first."""
    own = [name for name, _ in looked.heads() if name.startswith(f"{OWN}/") and not name.endswith(("fused", "softmax"))]
    heads = {"student": own[-1], **{name: name for name in own[:-1]}}
    if "teacher/cls" in looked.seen["val"].answer:
        heads["teacher"] = "teacher/cls"
    ranked: list[tuple[str, Suspect]] = []
    for split, seen in looked.seen.items():
        if len(seen):
            votes = looked.votes if split == "train" else None
            ranked += [(split, suspect) for suspect in doubtful(seen, votes, heads)]
    ranked.sort(key=lambda pair: -pair[1].doubt)
    items = []
    for number, (split, suspect) in enumerate(ranked):
        image = gallery.small(split, int(looked.seen[split].sample[suspect.index])) if number < SUSPECTS else None
        item = _item(looked, split, suspect.index, image)
        items.append(item | {"proposed": suspect.proposed, "doubt": suspect.doubt, "views": suspect.views,
                             "contradicted": suspect.contradicted})  # fmt: skip
    source = looked.votes.source if looked.votes else ("one pass" if "teacher" in heads else "")
    return {"items": items, "source": source, "student": HEADS[own[-1].partition("/")[2]]}


def _duplicates(looked: Looked, gallery: Gallery, threads: int) -> dict[str, Any]:
    """Pairs of images that show the same; those across training and validation first."""
    splits = [split for split in looked.seen if len(looked.seen[split])]
    grey = np.concatenate([looked.seen[split].grey for split in splits])
    split_of = np.repeat(splits, [len(looked.seen[split]) for split in splits])
    samples: NDArray[np.int64] = np.concatenate([looked.seen[split].sample for split in splits])
    labels = np.concatenate([looked.seen[split].label for split in splits])

    def across(pair: Pair) -> bool:
        return bool(split_of[pair.first] != split_of[pair.second])

    found = near_duplicates(grey, threads)
    pairs = sorted(found.pairs, key=lambda pair: (not across(pair), -pair.correlation))
    items = []
    for number, pair in enumerate(pairs):
        images = []
        for at in (pair.first, pair.second):
            split, sample = str(split_of[at]), int(samples[at])
            path = looked.path(split, sample)
            image = gallery.whole(split, sample) if number < DUPLICATES else None
            images.append({"split": split, "path": path, "file": os.path.basename(path), "label": int(labels[at]),
                           "image": image})  # fmt: skip
        items.append({"images": images, "across": across(pair), "bits": pair.bits, "correlation": pair.correlation,
                      "labels_differ": images[0]["label"] != images[1]["label"]})  # fmt: skip
    return {"items": items, "across": sum(item["across"] for item in items),
            "labels_differ": sum(item["labels_differ"] for item in items), "images": len(grey), "flat": found.flat,
            "left": found.left, "threshold": found.correlation, "ordinary": CORRELATION}  # fmt: skip
