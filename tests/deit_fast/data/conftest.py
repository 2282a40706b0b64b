"""Data sets for the tests of this folder."""

import os
from pathlib import Path

import pytest

from tests.deit_fast.data.memory_dataset import MemoryDataset, encoded_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Lists of the folders of tests are kept apart from the user's."""
    if "DEIT_FAST_CACHE" not in os.environ:
        monkeypatch.setenv("DEIT_FAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def dataset() -> MemoryDataset:
    return MemoryDataset(30)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """tmp_path/set with train/ and val/ of the classes ant and bee, four and two images each."""
    root = tmp_path / "set"
    for split, images in (("train", 4), ("val", 2)):
        for label in ("ant", "bee"):
            (root / split / label).mkdir(parents=True)
            for number in range(images):
                (root / split / label / f"{number}.jpg").write_bytes(encoded_image(number, "JPEG"))
    return root
