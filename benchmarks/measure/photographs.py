"""Photographs to load: windows of those inside scikit-image, as JPEG files in class folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

IMAGES, WIDTH, HEIGHT = 512, 500, 375
SOURCES = ("astronaut", "cat", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")


def write_photographs(root: Path) -> Path:
    """IMAGES files of WIDTH × HEIGHT pixels, none twice, 64 KB on average; returns `root`."""
    random = np.random.default_rng(0)
    sources = [Image.fromarray(getattr(data, name)()[..., :3]) for name in SOURCES]
    for number in range(IMAGES):
        source = sources[number % len(sources)]
        scale = random.uniform(1.0, 1.5) * max(WIDTH / source.width, HEIGHT / source.height)
        size = int(source.width * scale) + 1, int(source.height * scale) + 1
        source = source.resize(size, Image.Resampling.BICUBIC)
        left, top = random.integers(0, [source.width - WIDTH + 1, source.height - HEIGHT + 1])
        path = root / SOURCES[number % len(SOURCES)] / f"{number:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        source.crop((left, top, left + WIDTH, top + HEIGHT)).save(path, quality=95)
    return root
