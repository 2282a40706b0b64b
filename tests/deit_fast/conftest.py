"""A data set, a teacher and a configuration small enough for a run to take a second."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_fast.config import Config
from deit_fast.train import train


def write_images(root: Path, classes: int = 3, train: int = 8, val: int = 5) -> Path:
    """Noisy images whose mean colour is the class."""
    generator = np.random.default_rng(0)
    colours = generator.integers(60, 200, (classes, 3))
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(colours[label] + generator.normal(0, 25, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module `tiny_teachers`; put it on the path."""
    folder = tmp_path_factory.mktemp("teachers")
    (folder / "tiny_teachers.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def three_classes():\n"
        "    torch.manual_seed(5)\n"
        "    pool = nn.AdaptiveAvgPool2d(2)\n"
        "    return nn.Sequential(pool, nn.Flatten(), nn.Linear(12, 3))\n"
    )
    return folder


def tiny_config(data: Path, out: Path) -> Config:
    """24 images, 3 steps an epoch, 2 epochs, hard distillation on the token."""
    return Config(
        recipe="deit",
        data=str(data),
        image_size=16,
        precision="fp32",  # on every processor, so that numbers can be compared
        model="deit_tiny_distilled_patch16_224",
        patch_size=8,
        width=32,
        depth=2,
        heads=2,
        drop_path=0.1,
        distill="hard",
        teacher="tiny_teachers:three_classes",
        epochs=2,
        warmup_epochs=0.5,
        batch_size=8,
        lr=0.02,
        ema_decay=0.9,
        log_every=1,
        report=False,  # it takes as long as the training
        threads=1,
        out=str(out),
    )


@pytest.fixture
def tiny(images: Path, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.syspath_prepend(teachers)
    return tiny_config(images, tmp_path / "run")


@pytest.fixture(scope="session")
def finished_run(images: Path, teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `tiny`, trained once; not to be written to."""
    config = tiny_config(images, tmp_path_factory.mktemp("runs") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(teachers)
        return train(config).run


@pytest.fixture
def finished(tiny: Config, finished_run: Path) -> Config:
    """`tiny`, whose run is there already: a copy of `finished_run`, to be written to."""
    shutil.copytree(finished_run, tiny.run.out)
    return tiny
