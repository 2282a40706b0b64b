"""Near duplicates: planted copies of photographs are found, other photographs are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.sources.builtin import LONGEST_SIDE, PHOTOS, _package_folder
from deit_fast.tools.report import duplicates
from deit_fast.tools.report.duplicates import near_duplicates
from deit_fast.tools.report.look import SIDE, grey_copy


@pytest.fixture(scope="module")
def photographs() -> list[NDArray[np.uint8]]:
    """144 that do not overlap: nine tiles of each of the demo's 16."""
    tiles = []
    for package, file in PHOTOS.values():
        photo = Image.open(_package_folder(package) / file).convert("RGB")
        photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        width, height = photo.width // 3, photo.height // 3
        for tile in range(9):
            left, top = tile % 3 * width, tile // 3 * height
            tiles.append(np.asarray(photo.crop((left, top, left + width, top + height))))
    return tiles


def copy(pixels: NDArray[np.uint8], number: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A crop of 90 % of the sides anywhere, 10 % brighter or darker, as a JPEG file of quality 60."""
    image = Image.fromarray(pixels)
    width, height = round(0.9 * image.width), round(0.9 * image.height)
    left, top = generator.integers(0, image.width - width + 1), generator.integers(0, image.height - height + 1)
    cropped = np.asarray(image.crop((left, top, left + width, top + height))) * (1.1 if number % 2 else 0.9)
    file = io.BytesIO()
    Image.fromarray(np.clip(cropped, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def test_of_planted_copies_nine_in_ten_are_found_and_nothing_else(photographs) -> None:
    found = planted = right = 0
    for seed in range(5):
        generator = np.random.default_rng(seed)
        chosen = generator.choice(len(photographs), 20, replace=False).tolist()
        copies = [copy(photographs[index], number, generator) for number, index in enumerate(chosen)]
        pairs = near_duplicates(np.stack([grey_copy(each) for each in photographs + copies])).pairs
        wanted = {(index, len(photographs) + number) for number, index in enumerate(chosen)}
        right += len(wanted & {(pair.first, pair.second) for pair in pairs})
        found += len(pairs)
        planted += len(wanted)
    assert right / planted >= 0.9
    assert right / found >= 0.9


def test_the_pixels_of_the_pair_say_how_alike_it_is(photographs) -> None:
    grey = np.stack([grey_copy(photographs[number]) for number in (0, 40, 0)])
    (pair,) = near_duplicates(grey).pairs
    assert (pair.first, pair.second, pair.bits) == (0, 2, 0)
    assert pair.correlation == pytest.approx(1.0, abs=1e-5)


def test_images_of_one_shade_are_counted_and_not_compared() -> None:
    found = near_duplicates(np.full((4, SIDE, SIDE), 128, np.uint8))
    assert (found.pairs, found.flat) == ([], 4)


def test_where_most_images_are_alike_the_least_correlation_rises() -> None:
    generator = np.random.default_rng(0)
    one = generator.normal(0, 40, (SIDE // 4, SIDE // 4)).repeat(4, 0).repeat(4, 1)
    noisy = one + generator.normal(0, 12, (60, SIDE // 4, SIDE // 4)).repeat(4, 1).repeat(4, 2)
    found = near_duplicates(np.clip(128 + noisy, 0, 255).astype(np.uint8))
    assert found.correlation > duplicates.CORRELATION
    assert len(found.pairs) <= 60 * duplicates.CROWD or found.correlation == duplicates.STRICTER[-1]


@pytest.mark.parametrize("threads", [1, 3])
def test_pairs_in_different_blocks_are_found_by_any_number_of_threads(monkeypatch, threads: int) -> None:
    monkeypatch.setattr(duplicates, "_ROWS", 4)
    monkeypatch.setattr(duplicates, "_COLUMNS", 8)
    grey = np.random.default_rng(1).integers(0, 256, (30, SIDE, SIDE), dtype=np.uint8)
    grey[29], grey[13] = grey[2], grey[12]
    assert sorted((pair.first, pair.second) for pair in near_duplicates(grey, threads).pairs) == [(2, 29), (12, 13)]


def test_bits_are_counted_without_numpy_2_as_well(monkeypatch) -> None:
    words = np.random.default_rng(2).integers(0, 2**63, (3, 5), dtype=np.uint64)
    expected = np.vectorize(lambda word: int(word).bit_count())(words)
    out = np.empty((3, 5), np.uint8)
    assert (duplicates._count(words, out) == expected).all()
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert (duplicates._count(words, out) == expected).all()


def test_the_grey_copy_is_the_whole_image_squeezed(tmp_path: Path) -> None:
    pixels = np.zeros((40, 90, 3), np.uint8)
    pixels[:, 45:] = (0, 255, 0)  # the right half is green, of luminance 150
    grey = grey_copy(pixels)
    assert (grey[:, 2], grey[:, -3]) == (pytest.approx(0), pytest.approx(150, abs=1))
