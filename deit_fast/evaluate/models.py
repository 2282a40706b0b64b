"""What is evaluated: models by path or name, how their images are prepared, and what their labels mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import timm
from timm.data import ImageNetInfo
from torch import nn

from deit_kernels.augment import Policy

from ..config import Config
from ..data.sources.folder import is_image, listing
from ..data.sources.imagenet import has_numbered_classes, is_flat
from ..data.sources.open import BUILTIN, open_dataset
from ..model import VisionTransformer
from ..run.checkpoint import newest
from ..scores import Renormalised
from ..teacher.load import load_teacher, recipe_config
from ..weights.build import check_forward
from ..weights.exported import OFFICIAL_CROP_RATIO
from ..weights.prediction import Trained
from ..weights.trained import opened, resolve, run_model


@dataclass
class Subjects:
    """Models that see the same images.

    Attributes:
        models: by name; "model" and "ema" where there is one, else each under its own.
        policy: how an image is resized, cropped and normalised, for all of them.
        count: of the classes that they know.
        classes: names, index = label; None where weights alone cannot tell.
        data: what they were trained on; "" if unknown.
        sources: where each comes from, in words.
        config: of the run that the first comes from, if it does.
    """

    models: dict[str, nn.Module]
    policy: Policy
    count: int
    classes: list[str] | None = None
    data: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    config: Config | None = None


def open_subjects(specs: Sequence[str], architecture: str = "", image_size: int = 0, crop_ratio: str = "") -> Subjects:
    """The models that `specs` name.

    Args:
        specs: what `load` reads; a run gives its last weights and its moving average.
        architecture: timm's name of what those fit that are weights alone.
        image_size: evaluate at this size instead of the model's own; position embeddings are resized.
        crop_ratio: "official", "timm" or a number; "": a run's own, timm's for a model of timm, else the official one.

    Raises:
        ValueError: one cannot be opened, or two of them see images in different ways or know different classes.
    """
    found = [_open(spec, architecture, image_size, crop_ratio) for spec in specs]
    first = found[0]
    if len(found) == 1:
        return first
    together = dataclasses.replace(first, models={}, sources={})
    for spec, subjects in zip(specs, found, strict=True):
        if (subjects.policy.size, subjects.policy.crop_ratio) != (first.policy.size, first.policy.crop_ratio):
            raise ValueError(
                f"{specs[0]} sees images of {_seen(first.policy)}, {spec} of {_seen(subjects.policy)}: evaluate them "
                f"one by one, or give all the same --image-size and --crop-ratio"
            )
        known = subjects.classes if first.classes is not None else None
        if subjects.count != first.count or (known is not None and known != first.classes):
            raise ValueError(f"{specs[0]} and {spec} know different classes: evaluate them one by one")
        short = Path(spec).name
        for name, model in subjects.models.items():
            unique = short if name == "model" else f"{short} {name}"
            if unique in together.models:
                raise ValueError(f"{unique} is named twice: give every model once, and run folders of different names")
            given, own = ((policy.mean, policy.std) for policy in (first.policy, subjects.policy))
            together.models[unique] = model if own == given else Renormalised(model, given, own)
            together.sources[unique] = subjects.sources[name]
    return together


def open_teacher(subjects: Subjects, spec: str, architecture: str, classes: list[str]) -> nn.Module:
    """A teacher for images that are prepared for `subjects`; see `load_teacher`."""
    config = Config(teacher=spec, teacher_model=architecture, image_size=subjects.policy.size)
    return load_teacher(config, spec, classes, (subjects.policy.mean, subjects.policy.std))


def teacher_of_run(config: Config | None) -> tuple[str, str]:
    """(what the run learned from, its architecture), as `open_teacher` takes them; ("", "") without a teacher."""
    if config is None or not config.teacher:
        return "", ""
    first = recipe_config(config)
    return (str(first.run_folder()) if first is not None else config.teacher), config.teacher_model


def classes_of_data(spec: str, count: int) -> list[str]:
    """The class names of a model with `count` outputs, taken from the data that it is evaluated on.

    ImageNet's synsets for 1000 outputs and any folder of ImageNet: some of its classes, ImageNet-V2, or flat. Else the
    classes of the training images that lie beside these, or the class folders themselves; where their names are
    numbers, the number is the label.
    """
    root = Path(spec).expanduser()
    classes: list[str] = []
    if spec not in BUILTIN and root.is_dir():
        inside = root / "val" if "val" in listing(root)[0] else root
        folders = listing(inside)[0]
        synsets = ImageNetInfo().label_names() if count == 1000 else []
        known = bool(folders) and set(folders) <= set(synsets)
        if synsets and (known or is_flat(inside) or has_numbered_classes(inside, synsets)):
            return synsets
        if inside == root and any(is_image(file) for folder in folders for file in listing(root / folder)[1]):
            classes = sorted(folders, key=int) if all(map(str.isdecimal, folders)) else folders
    classes = classes or open_dataset(spec)[1].classes
    if len(classes) != count:
        raise ValueError(
            f"the model knows {count} classes, {spec} has {len(classes)}: evaluate it on data of its own classes, or "
            f"fine-tune it on these first, python -m deit_fast.train --weights … --data {spec}"
        )
    return classes


def _open(spec: str, architecture: str, image_size: int, crop_ratio: str) -> Subjects:
    named = resolve(spec)
    checkpoint = newest(named.path) if named.kind == "run" else None
    if checkpoint is not None:
        files = {name: checkpoint / f"{name}.safetensors" for name in ("model", "ema")}
        found = {name: file for name, file in files.items() if file.is_file()}
        parts = {name: run_model(named.path, weights=file, image_size=image_size) for name, file in found.items()}
    else:
        parts = {"model": opened(named, architecture, image_size)}
    trained = parts["model"]
    policy = dataclasses.replace(trained.policy, crop_ratio=_crop_ratio(crop_ratio, trained))
    return Subjects(
        {name: part.model for name, part in parts.items()},
        policy,
        check_forward(trained.model, spec, policy.size),
        trained.classes if trained.data is not None else None,
        trained.config.data if trained.config is not None else "",
        {name: part.source for name, part in parts.items()},
        trained.config,
    )


def _seen(policy: Policy) -> str:
    return f"{policy.size} pixels, crop ratio {policy.crop_ratio:g}"


def _crop_ratio(text: str, trained: Trained) -> float:
    if text == "official":
        return OFFICIAL_CROP_RATIO
    if text == "timm":
        return _timm_crop_ratio(trained)
    if not text:
        return trained.policy.crop_ratio
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio <= 1:
        raise ValueError(f"--crop-ratio takes official, timm or a number above 0 and up to 1, got {text}")
    return ratio


def _timm_crop_ratio(trained: Trained) -> float:
    """0.9 for a DeiT of 224 pixels, 1 for one of 384."""
    cfg = getattr(trained.model, "pretrained_cfg", None)
    if isinstance(trained.model, VisionTransformer):
        config = trained.model.config
        size = 384 if config.image_size >= 384 else 224
        cfg = timm.get_pretrained_cfg(f"deit_base_patch16_{size}").to_dict()
    if not cfg or "crop_pct" not in cfg:
        raise ValueError(f"timm has no crop ratio for {trained.source}: type --crop-ratio 0.875, or another number")
    return min(1.0, cfg["crop_pct"])


def parameters(model: nn.Module) -> int:
    """The number of weights, without buffers."""
    return sum(weight.numel() for weight in model.parameters())
