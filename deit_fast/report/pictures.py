"""Images inside the page: thumbnails as JPEG, attention as a tiny transparent PNG that the browser enlarges."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..model import Normalisation

QUALITY = 78


def unnormalised(prepared: Tensor, normalisation: Normalisation) -> NDArray[np.uint8]:
    """The pixels, uint8 (B, S, S, 3), behind images that `prepare` has normalised, float (B, 3, S, S)."""
    mean, std = (np.float32(part) for part in normalisation)
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
    """A data: address of a map (g, g) as an overlay: the more attention, the less transparent."""
    share = weights / max(float(weights.max()), 1e-9)
    pixels = np.zeros((*weights.shape, 4), np.uint8)
    pixels[..., :3] = (255, 96, 0)
    pixels[..., 3] = np.rint(215 * share)
    return _address(Image.fromarray(pixels, "RGBA"), "png")


def _address(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
