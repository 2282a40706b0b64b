"""A run with everything that a report shows, whose class names are as bad as a folder's name can be."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_fast.config import Config
from deit_fast.tools.report import page
from deit_fast.train import train
from tests.deit_fast.conftest import tiny_config

NAMES = ("<img src=x onerror=alert(1)>", "שלום \"עולם\" & 'co'", "🦊 fox {{ 7 * 7 }} </script>".replace("/", "∕"))


@pytest.fixture(scope="session")
def odd_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 15 validation images of three classes; two of them are the same picture."""
    root = tmp_path_factory.mktemp("odd")
    generator = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        for split, count in (("train", 8), ("val", 5)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(90 + 60 * label + generator.normal(0, 40, (24, 28, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index} <b>.png")
    (root / "val" / NAMES[1] / "0 <b>.png").write_bytes((root / "train" / NAMES[0] / "3 <b>.png").read_bytes())
    return root


@pytest.fixture(scope="session")
def odd_config(odd_images: Path, teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("odd-runs")
    changes = {"teacher_cache": str(folder / "labels"), "log_every": 1, "report": True}
    config = tiny_config(odd_images, folder / "taught")
    return Config(**{**vars(config), **changes})


@pytest.fixture(scope="session")
def reported(odd_config: Config, teachers: Path) -> Path:
    """The run folder of a training that wrote its report; not to be written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(teachers)
        page.write_missing(train(odd_config).finished)
    return Path(odd_config.out)


@pytest.fixture(scope="session")
def plain(odd_config: Config) -> Path:
    """The same without a teacher; it wrote no report."""
    changes = {"distill": "none", "teacher": "", "teacher_cache": "", "model": "deit_tiny_patch16_224",
               "out": str(Path(odd_config.out).with_name("plain")), "report": False}  # fmt: skip
    return train(Config(**{**vars(odd_config), **changes})).run
