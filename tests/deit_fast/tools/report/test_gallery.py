"""Images inside the page: thumbnails keep their shape, maps of attention their strength."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from deit_fast.tools.report.gallery import heat, thumbnail


def opened(address: str) -> Image.Image:
    kind, _, content = address.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{image.format.lower()}"
    return image


@pytest.mark.parametrize(
    ("height", "width", "size", "kind"),
    [(300, 600, (76, 38), "JPEG"), (20, 30, (30, 20), "PNG"), (76, 1, (1, 76), "JPEG")],
)
def test_a_thumbnail_has_the_images_shape_and_colour(height: int, width: int, size: tuple, kind: str) -> None:
    image = opened(thumbnail(np.full((height, width, 3), (200, 60, 30), np.uint8), 76))
    assert (image.size, image.format) == (size, kind)
    assert np.abs(np.asarray(image.convert("RGB"), int) - (200, 60, 30)).max() <= 6


def test_an_even_map_is_faint_and_a_peak_is_not() -> None:
    even = np.asarray(opened(heat(np.full((14, 14), 1 / 196, np.float32))))[..., 3]
    peaked = np.full((14, 14), 0.1 / 195, np.float32)
    peaked[3, 5] = 0.9
    alpha = np.asarray(opened(heat(peaked)))[..., 3]
    assert even.max() < 60 and alpha[3, 5] > 180 and np.delete(alpha, 3 * 14 + 5).max() < 5
