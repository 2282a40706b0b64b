"""The data of a training, for the training and for the command that fills a label cache.

    data = TrainingData.open(config.data, config.optim, ranks)
    loaders = data.loaders(normalisation(model), ranks)
    for batch in loaders.training(range(start, data.total_steps)): ...
    evaluate(model, loaders.validation(), ranks)

Data sets, policy, order, rows, mixing and reading follow from the configuration here and nowhere else: training and
filling a cache cannot differ, so a cached label has the bits of training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from deit_kernels.augment import Policy

from ..config import DataConfig, OptimConfig, Preprocessing
from ..model import Normalisation
from ..ranks.group import Ranks
from .loader import EvalLoader, TrainLoader
from .mixing import Mixing
from .order import Share
from .sources.dataset import Dataset
from .sources.open import open_dataset


@dataclass(frozen=True)
class TrainingData:
    """The data sets of a configuration."""

    config: DataConfig
    optim: OptimConfig
    train_set: Dataset
    val_set: Dataset  # of the same classes
    identity: dict[str, Any]  # `describe`
    share: Share  # this rank's rows of every step

    @classmethod
    def open(cls, config: DataConfig, optim: OptimConfig, ranks: Ranks) -> TrainingData:
        """Open the data on every rank.

        Raises:
            ValueError: as `open_dataset` and `Share`, or a rank has other files than rank 0.
        """
        train_set, val_set = ranks.main_first(lambda: open_dataset(config.data))
        identity = describe(train_set, val_set)
        ranks.agree("data", data_digest(identity, train_set, val_set), "give every machine the same files")
        share = Share(
            len(train_set), optim.batch_size, config.repeats, config.order, optim.data_seed, ranks.rank,
            ranks.world_size,
        )  # fmt: skip
        return cls(config, optim, train_set, val_set, identity, share)

    @property
    def total_steps(self) -> int:
        return self.optim.epochs * self.share.steps_per_epoch

    @property
    def majority(self) -> float:
        """The share of the validation images that the most frequent class has, per cent."""
        labels = self.val_set.labels
        return 100 * float(np.bincount(labels).max()) / len(labels)

    def loaders(self, normalisation: Normalisation, ranks: Ranks) -> Loaders:
        """Batches for a model.

        Raises:
            ValueError: this rank's rows cannot be mixed; says which --batch-size can.
        """
        config = self.config
        policy, preprocessing = config.training_policy(normalisation), config.preprocessing(normalisation)
        options: dict[str, Any] = {
            "threads": config.threads or ranks.cores, "bad_images": config.bad_images, "in_memory": config.in_memory,
            "exif_orientation": preprocessing.exif_orientation, "device": ranks.device,
        }  # fmt: skip
        mixing = Mixing.of_share(policy, self.share)
        return Loaders(self, normalisation, policy, preprocessing, mixing, options)


@dataclass(frozen=True)
class Loaders:
    """The batches of one data set for models of one normalisation."""

    data: TrainingData
    normalisation: Normalisation
    policy: Policy  # of training images
    preprocessing: Preprocessing  # of validation images
    mixing: Mixing | None  # of training batches
    options: dict[str, Any]  # of `device.Options`

    def training(self, steps: range, **options: Any) -> TrainLoader:
        """Batches of these steps; `options` replace those of the configuration."""
        data = self.data
        return TrainLoader(
            data.train_set, self.policy, data.share, start_step=steps.start, total_steps=steps.stop,
            **(self.options | options),
        )  # fmt: skip

    def validation(self) -> EvalLoader:
        """This rank's validation images, each once."""
        share = self.data.share
        return EvalLoader(
            self.data.val_set, self.preprocessing.policy, batch_size=min(256, share.batch_size), rank=share.rank,
            world_size=share.world_size, **self.options,
        )  # fmt: skip

    def validation_identity(self) -> dict[str, Any]:
        """Everything but the model that a score on the validation images depends on, JSON values."""
        identity = self.data.identity
        return {"policy": self.preprocessing.policy.settings(), "images": identity["val"], "labels": identity["labels"]}


def describe(train_set: Dataset, val_set: Dataset) -> dict[str, Any]:
    """What a run continues with only if it is unchanged: classes, counts and labels in order, JSON values."""
    labels = hashlib.sha256(train_set.labels.tobytes() + val_set.labels.tobytes()).hexdigest()
    return {"classes": train_set.classes, "train": len(train_set), "val": len(val_set), "labels": labels}


def data_digest(described: dict[str, Any], *sets: Dataset) -> str:
    """A digest of a data set's classes, labels and the paths of a thousand of its images."""
    digest = hashlib.sha256(repr(sorted(described.items())).encode())
    for dataset in sets:
        for index in range(0, len(dataset), max(1, len(dataset) // 1000)):
            digest.update(dataset.path(index).encode())
    return digest.hexdigest()[:12]
