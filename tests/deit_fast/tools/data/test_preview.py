"""`preview` draws the images that training sees, each with what was done to it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deit_fast.data import open_dataset
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.recipes.named import recipe
from deit_fast.tools.data.__main__ import main
from deit_fast.tools.data.preview import named_ops
from deit_fast.tools.pixels import pixels_of
from deit_kernels.augment import Policy, sample_plan
from tests.deit_fast.data.cifar_files import write_cifar10
from tests.deit_fast.data.loader_cases import loader_of


def test_the_command_draws_a_grid(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "seen.png"
    arguments = ["preview", "--data", str(image_folder), "--recipe", "deit", "--images", "2", "--copies", "3"]
    assert main([*arguments, "--out", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    width, height = Image.open(target).size
    assert width / height == pytest.approx(4 * 1.9 / (2 * 2.45), rel=0.02)


def test_what_is_drawn_is_what_the_loader_gives(image_folder: Path) -> None:
    train, _ = open_dataset(str(image_folder))
    config = recipe("deit")
    policy = config.data.training_policy(IMAGENET_NORMALISATION)
    assert policy == Policy.deit()
    batch = next(iter(loader_of(train, replace(policy, mix=None), data_seed=0, batch_size=2, total_steps=1)))
    seen = pixels_of(batch.images, policy)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in IMAGENET_NORMALISATION)
    again = (torch.from_numpy(seen).permute(0, 3, 1, 2) / 255 - mean) / std
    inside = (batch.images * std + mean - 0.5).abs() <= 0.5
    assert (again - batch.images)[inside].abs().max() < 0.01
    assert seen.dtype == np.uint8


def test_every_line_of_the_text() -> None:
    row = sample_plan(Policy.deit(224), seed=0, epoch=0, sample=0, copy=0, height=100, width=200).table[0]
    row["box"], row["flip"], row["erased"], row["erase"] = [0, 0, 50, 100], 1, [5, 6, 40, 30], 3
    row["ops"]["op"], row["ops"]["arg"] = [4, 2, 0, 0], [-27.25, 0.0, 0.0, 0.0]
    assert named_ops(row) == "crop 25 %, flipped\nrotate -27.2\nequalize\nerased 40 x 30"
    row["flip"] = row["erase"] = row["ops"]["op"] = 0
    assert named_ops(row) == "crop 25 %"
    row["ops"]["op"], row["ops"]["arg"] = [16, 10, 8, 9], [1.234, 0.9, 1.1, 0.75]
    assert named_ops(row) == "crop 25 %\ngaussian blur 1.23\nbrightness 0.9\ncolor 1.1\ncontrast 0.75"


def test_a_simple_crop_and_greyscale_are_named() -> None:
    table = sample_plan(Policy.deit3(24, src=True), seed=0, epoch=0, sample=range(20), copy=0, height=100, width=200)
    texts = [named_ops(row) for row in table.table]
    assert {text.splitlines()[0].removesuffix(", flipped") for text in texts} == {"crop 50 %"}
    assert {text.splitlines()[1].split()[0] for text in texts} == {"greyscale", "solarize", "gaussian"}
    assert all(len(text.splitlines()) == 5 for text in texts)


def test_the_command_draws_3_augment(image_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "seen.png"
    flags = ["--rand-augment", "3a", "--simple-random-crop"]
    arguments = ["preview", "--data", str(image_folder), *flags, "--images", "2", "--copies", "2"]
    assert main([*arguments, "--out", str(target)]) == 0
    width, height = Image.open(target).size
    inches = 3 * 1.9 * height / width / 2  # of a line of images
    assert min(abs(inches - expected) for expected in (2.45 + 0.25, 2.45 + 0.5)) < 0.05  # erased ones have a sixth line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe", "dei", "--data", "photos"], "did you mean --recipe deit"),
        (["--recipe", "deit"], "type --data FOLDER"),
        (["--data", "photos", "--images", "0"], "--images lies between 1 and"),
        (["--data", "photos", "--out", "/tmp"], "--out /tmp is a folder: type --out /tmp/preview.png"),
        (["--data", "photos", "--copies", "65"], "--copies lies between 1 and 64, got 65"),
    ],
)
def test_mistakes_are_sentences(arguments: list[str], text: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["preview", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_an_image_that_cannot_be_drawn_is_named(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken = image_folder / "train/ant/0.jpg"
    broken.write_bytes(b"<html>")
    assert main(["preview", "--data", str(image_folder), "--images", "2", "--out", str(tmp_path / "seen.png")]) == 2
    assert f"error: {broken}: it is not an image" in capsys.readouterr().err


def test_a_decoded_set_is_drawn(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    assert main(["preview", "--data", str(tmp_path), "--images", "2", "--out", str(tmp_path / "seen.png")]) == 0
