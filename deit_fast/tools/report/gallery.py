"""The images of a page, inside it: thumbnails as JPEG, attention as a tiny PNG that the browser enlarges.

All are asked for first; then each image is read once.

gallery = Gallery(sets, trained)
image = gallery.ask("large", "val", 7)     # "src" is there after `fill`
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

from ...data import BadImage, Dataset
from ...model import VisionTransformer
from ...weights.prediction import Trained
from ..attention_maps import TOKENS, attention_maps
from ..pixels import image_of, pixels_of

SIDES = {"large": 168, "small": 76, "whole": 76}  # longer sides, pixels
QUALITY = 78  # of JPEG


@dataclass
class Thumbnail:
    """An image of the page; "" where it could not be read any more."""

    src: str = ""  # data: address
    maps: list[dict[str, object]] = field(default_factory=list)  # {"name", "src", "share" of the attention}


class Gallery:
    """See the module."""

    def __init__(self, sets: dict[str, Dataset], trained: Trained) -> None:
        self._sets, self._trained = sets, trained
        self._asked: dict[tuple[str, int], dict[str, Thumbnail]] = defaultdict(dict)

    def ask(self, kind: str, split: str, sample: int) -> Thumbnail:
        """What the model sees, "large", with attention, or "small"; or "whole", the file's own pixels."""
        return self._asked[split, sample].setdefault(kind, Thumbnail())

    def fill(self) -> None:
        """Read every image that was asked for."""
        preprocessing, model = self._trained.preprocessing, self._trained.model
        for (split, sample), asked in sorted(self._asked.items()):
            try:
                image = image_of(self._sets[split], sample, self._trained.policy, preprocessing.exif_orientation)
            except BadImage:
                continue
            prepared = self._trained.prepare([image])
            view = pixels_of(prepared, preprocessing)[0]
            for kind, one in asked.items():
                one.src = thumbnail(image if kind == "whole" else view, SIDES[kind])
            if "large" in asked and isinstance(model, VisionTransformer):
                maps = attention_maps(model, prepared.to(model.cls_token.device))[0].mean(1).cpu().numpy()
                asked["large"].maps = [
                    {"name": name, "src": heat(weights), "share": float(weights.sum())}
                    for name, weights in zip(TOKENS, maps, strict=False)
                ]


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
