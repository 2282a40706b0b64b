"""A small training that several ranks share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deit_fast.config import Config
from tests.deit_fast.conftest import write_images

BATCH = 48  # rows of a step: 1, 2, 3, 4 and 8 ranks share them, in whole pairs to mix


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def config(folder: Path, teachers: Path) -> Iterator[Config]:
    """Two epochs of two steps over 96 images, of which three are unreadable; all stages of augmentation."""
    data = write_images(folder / "data", train=32)
    for name in ("class0/3.png", "class0/11.png", "class2/5.png"):
        (data / "train" / name).write_bytes(b"no image")
    (data / "val" / "class1" / "2.png").write_bytes(b"no image")
    sys.path.insert(0, str(teachers))  # the ranks get this path
    yield Config(
        recipe="deit", data=str(data), precision="fp32", image_size=16, model="deit_tiny_distilled_patch16_224",
        patch_size=8, width=32,
        depth=2, heads=2, drop_path=0.3, rand_augment="rand-m9-mstd0.5-inc1", erase=0.5, mixup=0.8, cutmix=1.0,
        distill="soft", alpha=0.5, tau=2.0, kl_normalizer="batch", teacher="tiny_teachers:three_classes",
        epochs=2, warmup_epochs=0.5, batch_size=BATCH, lr=0.02, ema_decay=0.9, log_every=1, threads=1,
    )  # fmt: skip
    sys.path.remove(str(teachers))


@pytest.fixture
def endless(config: Config, tmp_path: Path) -> Config:
    """A run that lasts until something ends it."""
    return config.replace(epochs=4000, eval_every=4000, save_every=10, out=str(tmp_path / "run"))
