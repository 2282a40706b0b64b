"""Ops and erased boxes are drawn as timm draws them: which op, how often, how strong; which box."""

import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from augment_distance import distance
from PIL import Image
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import ColorJitter

from deit_kernels.augment import OPS, AutoAugment, Erase, Policy, sample_plan
from deit_kernels.augment.rand_augment import TIMM_WEIGHTS

COUNT = 40_000
TIMM_NAMES = {
    "AutoContrast": "auto_contrast", "Equalize": "equalize", "Invert": "invert", "Rotate": "rotate",
    "Posterize": "posterize", "PosterizeIncreasing": "posterize", "Solarize": "solarize",
    "SolarizeIncreasing": "solarize", "SolarizeAdd": "solarize_add", "Color": "color", "ColorIncreasing": "color",
    "Contrast": "contrast", "ContrastIncreasing": "contrast", "Brightness": "brightness",
    "BrightnessIncreasing": "brightness", "Sharpness": "sharpness", "SharpnessIncreasing": "sharpness",
    "ShearX": "shear_x", "ShearY": "shear_y", "TranslateXRel": "translate_x", "TranslateYRel": "translate_y",
    "PosterizeOriginal": "posterize", "Desaturate": "color", "GaussianBlurRand": "gaussian_blur",
}  # fmt: skip


def test_the_weights_of_the_ops_are_timms() -> None:
    assert TIMM_WEIGHTS == {TIMM_NAMES[name]: weight for name, weight in auto_augment._RAND_WEIGHTED_0.items()}


def draw(policy: Policy, count: int = COUNT, seed: int = 0) -> np.ndarray:
    return sample_plan(policy, seed=seed, epoch=0, sample=np.arange(count), copy=0, height=9, width=9).table


HPARAMS = {"translate_const": 100, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}


@cache
def timm_draws(text: str) -> list[list[tuple[str, float]]]:
    """The ops that timm applies to COUNT images, with their arguments as ours count them."""
    random.seed(0)
    np.random.seed(0)
    if text.startswith("rand"):
        transform = auto_augment.rand_augment_transform(text, dict(HPARAMS))
        ops = transform.ops
    else:
        transform = auto_augment.auto_augment_transform(text, dict(HPARAMS))
        ops = [op for policy in transform.policy for op in policy]
    seen: list[tuple[str, float]] = []
    for ours in ops:
        name = TIMM_NAMES[ours.name]
        size = 224 if name.startswith("translate") else 1

        def record(image: object, *args: float, name: str = name, size: int = size, **_: object) -> object:
            seen.append((name, args[0] * size if args else 0.0))
            return image

        ours.aug_fn = record
    draws = []
    for _ in range(COUNT):
        seen.clear()
        transform(None)
        draws.append(list(seen))
    return draws


@pytest.mark.parametrize(
    "text", [
        "rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5", "rand-m7-mstd101-p0.8-n1", "rand-m9-mmax12-mstd1-tweights",
        "rand-m5-inc1-n4", "original", "v0",
    ],
)  # fmt: skip
def test_ops_and_arguments_are_distributed_as_those_of_timm(text: str) -> None:
    theirs = timm_draws(text)
    ops = draw(Policy.parse(text))["ops"]
    by_number = np.bincount([len(drawn) for drawn in theirs], minlength=5)
    assert np.abs(np.bincount((ops["op"] > 0).sum(1), minlength=5) - by_number).max() < 4 * np.sqrt(COUNT / 2)
    for name in OPS[1:]:
        expected = np.array([arg for drawn in theirs for op, arg in drawn if op == name])
        ours = ops["arg"][ops["op"] == OPS.index(name)]
        assert abs(len(ours) - len(expected)) < 4 * np.sqrt(2 * len(expected) + 1), name
        if len(expected) > 100:  # a true null hypothesis is rejected once in ten thousand
            allowed = 2.2 * np.sqrt(1 / len(ours) + 1 / len(expected))
            assert distance(ours, expected) < allowed, name


def test_the_second_op_does_not_depend_on_the_first() -> None:
    policy = Policy.parse("rand-m9-mstd0.5-inc1-p1")
    first, second = draw(policy)["ops"]["op"].T[:2]
    together = np.histogram2d(first, second, bins=15)[0]
    assert np.abs(together - COUNT / 225).max() < 5 * np.sqrt(COUNT / 225)


def test_weighted_ops_are_drawn_without_replacement() -> None:
    first, second = draw(Policy.parse("rand-p1-inc1-tweights"))["ops"]["op"].T[:2]
    assert (first != second).all()


def test_posterize_to_no_bits_is_drawn() -> None:
    ops = draw(Policy.deit())["ops"]
    bits = ops["arg"][ops["op"] == OPS.index("posterize")]
    assert set(np.unique(bits)) == {0.0, 1.0, 2.0}
    assert abs((bits == 0).mean() - 0.0225) < 0.012


@pytest.mark.parametrize("text", ["original", "originalr", "v0", "v0r"])
def test_sub_policies_are_those_of_timm(text: str) -> None:
    theirs = auto_augment.auto_augment_transform(text, dict(HPARAMS)).policy
    ours = AutoAugment.parse(text).sub_policies
    assert len(ours) == len(theirs) == 25
    for own_ops, timm_ops in zip(ours, theirs, strict=True):
        for own, op in zip(own_ops, timm_ops, strict=True):
            assert (own.op, own.probability) == (TIMM_NAMES[op.name], op.prob)
            drawn = {(op.level_fn(op.magnitude, HPARAMS) if op.level_fn else (0.0,))[0] for _ in range(40)}
            assert drawn == {own.low, own.high}, op


def test_two_ops_of_a_sub_policy_are_drawn_together_as_timm_draws_them() -> None:
    pairs = Counter(tuple(name for name, _ in drawn) for drawn in timm_draws("original"))
    drawn = draw(Policy.parse("original"))["ops"]["op"]
    ours = Counter(tuple(OPS[op] for op in row[row > 0]) for row in drawn)
    assert ours.keys() == pairs.keys()
    for names, count in pairs.items():
        assert abs(ours[names] - count) < 5 * np.sqrt(2 * count + 1), names


def test_three_augment_is_drawn_as_the_official_code_draws_it() -> None:
    random.seed(0)
    torch.manual_seed(0)
    kinds = [lambda: 0, lambda: 1, lambda: random.uniform(0.1, 2.0)]
    blurs = [random.choice(kinds)() for _ in range(COUNT)]
    radii = np.array([blur for blur in blurs if isinstance(blur, float)])
    ops = draw(Policy.deit3())["ops"]
    names = [OPS.index(name) for name in ("color", "solarize", "gaussian_blur")]
    counts = np.bincount(ops["op"][:, 0], minlength=len(OPS))
    assert counts.sum() == counts[names].sum() == COUNT
    assert np.abs(counts[names] - COUNT / 3).max() < 4 * np.sqrt(COUNT * 2 / 9)
    first, kind = ops["arg"][:, 0], ops["op"][:, 0]
    assert set(first[kind == names[0]]) == {0.0}
    assert set(first[kind == names[1]]) == {128.0}
    ours = first[kind == names[2]]
    assert 0.1 <= ours.min() <= ours.max() < 2.0
    assert distance(ours, radii) < 2.2 * np.sqrt(1 / len(ours) + 1 / len(radii))


def test_jitter_is_drawn_as_torchvisions() -> None:
    count = 12_000
    torch.manual_seed(0)
    names = ("brightness", "contrast", "color")
    jitter = ColorJitter(0.3, 0.3, 0.3)
    params = [jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None) for _ in range(count)]
    orders = Counter(tuple(names[i] for i in order.tolist() if i < 3) for order, *_ in params)
    ops = draw(Policy(color_jitter=0.3), count)["ops"]
    assert not ops["op"][:, 0].any()
    ours = Counter(tuple(OPS[op] for op in row) for row in ops["op"][:, 1:])
    assert ours.keys() == orders.keys()
    assert len(ours) == 6
    assert max(abs(ours[order] - count / 6) for order in ours) < 4 * np.sqrt(count * 5 / 36)
    factors = {}
    for place, name in enumerate(names, 1):
        factors[name] = ops["arg"][ops["op"] == OPS.index(name)]  # in the order of the rows
        theirs = np.array([drawn[place] for drawn in params])
        assert len(factors[name]) == count
        assert distance(factors[name], theirs) < 2.2 * np.sqrt(2 / count)
        first = np.isin(np.arange(count), np.flatnonzero(ops["op"][:, 1] == OPS.index(name)))
        assert abs(np.corrcoef(factors[name], first)[0, 1]) < 4 / count**0.5
    assert np.abs(np.corrcoef(list(factors.values())) - np.eye(3)).max() < 4 / count**0.5


def test_strong_jitter_reaches_0_and_not_below() -> None:
    ops = draw(Policy(color_jitter=2.0), 3000)["ops"]
    assert ops["arg"][:, 1:].min() >= 0.0
    assert ops["arg"][:, 1:].max() > 2.9


def test_the_choice_of_an_augmentation_says_nothing_about_the_rest() -> None:
    table = draw(Policy.deit3())
    kind, order = table["ops"]["op"][:, 0], table["ops"]["op"][:, 1:] @ np.array([289, 17, 1])
    together = np.stack([np.bincount(np.unique(order[kind == op], return_inverse=True)[1]) for op in np.unique(kind)])
    assert np.abs(together - COUNT / 18).max() < 5 * np.sqrt(COUNT / 18)
    for op in np.unique(kind):
        assert abs(table["flip"][kind == op].mean() - 0.5) < 0.02


def test_erased_boxes_are_distributed_as_those_of_timm() -> None:
    random.seed(0)
    erasing = RandomErasing(probability=1.0, mode="const", device="cpu")
    image, boxes = torch.ones(1, 224, 224), []
    for _ in range(3000):
        image.fill_(1.0)
        erasing(image)
        rows, columns = (np.flatnonzero((image[0] == 0).any(dim).numpy()) for dim in (1, 0))
        boxes.append((rows[0], columns[0], len(rows), len(columns)))
    theirs = np.array(boxes, float)
    table = draw(Policy.deit())
    ours = table["erased"][table["erase"] > 0].astype(float)
    assert abs(len(ours) / COUNT - 0.25) < 0.01
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
