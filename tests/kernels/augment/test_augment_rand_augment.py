"""RandAugment and random erasing are drawn as timm draws them: which op, how often, how strong; which box."""

import random

import numpy as np
import pytest
import torch
from augment_distance import distance
from PIL import Image
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing

from deit_kernels.augment import OPS, Erase, Policy, sample_plan

COUNT = 40_000
TIMM_NAMES = {
    "AutoContrast": "auto_contrast", "Equalize": "equalize", "Invert": "invert", "Rotate": "rotate",
    "Posterize": "posterize", "PosterizeIncreasing": "posterize", "Solarize": "solarize",
    "SolarizeIncreasing": "solarize", "SolarizeAdd": "solarize_add", "Color": "color", "ColorIncreasing": "color",
    "Contrast": "contrast", "ContrastIncreasing": "contrast", "Brightness": "brightness",
    "BrightnessIncreasing": "brightness", "Sharpness": "sharpness", "SharpnessIncreasing": "sharpness",
    "ShearX": "shear_x", "ShearY": "shear_y", "TranslateXRel": "translate_x", "TranslateYRel": "translate_y",
}  # fmt: skip


def draw(policy: Policy, count: int = COUNT, seed: int = 0) -> np.ndarray:
    return sample_plan(policy, seed=seed, epoch=0, sample=np.arange(count), copy=0, height=9, width=9).table


def timm_draws(text: str, count: int) -> list[list[tuple[str, float]]]:
    """The ops that timm applies to `count` images, with their arguments as ours count them."""
    hparams = {"translate_const": 100, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    transform = auto_augment.rand_augment_transform(text, hparams)
    seen: list[tuple[str, float]] = []
    for ours in transform.ops:
        name = TIMM_NAMES[ours.name]
        size = 224 if name.startswith("translate") else 1

        def record(image: object, *args: float, name: str = name, size: int = size, **_: object) -> object:
            seen.append((name, args[0] * size if args else 0.0))
            return image

        ours.aug_fn = record
    draws = []
    for _ in range(count):
        seen.clear()
        transform(None)
        draws.append(list(seen))
    return draws


@pytest.mark.parametrize(
    "text", ["rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5", "rand-m7-mstd101-p0.8-n1", "rand-m9-mmax12-mstd1-tweights"]
)
def test_ops_and_arguments_are_distributed_as_those_of_timm(text: str) -> None:
    random.seed(0)
    np.random.seed(0)
    theirs = timm_draws(text, COUNT)
    ops = draw(Policy.parse(text))["ops"]
    by_number = np.bincount([len(drawn) for drawn in theirs], minlength=3)
    assert np.abs(np.bincount((ops["op"] > 0).sum(1), minlength=3) - by_number).max() < 4 * np.sqrt(COUNT / 2)
    for name in OPS[1:]:
        expected = np.array([arg for drawn in theirs for op, arg in drawn if op == name])
        ours = ops["arg"][ops["op"] == OPS.index(name)]
        assert abs(len(ours) - len(expected)) < 4 * np.sqrt(2 * len(expected) + 1), name
        if len(expected) > 100:  # a true null hypothesis is rejected once in ten thousand
            allowed = 2.2 * np.sqrt(1 / len(ours) + 1 / len(expected))
            assert distance(ours, expected) < allowed, name


def test_the_second_op_does_not_depend_on_the_first() -> None:
    policy = Policy.parse("rand-m9-mstd0.5-inc1-p1")
    first, second = draw(policy)["ops"]["op"].T
    together = np.histogram2d(first, second, bins=15)[0]
    assert np.abs(together - COUNT / 225).max() < 5 * np.sqrt(COUNT / 225)


def test_weighted_ops_are_drawn_without_replacement() -> None:
    first, second = draw(Policy.parse("rand-p1-inc1-tweights"))["ops"]["op"].T
    assert (first != second).all()


def test_posterize_to_no_bits_is_drawn() -> None:
    ops = draw(Policy.deit())["ops"]
    bits = ops["arg"][ops["op"] == OPS.index("posterize")]
    assert set(np.unique(bits)) == {0.0, 1.0, 2.0}
    assert abs((bits == 0).mean() - 0.0225) < 0.012


def test_erased_boxes_are_distributed_as_those_of_timm() -> None:
    random.seed(0)
    erasing = RandomErasing(probability=0.25, mode="const", device="cpu")
    image, boxes = torch.ones(1, 224, 224), []
    for _ in range(12_000):
        image.fill_(1.0)
        erasing(image)
        if (image == 0).any():
            rows, columns = (np.flatnonzero((image[0] == 0).any(dim).numpy()) for dim in (1, 0))
            boxes.append((rows[0], columns[0], len(rows), len(columns)))
    theirs = np.array(boxes, float)
    table = draw(Policy.deit())
    ours = table["erased"][table["erase"] > 0].astype(float)
    assert abs(len(ours) / COUNT - 0.25) < 0.01
    assert abs(len(theirs) / 12_000 - len(ours) / COUNT) < 0.02
    features = {
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 2] / box[:, 3],
        "top": lambda box: box[:, 0] / (224 - box[:, 2]),
        "left": lambda box: box[:, 1] / (224 - box[:, 3]),
    }
    far = {name: value for name, f in features.items() if (value := distance(f(ours), f(theirs))) > 0.045}
    assert not far


def test_an_image_of_one_pixel_has_no_box_to_erase() -> None:
    assert (draw(Policy(size=1, erase=Erase(1.0)), 1000)["erase"] == 0).mean() < 1
    assert (draw(Policy(size=1, erase=Erase(1.0, area=(1, 1))), 1000)["erase"] == 0).all()


def test_later_stages_leave_the_crop_alone() -> None:
    plain, whole = draw(Policy.crop_and_flip(), 500), draw(Policy.deit(), 500)
    for name in ("box", "flip", "filter", "window"):
        assert (plain[name] == whole[name]).all()
    assert not plain["ops"]["op"].any()
    assert not plain["erase"].any()


def test_a_simple_crop_reaches_the_padding_on_every_side() -> None:
    policy = Policy(size=16, crop="simple", pad=4)
    sample = np.arange(5000)
    table = sample_plan(policy, seed=0, epoch=0, sample=sample, copy=0, height=20, width=30).table
    assert (table["resized"] == [16, 24]).all()
    assert table["window"].min(0).tolist() == [-4, -4]
    assert table["window"].max(0).tolist() == [4, 12]
    assert (table["box"] == [0, 0, 20, 30]).all()
