"""Labels that may be wrong: the teacher contradicts them again and again, and the student's heads do too.

    votes = cached_votes(facts, dataset.labels, policy)     # the teacher over the epochs, from its label cache
    ranked = doubtful(seen, votes, "model/dist", ["model/cls"], "teacher/cls")

An image is a suspect when (1) the teacher gives it another class than its label in at least half of the views that it
saw of it: the augmented ones of all epochs where the run kept a label cache, else the one view of the evaluation; and
(2) the head that learned from the teacher, or the fused answer of a model with one head, does so as well. Suspects are
ranked by the mean, over teacher and heads, of (probability of the answer − probability of the label), which is the
confidence of confident learning (Northcutt et al. 2021) without its estimated thresholds. Without a teacher, the
student's heads alone vote: its own training labels have taught it, so fewer mistakes are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_kernels.augment import Policy

from ...config import fields_where
from ...data.mixing import Mixing
from ...data.order import Share
from ...files import read_json
from ...teacher.cache import LabelCache
from .facts import Facts
from .look import Seen

MOST_VIEWS = 10_000_000  # labels of a cache that are read
LEAST_OWN = 0.8  # share of its own pixels that a mixed image must have to count as a view of it
HALF = 0.5  # of the views


class Suspect(NamedTuple):
    """An image whose label is doubted; `row` is its place in `Seen`."""

    row: int
    proposed: int  # the class that most say it is
    doubt: float  # 0 to 1
    contradicted: float  # share of the teacher's views that contradict the label
    views: int  # of the teacher


@dataclass
class Votes:
    """The teacher's answers for N images over many views.

    Attributes:
        views: (N,) how many there were.
        against: (N,) how many gave another class than the label.
        proposed: (N,) the most frequent other class, −1 without one.
        source: where they come from, in words.
    """

    views: NDArray[np.int64]
    against: NDArray[np.int64]
    proposed: NDArray[np.int64]
    source: str


def doubtful(
    seen: Seen, votes: Votes | None, student: str, others: Sequence[str] = (), teacher: str = ""
) -> list[Suspect]:
    """The suspects, the most doubtful first.

    Args:
        seen: the images, and every model's answers.
        votes: of `seen`'s images in the same order; None: the teacher's one answer in `seen`, if it has one.
        student: the name in `seen` of the head that must agree.
        others, teacher: names in `seen` whose probabilities count too.
    """
    label, proposed = seen.label, seen.answer(student).astype(np.int64)
    if votes is None and teacher:
        wrong = seen.answer(teacher) != label
        other = np.where(wrong, seen.answer(teacher), -1)
        votes = Votes(np.ones(len(seen), np.int64), wrong.astype(np.int64), other, "")
    margins = [
        np.where(seen.answer(name) == label, 0.0, seen.probability[name] - seen.given[name])
        for name in filter(None, (student, *others, teacher))
    ]
    suspected = proposed != label
    views, share = np.zeros(len(seen), np.int64), np.zeros(len(seen))
    if votes is not None:
        views, share = votes.views, votes.against / np.maximum(votes.views, 1)
        suspected = suspected & (views > 0) & (share >= HALF)
        proposed = np.where(votes.proposed >= 0, votes.proposed, proposed)
        margins.append(share)
    doubt = np.mean(margins, axis=0)
    order = np.flatnonzero(suspected)[np.argsort(-doubt[suspected], kind="stable")]
    columns = (order, *(each[order] for each in (proposed, doubt, share, views)))
    return [Suspect(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def cached_votes(facts: Facts, labels: NDArray[np.int64], policy: Policy) -> Votes | None:
    """The teacher's answers of the run's epochs from its label cache, for every training image; None without one.

    Of mixed images only those count that are mostly one. Of a long run, as many epochs, evenly spaced, as hold
    MOST_VIEWS labels. A cache that is gone, or holds labels of other settings, counts as none.
    """
    config = facts.config
    data, optim, cache_folder = config.data, config.optim, config.distill.teacher_cache
    folder = Path(cache_folder).expanduser() if cache_folder else None
    if folder is None or not (folder / "settings.json").is_file() or not facts.lines:
        return None
    settings = read_json(folder / "settings.json")
    own = config.flat()
    if any(settings.get(name) != own[name] for name in fields_where("label")):
        return None
    images, ranks = len(labels), int(settings.get("processes", 1))  # which only the official order depends on
    views, against = np.zeros((2, images), np.int64)
    wrong_pairs: list[NDArray[np.int64]] = []
    epochs: list[int] = []
    for rank in range(ranks):
        share = Share(images, optim.batch_size, data.repeats, data.order, optim.data_seed, rank, ranks)
        mixing = Mixing.of_share(policy, share)
        cache = LabelCache(folder, share.positions, say=lambda sentence: None)
        each = share.steps_per_epoch
        epochs = _epochs(max(line["step"] for line in facts.lines) // each, share.epoch_images)
        for step in chain.from_iterable(range(each * epoch, each * (epoch + 1)) for epoch in epochs):
            rows = share.samples(step)
            if (known := cache.lookup(step, rows.position)) is None:
                continue
            sample, answers = rows.sample, known.classes.astype(np.int64)
            if known.probs is not None:
                answers = answers[np.arange(len(answers)), known.probs.argmax(1)]
            if mixing is not None:
                clear = mixing.plan(step).lam.numpy() >= LEAST_OWN
                sample, answers = sample[clear], answers[clear]
            wrong = answers != labels[sample]
            np.add.at(views, sample, 1)
            np.add.at(against, sample[wrong], 1)
            wrong_pairs.append(sample[wrong] << 32 | answers[wrong])
    if not views.any():
        return None
    pairs, counts = np.unique(np.concatenate(wrong_pairs), return_counts=True)
    proposed = np.full(images, -1)
    order = np.argsort(counts, kind="stable")
    proposed[pairs[order] >> 32] = pairs[order] & 0xFFFFFFFF  # of one image the most frequent comes last, and stays
    return Votes(views, against, proposed, f"{int(views.sum()):,} labels of {len(epochs)} epochs, from {folder}")


def _epochs(done: int, images: int) -> list[int]:
    """The epochs that are read, of those that the run has done."""
    most = max(1, MOST_VIEWS // max(images, 1))
    return sorted(set(np.linspace(0, done - 1, min(done, most)).astype(int).tolist())) if done else []
