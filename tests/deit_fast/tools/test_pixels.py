"""The pixels of evaluation are Pillow's, wherever the crop begins; normalised images give them back."""

import numpy as np
import pytest
import torch
from PIL import Image

from deit_fast.config import Preprocessing
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.tools.pixels import evaluation_crop, pixels_of


def test_pixels_come_back_from_normalised_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    mean, std = (np.float32(part) for part in IMAGENET_NORMALISATION)
    prepared = torch.from_numpy((pixels / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    assert (pixels_of(prepared, Preprocessing()) == pixels).all()
    noise = torch.tensor([-9.0, 9.0, 0.0]).view(1, 3, 1, 1)
    assert pixels_of(noise, Preprocessing())[0, 0, 0, :2].tolist() == [0, 255]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("up", "left"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_crop_is_pillows_wherever_it_begins(interpolation: str, up: int, left: int) -> None:
    generator, preprocessing = np.random.default_rng(0), Preprocessing(16, interpolation=interpolation)
    for height, width in generator.integers(2, 41, (10, 2)) * 2 + 1:
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels)
        sides = [int(preprocessing.resized * side / min(image.size)) for side in image.size]
        image = image.resize(sides, Image.Resampling[interpolation.upper()])
        x, y = (max(0, round((side - 16) / 2) - moved) for side, moved in zip(sides, (left, up), strict=True))
        got = evaluation_crop(pixels, preprocessing.policy, up, left)
        assert np.array_equal(got, np.asarray(image.crop((x, y, x + 16, y + 16))))
