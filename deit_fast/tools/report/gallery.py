"""The images of a page, inside it: thumbnails as JPEG, attention as a tiny PNG that the browser enlarges.

All are asked for first; then each image is read once.

gallery = Gallery(sets, trained)
image = gallery.large("val", 7)     # "src" is there after `fill`
gallery.fill()
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...data.sources.dataset import Dataset
from ...model import Normalisation, VisionTransformer
from ...weights.prediction import Trained
from ..attention_maps import TOKENS, attention_maps
from .look import pixels_of

LARGE, SMALL = 168, 76  # longer sides, pixels
QUALITY = 78  # of JPEG
_BATCH = 32


@dataclass
class Wanted:
    """An image of the page; "" where it could not be read any more."""

    kind: str  # "large": what the model sees, with attention; "small": what it sees; "whole": the file's own pixels
    src: str = ""  # data: address
    maps: list[dict[str, object]] = field(default_factory=list)  # {"name", "src", "share" of the attention}


class Gallery:
    """See the module."""

    def __init__(self, sets: dict[str, Dataset], trained: Trained) -> None:
        self._sets, self._trained = sets, trained
        self._wanted: dict[str, dict[int, dict[str, Wanted]]] = defaultdict(lambda: defaultdict(dict))

    def large(self, split: str, sample: int) -> Wanted:
        return self._ask(split, sample, "large")

    def small(self, split: str, sample: int) -> Wanted:
        return self._ask(split, sample, "small")

    def whole(self, split: str, sample: int) -> Wanted:
        return self._ask(split, sample, "whole")

    def _ask(self, split: str, sample: int, kind: str) -> Wanted:
        return self._wanted[split][sample].setdefault(kind, Wanted(kind))

    def fill(self) -> None:
        """Read every image that was asked for."""
        for split, samples in self._wanted.items():
            order = sorted(samples)
            for start in range(0, len(order), _BATCH):
                found = list(pixels_of(self._sets[split], order[start : start + _BATCH], self._trained))
                if not found:
                    continue
                prepared = self._trained.prepare([pixels for _, pixels in found])
                views = unnormalised(prepared, self._trained.preprocessing.normalisation)
                for (sample, pixels), view in zip(found, views, strict=True):
                    for kind, image in samples[sample].items():
                        image.src = thumbnail(pixels if kind == "whole" else view, LARGE if kind == "large" else SMALL)
                self._attend([samples[sample].get("large") for sample, _ in found], prepared)

    def _attend(self, images: list[Wanted | None], prepared: Tensor) -> None:
        """The maps of those that are large, averaged over the heads of the last block."""
        model = self._trained.model
        shown = [(row, image) for row, image in enumerate(images) if image is not None]
        if not shown or not isinstance(model, VisionTransformer):
            return
        device = next(model.parameters()).device
        maps = attention_maps(model, prepared[[row for row, _ in shown]].to(device)).mean(2).cpu().numpy()
        for (_, image), tokens in zip(shown, maps, strict=True):
            image.maps = [
                {"name": name, "src": heat(weights), "share": float(weights.sum())}
                for name, weights in zip(TOKENS, tokens, strict=False)
            ]


def unnormalised(prepared: Tensor, normalisation: Normalisation) -> NDArray[np.uint8]:
    """The pixels, uint8 (B, S, S, 3), behind images that `prepare` has normalised, float (B, 3, S, S)."""
    mean, std = (np.array(part, np.float32) for part in normalisation)
    unit = prepared.permute(0, 2, 3, 1).cpu().numpy() * std + mean
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


def thumbnail(pixels: NDArray[np.uint8], side: int) -> str:
    """A data: address of an image (H, W, 3), its longer side at most `side` pixels; a tiny one keeps its pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    if max(image.size) <= 48:  # JPEG's blocks would show, and PNG is as small
        return _address(image, "png")
    return _address(image, "jpeg", quality=QUALITY, optimize=True)


def heat(weights: NDArray[np.float32]) -> str:
    """A data: address of a map (g, g) as an overlay: the more attention, the less transparent.

    The greatest is the least transparent, unless it is below four times the mean: an even map stays faint.
    """
    share = weights / max(float(weights.max()), 4 * float(weights.mean()), 1e-9)
    pixels = np.zeros((*weights.shape, 4), np.uint8)
    pixels[..., :3] = (255, 96, 0)
    pixels[..., 3] = np.rint(185 * share)
    return _address(Image.fromarray(pixels, "RGBA"), "png")


def _address(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
