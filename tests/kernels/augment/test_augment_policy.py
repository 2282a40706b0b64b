"""Policies: the recipes' numbers, timm's strings, and what is refused."""

import json
import math
import pickle
from dataclasses import replace

import pytest
import timm.data
from timm.data.auto_augment import _RAND_WEIGHTED_0

from deit_kernels.augment import AutoAugment, Erase, Mix, Policy, RandAugment, RandomOp
from deit_kernels.augment.rand_augment import TIMM_WEIGHTS


def test_deit_is_the_recipe_of_the_paper() -> None:
    policy = Policy.deit(224)
    assert policy.rand_augment == RandAugment.parse("rand-m9-mstd0.5-inc1")
    assert (policy.erase.probability, policy.erase.mode) == (0.25, "pixel")
    assert (policy.mix.mixup_alpha, policy.mix.cutmix_alpha, policy.mix.switch_probability) == (0.8, 1.0, 0.5)
    assert replace(policy, rand_augment=None, erase=None, mix=None) == Policy.crop_and_flip(224)


def test_deit3_is_the_recipe_of_the_official_code() -> None:
    policy = Policy.deit3(192)
    grey, solarised, blurred = policy.auto_augment.sub_policies
    assert grey == (RandomOp("color", 1.0, 0.0, 0.0),)
    assert solarised == (RandomOp("solarize", 1.0, 128, 128),)
    assert blurred == (RandomOp("gaussian_blur", 1.0, 0.1, 2.0, uniform=True),)
    assert (policy.crop, policy.color_jitter, policy.mix, policy.erase) == ("random_resized", 0.3, Mix(), None)
    assert replace(policy, auto_augment=None, color_jitter=0.0, mix=None) == Policy.crop_and_flip(192)
    simple = Policy.deit3(192, src=True)
    assert (simple.crop, simple.pad) == ("simple", 4)
    assert replace(simple, crop="random_resized") == policy
    assert Policy.deit3(192, color_jitter=0).color_jitter == 0
    assert Policy.parse("3a", 192) == replace(policy, mix=None)


def test_a_policy_without_later_stages_keeps_the_key_of_its_label_cache() -> None:
    kept = {
        "size", "crop", "scale", "ratio", "crop_ratio", "interpolation", "flip", "mean", "std", "pad", "rand_augment",
        "erase", "mix", "affine",
    }  # fmt: skip
    assert Policy.deit().settings().keys() == Policy.eval().settings().keys() == kept
    assert Policy.deit3().settings().keys() == kept | {"auto_augment", "color_jitter"}
    assert json.loads(json.dumps(Policy.deit3().settings()))["auto_augment"]["sub_policies"][1][0][0] == "solarize"


def test_numbers_that_are_kept_are_nobodys_to_change() -> None:
    policy = Policy.parse("original")
    first = policy.numbers(1)
    first["sub_policy"]["op"] = 0
    assert (policy.numbers(2) == Policy.parse("original").numbers(2)).all()
    assert (policy.numbers(2)["seed"], policy.numbers(3)["seed"]) == (2, 3)
    assert policy == Policy.parse("original") == pickle.loads(pickle.dumps(policy))


def test_only_a_plain_evaluation_draws_nothing() -> None:
    assert not Policy.eval().draws
    for change in ({"flip": 0.5}, {"interpolation": "random"}, {"color_jitter": 0.1}, {"erase": Erase()}):
        assert replace(Policy.eval(), **change).draws
    for ops in ({"rand_augment": RandAugment()}, {"auto_augment": AutoAugment.parse("v0")}, {"crop": "simple"}):
        assert replace(Policy.eval(), **ops).draws


def test_the_fill_colour_is_the_one_of_timm() -> None:
    transform = timm.data.create_transform(224, is_training=True, auto_augment="rand-m9-inc1")
    theirs = transform.transforms[2].ops[0].kwargs["fillcolor"]
    assert Policy.deit().fill == theirs == (124, 116, 104)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand", RandAugment(10, 0.0, increasing=False)),
        ("rand-m9-mstd0.5-inc1", RandAugment()),
        ("rand-inc0-m7", RandAugment(7, 0.0, increasing=False)),
        ("rand-n1-p0.3-mstd1.5", RandAugment(10, 1.5, layers=1, probability=0.3, increasing=False)),
        ("rand-mmax15-mstd200", RandAugment(10, math.inf, 15, increasing=False)),
        ("rand-tweights-inc0", RandAugment(10, 0.0, weights=tuple(TIMM_WEIGHTS.items()))),
    ],
)
def test_strings_of_timm(text: str, expected: RandAugment) -> None:
    assert RandAugment.parse(text) == expected
    assert Policy.parse(text, 48) == Policy(size=48, rand_augment=expected)


def test_the_weights_are_those_of_timm() -> None:
    assert sorted(TIMM_WEIGHTS.values()) == sorted(_RAND_WEIGHTED_0.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m5", "'augmix-m5' is timm's AugMix, which is not built: type \"rand-m9"),
        ("original-mstd0.5", "'original-mstd0.5' is unknown: type"),
        ("3aw", "'3aw' is unknown: type .* \"3a\""),
        ("random-m9", "'random-m9' is unknown"),
        ("rand-mst0.5", "'mst0.5' in .*: did you mean mstd"),
        ("rand-q1", "'q1' in .*: did you mean"),
        ("rand-m", "m takes a number, such as m1"),
        ("rand-m9x", "m takes a number"),
        ("rand-t3a", "the only named set of this version is tweights"),
        ("rand-n5", "layers is a number of ops, 0 to 4, got 5"),
        ("rand-p1.5", "probability lies in"),
        ("", "'' is unknown"),
    ],
)
def test_strings_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy.parse(text)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": 1025},
        {"crop": "middle"},
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.8)},
        {"ratio": (0.0, 1.0)},
        {"crop_ratio": 1.01},
        {"interpolation": "nearest"},
        {"flip": 1.5},
        {"mean": (0.5, 0.5)},
        {"std": (0.2, 0.2, 0.0)},
    ],
)
def test_what_a_policy_refuses(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Policy(**change)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (RandAugment, {"magnitude": -1.0}),
        (RandAugment, {"magnitude_std": -0.1}),
        (RandAugment, {"magnitude_max": 0.0}),
        (RandAugment, {"weights": (("rotat", 1.0),)}),
        (RandAugment, {"weights": (("rotate", 1.0),)}),
        (RandAugment, {"weights": (("rotate", -1.0), ("color", 1.0))}),
        (Erase, {"probability": 1.1}),
        (Erase, {"mode": "noise"}),
        (Erase, {"area": (0.5, 0.1)}),
        (Erase, {"ratio": (0.0, 1.0)}),
        (Mix, {"mixup_alpha": -0.5}),
        (Mix, {"cutmix_alpha": 1000.0}),
        (Mix, {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}),
        (Mix, {"switch_probability": 2.0}),
        (Mix, {"box_rounding": "floor"}),
        (Policy, {"interpolation": "nearest"}),
        (Policy, {"crop": "simple", "pad": 224}),
        (Policy, {"affine": "float32"}),
        (Policy, {"color_jitter": -0.1}),
        (Policy, {"color_jitter": 0.3, "rand_augment": RandAugment()}),
        (Policy, {"auto_augment": AutoAugment.parse("v0"), "rand_augment": RandAugment()}),
        (AutoAugment, {"sub_policies": ()}),
        (AutoAugment, {"sub_policies": ((),) * 26}),
        (AutoAugment, {"sub_policies": ((RandomOp("invert"),) * 3,)}),
        (AutoAugment, {"sub_policies": ((RandomOp("rotat"),),)}),
        (AutoAugment, {"sub_policies": ((RandomOp("rotate", 1.5),),)}),
        (AutoAugment, {"sub_policies": ((RandomOp("rotate", 1.0, 3.0, 2.0),),)}),
        (AutoAugment, {"sub_policies": ((RandomOp("rotate", 1.0, 0.0, 1001.0),),)}),
        (AutoAugment, {"sub_policies": ((RandomOp("rotate", 1.0, float("nan"), 1.0),),)}),
    ],
)
def test_what_a_stage_refuses(kind: type, change: dict[str, object]) -> None:
    words = {"weights": "op|layers|weight", "sub_policies": "sub_policies|sub-policy|rotat"}
    word = words.get(next(iter(change)), next(iter(change)))
    if change.get("crop") == "simple":
        word = "pad lies in"
    with pytest.raises(ValueError, match=word):
        kind(**change)
