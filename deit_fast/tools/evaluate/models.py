"""What is evaluated: models by path or name, how their images are prepared, and what their labels mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
from torch import nn

from ...config import OFFICIAL_CROP_RATIO, Config, Preprocessing
from ...model import VisionTransformer
from ...scores import Renormalised
from ...weights.build import check_forward
from ...weights.prediction import Trained
from ...weights.trained import opened, resolve, run_model


@dataclass
class EvaluatedModels:
    """Models that see the same images."""

    models: dict[str, nn.Module]  # by name; "model" and "ema" of a run alone, else each under its own
    preprocessing: Preprocessing  # of the images, for all of them
    count: int  # of the classes that they know
    classes: list[str] | None  # names, index = label; None where weights alone cannot tell
    sources: dict[str, str]  # where each comes from, in words
    config: Config | None  # of the run that the first comes from, if it does
    timm_order: bool = False  # timm sorted the class folders that one of them was trained on


def open_models(specs: Sequence[str], architecture: str, image_size: int, crop_ratio: str) -> EvaluatedModels:
    """The models that `specs` name, each as `load` reads it; of a run its last weights and its moving average.

    `crop_ratio` is "official", "timm" or a number; "": a run's own, timm's for a model of timm, else the official one.
    """
    found = [_open(spec, architecture, image_size, crop_ratio) for spec in specs]
    first = found[0]
    if len(found) == 1:
        return first
    together = dataclasses.replace(first, models={}, sources={})
    for spec, evaluated in zip(specs, found, strict=True):
        common, own = first.preprocessing, evaluated.preprocessing
        if dataclasses.replace(own, mean=common.mean, std=common.std) != common:
            alike = (own.interpolation, own.exif_orientation) == (common.interpolation, common.exif_orientation)
            way = ", or give all the same --image-size and --crop-ratio" if alike else ""
            raise ValueError(f"{specs[0]} sees images of {common}, {spec} of {own}: evaluate them one by one{way}")
        together.timm_order |= evaluated.timm_order
        known = evaluated.classes if first.classes is not None else None
        if evaluated.count != first.count or (known is not None and known != first.classes):
            raise ValueError(f"{specs[0]} and {spec} know different classes: evaluate them one by one")
        short = Path(spec).name
        given, wanted = common.normalisation, own.normalisation
        for name, model in evaluated.models.items():
            unique = short if name == "model" else f"{short} {name}"
            if unique in together.models:
                raise ValueError(f"{unique} is named twice: give every model once, and run folders of different names")
            together.models[unique] = model if wanted == given else Renormalised(model, given, wanted)
            together.sources[unique] = evaluated.sources[name]
    return together


def _open(spec: str, architecture: str, image_size: int, crop_ratio: str) -> EvaluatedModels:
    named = resolve(spec)
    files = named.files() if named.kind == "run" else []
    parts = {file.stem: run_model(named.path, weights=file, image_size=image_size) for file in files}
    parts = parts or {"model": opened(named, architecture, image_size)}
    trained = parts["model"]
    preprocessing = dataclasses.replace(trained.preprocessing, crop_ratio=_crop_ratio(crop_ratio, trained))
    return EvaluatedModels(
        {name: part.model for name, part in parts.items()},
        preprocessing,
        check_forward(trained.model, spec, preprocessing.image_size),
        trained.classes if trained.data is not None or trained.timm_classes == "mapped" else None,
        {name: part.source for name, part in parts.items()},
        trained.config,
        trained.timm_classes == "sorted",
    )


def _crop_ratio(text: str, trained: Trained) -> float:
    if text == "official":
        return OFFICIAL_CROP_RATIO
    if text == "timm":
        cfg: Any = getattr(trained.model, "pretrained_cfg", None)
        if isinstance(trained.model, VisionTransformer):  # 0.9 for 224 pixels, 1 for 384
            size = 384 if np.min(trained.model.config.image_size) >= 384 else 224
            cfg = vars(timm.get_pretrained_cfg(f"deit_base_patch16_{size}"))
        if not cfg or "crop_pct" not in cfg:
            raise ValueError(f"timm has no crop ratio for {trained.source}: type --crop-ratio 0.875, or another number")
        return min(1.0, cfg["crop_pct"])
    if not text:
        return trained.preprocessing.crop_ratio
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio <= 1:
        raise ValueError(f"--crop-ratio takes official, timm or a number above 0 and up to 1, got {text}")
    return ratio
