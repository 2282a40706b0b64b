"""A model ready to be used: its classes, how its images are prepared, what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deit_kernels.augment import ImageBatch, Policy, apply, sample_plan
from deit_kernels.augment.plan import ratio_limit

from ..config import Config, Preprocessing
from ..data import BadImage, decode
from ..data.decode import Part
from ..data.sources.folder import read_file


class Prediction(NamedTuple):
    """The answer for one image.

    Attributes:
        path: of the image.
        top: (class name, label, probability) of the likeliest classes, the likeliest first.
    """

    path: str
    top: list[tuple[str, int, float]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model to be used.

    Attributes:
        model: in evaluation mode; images as `prepare` gives them (B, 3, S, S) -> logits (B, C).
        classes: names, index = label.
        preprocessing: how an image is read, resized, cropped and normalised.
        source: where it comes from, in words.
        config, summary, data: `config.json`, `summary.json` and `data.json` of the run it comes from, else None.
        scores: of exactly these weights, by head, as the run measured them; None for a run's earlier checkpoints.
        release: the official model whose released file this is, by its sha256, else "".
        timm_classes: of timm's train.py, which took the order from a class map, or sorted the class folders, whose
            names it does not keep; else "".
    """

    model: nn.Module
    classes: list[str]
    preprocessing: Preprocessing
    source: str
    config: Config | None = None
    summary: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    scores: dict[str, Any] | None = None
    release: str = ""
    timm_classes: Literal["", "mapped", "sorted"] = ""

    @property
    def policy(self) -> Policy:
        """How an image is resized, cropped and normalised."""
        return self.preprocessing.policy

    def read(self, path: str | Path) -> NDArray[np.uint8]:
        """The decoded image, uint8 (H, W, 3), turned if evaluation turns it; BadImage where evaluation refuses it."""
        try:
            pixels = decode(read_file(str(path)), exif_orientation=self.preprocessing.exif_orientation)
        except OSError as error:
            raise BadImage(f"it cannot be read ({error.strerror or error})") from error
        Part.whole(pixels).refuse_elongated(ratio_limit(self.policy))
        return pixels

    def prepare(self, images: list[NDArray[np.uint8]]) -> Tensor:
        """Decoded images, uint8 (H, W, 3) of any sizes -> float32 (B, 3, S, S), the pixels that evaluation sees."""
        batch = ImageBatch.from_images(images)
        sizes = {"height": batch.height.numpy(), "width": batch.width.numpy()}
        plan = sample_plan(self.policy, seed=0, epoch=0, sample=np.arange(len(images)), copy=0, **sizes)
        return apply(batch, plan)

    def predict(
        self, paths: Iterable[str | Path], top: int = 5, batch_size: int = 32
    ) -> Iterator[Prediction | tuple[str, BadImage]]:
        """Predictions in the order of `paths`; a file that holds no image comes as (path, its error)."""
        device = next(self.model.parameters()).device
        paths = list(paths)
        for start in range(0, len(paths), batch_size):
            chunk = [(str(path), self._read(path)) for path in paths[start : start + batch_size]]
            good = [image for _, image in chunk if not isinstance(image, BadImage)]
            if good:
                with torch.inference_mode():
                    probabilities = self.model(self.prepare(good).to(device)).float().softmax(-1)
                ranked = zip(*(part.tolist() for part in probabilities.topk(min(top, len(self.classes)))), strict=True)
            for path, image in chunk:
                if isinstance(image, BadImage):
                    yield path, image
                else:
                    values, labels = next(ranked)
                    named = zip(labels, values, strict=True)
                    yield Prediction(path, [(self.classes[label], label, value) for label, value in named])

    def _read(self, path: str | Path) -> NDArray[np.uint8] | BadImage:
        try:
            return self.read(path)
        except BadImage as error:
            return error
