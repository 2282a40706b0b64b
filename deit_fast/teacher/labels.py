"""The teacher's labels of a batch: computed, read from a cache, or computed and cached.

    labels = teacher_labels(config.distill, spec, loaders, ranks, reporter)
    labels(batch)           # hard labels int64 (b,), logits (b, C), or a TopK, on the device
    with labels: …          # writes the cache at the end, also after an error
    labels.live             # False if the cache is complete: the teacher is not even loaded

If the cache lacks the labels of a step, the teacher computes them and the cache keeps them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deit_kernels import TopK
from deit_kernels.augment import Policy

from ..config import DistillConfig, fields_where
from ..data import Batch, Dataset
from ..data.memory import to_device
from ..data.training import Loaders, TrainingData
from ..ranks.group import Ranks, compiles, has_bf16
from ..run.report import Reporter
from ..weights.build import Frozen
from ..weights.trained import resolve
from .cache import LabelCache, Labels
from .engine import TeacherEngine
from .load import load_teacher, own_view

_PROBES = 16  # images of the data set whose bytes are part of the settings


class TeacherLabels:
    """See the module; `tau` is the temperature of cached top-K labels."""

    def __init__(
        self, engine: TeacherEngine | None, cache: LabelCache | None, device: torch.device, tau: float = 1.0
    ) -> None:
        assert engine is not None or cache is not None
        self.engine = engine  # None if the cache is complete
        self.cache = cache  # None without --teacher-cache
        self._device, self._tau = device, tau

    @property
    def live(self) -> bool:
        """True if the teacher is loaded and sees the images."""
        return self.engine is not None

    def __call__(self, batch: Batch) -> Tensor | TopK:
        """The teacher's labels of a batch's rows.

        Raises:
            ValueError: the cache was complete at the start and no longer is.
        """
        if self.cache is None:
            assert self.engine is not None
            return self.engine(batch.images)
        positions = batch.positions.numpy()
        known = self.cache.lookup(batch.step, positions)
        if known is not None:
            return self._on_device(known)
        if self.engine is None:
            raise ValueError(
                f"{self.cache.folder} held every label when the run began and lacks those of step {batch.step} now: "
                f"type the same command again, and the teacher is loaded for them"
            )
        computed = self.engine(batch.images)
        self.cache.add(batch.step, positions, computed)
        return computed

    def __enter__(self) -> TeacherLabels:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def flush(self) -> None:
        """Write the labels that were computed since the last call to disk."""
        if self.cache is not None:
            self.cache.flush()

    def scores(
        self, evaluate: Callable[[nn.Module], dict[str, float]], evaluation: dict[str, Any], main: bool
    ) -> dict[str, float] | None:
        """The teacher's own scores, computed or from the cache, where `main` keeps them; None if the cache has none.

        `evaluate` is called on every rank or on none; `evaluation` says what it scores on, in JSON values.
        """
        if self.engine is None:
            assert self.cache is not None
            return self.cache.scores(evaluation)
        scores = evaluate(self.engine.module)
        if self.cache is not None and main:
            self.cache.keep_scores(evaluation, scores)
        return scores

    def _on_device(self, labels: Labels) -> Tensor | TopK:
        classes = to_device(torch.from_numpy(labels.classes.astype(np.int64)), self._device)
        if labels.probs is None:
            return classes
        return TopK(classes, to_device(torch.from_numpy(labels.probs.astype(np.float32)), self._device), self._tau)


def teacher_labels(
    config: DistillConfig, spec: str, loaders: Loaders, ranks: Ranks, reporter: Reporter, dry_run: bool = False,
    load: Callable[[], Frozen] | None = None,
) -> TeacherLabels:  # fmt: skip
    """Open the label cache of a configuration and, unless that is complete, load the teacher.

    A dry run replaces `load_teacher` by `load`.

    Raises:
        ValueError: as `load_teacher` and `LabelCache.open`; a cache of other weights.
    """
    dtype = _dtype(config.teacher_precision, ranks.device)
    top_k = None if config.distill == "hard" else config.teacher_top_k
    tau = config.tau or 1.0
    data, images, optim, cache = loaders.data, loaders.data.config, loaders.data.optim, None
    classes = data.train_set.classes
    # A dry run writes nothing, so it creates no cache.
    if config.teacher_cache and (not dry_run or Path(config.teacher_cache, "settings.json").exists()):
        settings = cache_settings(config, spec, dtype, data, loaders.policy)

        def opened() -> LabelCache:
            return LabelCache.open(
                Path(config.teacher_cache), settings, data.share.positions, classes=len(classes), repair=ranks.main,
                say=lambda sentence: print(sentence, file=sys.stderr),  # every rank: each writes its part of the cache
            )  # fmt: skip

        cache = ranks.main_first(opened)
        cache.writes = not dry_run
        # A rank may see files of other machines later than the rest, but all ranks load the teacher or none.
        steps = data.total_steps
        missing = max(ranks.gather(len(cache.missing(range(steps), range(optim.batch_size)))))
        reporter.decide("labels", config.teacher_cache, f"{steps - missing:,} of {steps:,} steps are there")
        if not missing:
            reporter.decide("teacher", "not loaded", f"every label of {spec} is in the cache")
            return TeacherLabels(None, cache, ranks.device, tau)

    known = spec, config.teacher_model, images.image_size, classes, loaders.normalisation
    teacher = ranks.main_first(load or (lambda: load_teacher(*known)))
    reporter.decide("teacher", spec, f"{config.distill} labels, learnt by the {config.distill_on} head")
    own_size, own_ratio = own_view(spec, teacher.model)
    if own_size not in (None, images.image_size):
        reporter.decide("", f"sees {images.image_size} x {images.image_size} pixels", f"it was trained on {own_size}")
    if own_ratio not in (None, images.crop_ratio):
        reporter.decide("", f"is scored at crop ratio {images.crop_ratio:g}", f"its own is {own_ratio:g}")
    if cache is not None:
        digest = _digest_of(value for _, value in sorted(teacher.model.state_dict().items()))
        ranks.main_first(lambda: cache.check_weights(digest))
    compiled = compiles(optim.compile, ranks.device)
    engine = TeacherEngine(
        teacher, image_size=images.image_size, device=ranks.device, dtype=dtype, compiled=compiled, top_k=top_k,
        tau=tau, layout=config.teacher_layout, rows=optim.micro_batch or optim.batch_size // ranks.world_size,
    )  # fmt: skip
    for what, reason in engine.decisions:
        reporter.decide("", what, reason)
    return TeacherLabels(engine, cache, ranks.device, tau)


def cache_settings(
    config: DistillConfig, spec: str, dtype: torch.dtype, data: TrainingData, policy: Policy
) -> dict[str, Any]:
    """Everything that a cached label depends on, JSON values."""
    train_set = data.train_set
    probes = (_read(train_set, index) for index in np.linspace(0, len(train_set) - 1, _PROBES).astype(int).tolist())
    settings: dict[str, Any] = {
        "labels": "hard" if config.distill == "hard" else f"top {config.teacher_top_k} at tau {config.tau:g}",
        "teacher": _identity(config.teacher_model, spec),
        "teacher_precision": str(dtype).removeprefix("torch."),
        "data": {
            "classes": _digest_of(name.encode() for name in train_set.classes),
            "labels": _digest_of([train_set.labels]),
            "images": _digest_of(probes),
        },
        "policy": policy.settings(),
    }
    settings |= {name: (vars(data.config) | vars(data.optim))[name] for name in fields_where("label")}
    if policy.erase is not None and policy.erase.mode != "const":
        settings["noise"] = "float32"  # of erased pixels; labels of before were computed with noise made in float64
    if data.config.order == "official":
        settings["processes"] = data.share.world_size
    return settings


def _identity(architecture: str, spec: str) -> str:
    """The teacher's name and a digest of its files, without loading it."""
    named = resolve(spec, "--teacher")
    words = {"run": "a run", "exported": "an exported folder", "checkpoint": architecture, "file": architecture}
    what, found = words.get(named.kind, spec), named.files()
    return f"{what}, {_digest_of(file.read_bytes() for file in found)}" if found else what


def _read(dataset: Dataset, index: int) -> bytes | NDArray[np.uint8]:
    try:
        return dataset.read(index)
    except OSError:  # the loader will warn of it
        return b""


def _digest_of(parts: Any) -> str:
    """16 hexadecimal digits of bytes, arrays and tensors."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return digest.hexdigest()[:16]


def _dtype(chosen: str, device: torch.device) -> torch.dtype:
    return torch.bfloat16 if chosen == "bf16" or (chosen == "auto" and has_bf16(device)) else torch.float32
