"""The model card of an export: what the model is, how it was trained and on what, its scores, how to load it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import NamedTuple

import timm
import torch

from ...config import Config, Preprocessing, command_line, fields_where
from ...model import VisionTransformer
from ...names import HEADS, SCORE_NAMES
from ...recipes.named import RECIPES, recipe
from ...weights.exported import knows_classes
from ...weights.prediction import Trained
from .code import OPSET, code_of
from .int8 import Cost

# Top-1 and top-5 on ImageNet's validation images, from facebookresearch/deit's README.
PUBLISHED = {
    "deit_tiny_patch16_224": (72.2, 91.1),
    "deit_small_patch16_224": (79.9, 95.0),
    "deit_base_patch16_224": (81.8, 95.6),
    "deit_base_patch16_384": (82.9, 96.2),
    "deit_tiny_distilled_patch16_224": (74.5, 91.9),
    "deit_small_distilled_patch16_224": (81.2, 95.4),
    "deit_base_distilled_patch16_224": (83.4, 96.5),
    "deit_base_distilled_patch16_384": (85.2, 97.2),
}
_NAMED_CLASSES = 20  # listed at most

IMAGE_FILES = 10  # of the check

# timm's scripts read it; without it they sort class folders by their numbers and without case, and we by code point.
CLASS_MAP = "class_map.txt"
_VALIDATION = f"""
timm's own scripts sort class folders in another order (1, 2, 10; Apple, banana, Cherry) unless they are given this one:

```bash
python validate.py --data-dir DATA --split val --model local-dir:. --pretrained --class-map {CLASS_MAP}
```
"""

# What a library's own preprocessing does otherwise than evaluation.
_OWN = {
    "timm": "timm's transform alone turns no image",
    "hf": "transformers' image processor alone resizes by torch instead of Pillow, which makes a level more or less, "
    "rounds the place of the crop down, which moves it by a pixel for a quarter of all sizes or more, and turns no "
    "image, while its `pipeline` turns every image as EXIF says",
}


class Differences(NamedTuple):
    """The largest differences between logits of the model and of the other library."""

    tensors: float | None  # of random tensors; None where the export takes none
    files: float  # of image files, by the code on the card
    own: float | None  # of image files, by the library's own preprocessing; None: it has none, or the card uses it
    cost: Cost | None = None  # of int8


def class_map(trained: Trained) -> str:
    """The lines of CLASS_MAP; empty where the names are not the data's, or timm, which strips them, would miss one."""
    if not knows_classes(trained) or any(name != name.strip() for name in trained.classes):
        return ""
    return "".join(f"{name}\n" for name in trained.classes)


def model_card(trained: Trained, to: str, library: str, differences: Differences, takes: str = "image") -> str:
    """Markdown with the front matter of the Hugging Face hub; `library` checked the export and found `differences`."""
    batches, quantised = "", " as the quantised model" if differences.cost else ""
    if differences.tensors is not None:
        batches = f"within {differences.tensors:.1e} for random\nimages in batches of 1 and 5, and "
    front = {"timm": "timm", "hf": "transformers", "onnx": "onnx"}[to]
    kind = "DeiT" if isinstance(trained.model, VisionTransformer) else type(trained.model).__name__
    name = trained.config.model.model if trained.config else trained.release or kind
    path, comma, rest = trained.source.partition(",")
    source = Path(path).name + comma + rest
    return f"""---
library_name: {front}
pipeline_tag: image-classification
tags: [image-classification, deit, deit-fast]
---

# {name}

{_model(trained)}

## Recipe

{_recipe(trained.config)}

## Data

{_data(trained)}

## Metrics

{_metrics(trained)}{_int8(differences.cost)}

## How to load it

In this folder, with an `image.jpg`:

```python
{code_of(to, trained.preprocessing, takes).script()}
```
{_VALIDATION if to == "timm" and class_map(trained) else ""}
{_images(trained.preprocessing)}{_own(to, differences)}{_file(to, takes, trained)}

## Where it comes from

Exported by deit-fast from `{source}` with torch {torch.__version__.split("+")[0]} and timm {timm.__version__}.
After the export, {library} loaded these files and gave the same logits{quantised}: {batches}within
{differences.files:.1e} for {IMAGE_FILES} image files of odd sizes by the code above, which showed it the same bytes.
"""


def _images(preprocessing: Preprocessing) -> str:
    side = preprocessing.image_size
    turned = "turned as their EXIF orientation says" if preprocessing.exif_orientation else "not turned by EXIF"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in preprocessing.normalisation)
    return f"""Images are RGB, {turned}. The shorter side is resized to {preprocessing.resized} pixels
({preprocessing.interpolation}, antialiased), the longer one in proportion, rounded down; the central {side} x {side}
pixels are kept and normalised with mean ({mean}) and std ({std})."""


def _own(to: str, differences: Differences) -> str:
    """How the library's own preprocessing differs, and by how much."""
    if differences.own is None:
        return ""
    return f"""

The code above gives exactly these pixels. {_OWN[to]}.
On the image files named below its logits differ from those of the code by up to {differences.own:.2g}."""


def _int8(cost: Cost | None) -> str:
    """What int8 cost, as the export measured it."""
    if cost is None:
        return ""
    said = "".join(f" Accepted: {sentence}." for sentence in cost.said)
    return f"""

This file computes in int8: weights per output channel, activations per tensor, by onnxruntime's static quantisation,
calibrated on {cost.calibrated:,} training images of `{cost.data}` (seed {cost.seed}). Softmax, GELU, LayerNorm and the
products inside attention stay float32. Measured by the export with onnxruntime: {cost}.{said}"""


def _file(to: str, takes: str, trained: Trained) -> str:
    """What an ONNX file takes and gives."""
    if to != "onnx":
        return ""
    side, count = trained.preprocessing.image_size, len(trained.classes)
    given = f"""`images`, float32 (batch, 3, {side}, {side}), any batch size | `logits`, float32 (batch, {count})"""
    about = "The code above prepares the pixels."
    if takes == "image":
        given = (
            f"`image`, uint8 (height, width, 3), RGB, of any size | `probabilities`, float32 ({count}), by label; "
            f"`labels`, int64 ({count}), the likeliest first; `logits`, float32 ({count}); `pixels`, uint8 ({side}, "
            f"{side}, 3), what the model sees"
        )
        about = (
            "`model.onnx` resizes, crops and normalises the decoded image itself, with exactly Pillow's bytes: by\n"
            "matrix products of whole numbers in float64."
        )
    return f"""

{about} Its metadata holds, as JSON, classes, image_size, crop_ratio, interpolation, mean, std,
exif_orientation, the deit-fast version and the sha256 of the weights. ONNX opset {OPSET}.

| input | outputs |
|---|---|
| {given} |"""


def _model(trained: Trained) -> str:
    model = trained.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    side = trained.preprocessing.image_size
    about = f"{parameters:,} parameters, {len(trained.classes)} classes, images of {side} pixels."
    if not isinstance(model, VisionTransformer):
        origin = " of timm" if hasattr(model, "pretrained_cfg") else ""
        return f"A {type(model).__name__}{origin}: {about}"
    sizes = model.config
    prediction = HEADS[SCORE_NAMES[model.fusion]]
    kind = f"with a class token and a distillation token (prediction: {prediction})" if sizes.distilled else "plain"
    return (
        f"A DeiT ([arXiv 2012.12877](https://arxiv.org/abs/2012.12877)), {kind}: {about} {sizes.depth} blocks, width "
        f"{sizes.width}, {sizes.heads} heads, patches of {sizes.patch_size} pixels."
    )


def _recipe(config: Config | None) -> str:
    if config is None:
        return "Not known: these weights came without their training configuration."
    default = recipe(config.recipe) if config.recipe in RECIPES else Config()
    told = config.replace(out="", **{name: Path(config.flat()[name]).name for name in fields_where("path")})
    flags = shlex.join(["--recipe", config.recipe, *command_line(told, default, without=fields_where("free"))])
    whole = json.dumps(told.flat(), indent=2)
    return (
        f"```\npython -m deit_fast.train {flags}\n```\n\n<details><summary>The whole configuration</summary>\n\n"
        f"```json\n{whole}\n```\n\n</details>"
    )


def _data(trained: Trained) -> str:
    data, count = trained.data, len(trained.classes)
    listed = ", ".join(trained.classes[:_NAMED_CLASSES]) + (", …" if count > _NAMED_CLASSES else "")
    if data is None or trained.config is None:
        return f"Not recorded with these weights. Its {count} classes: {listed}."
    source = Path(trained.config.data.data).name
    return (
        f"`{source}`: {data['train']:,} training and {data['val']:,} validation images of {count} classes ({listed}); "
        f"sha256 of the labels in their order: `{data['labels']}`."
    )


def _metrics(trained: Trained) -> str:
    if trained.release:
        top1, top5 = PUBLISHED[trained.release]
        return (
            f"Top-1 {top1} %, top-5 {top5} % on ImageNet's 50,000 validation images, as facebookresearch/deit's README "
            f"reports it for the released file, which this is by its sha256. Not measured again here."
        )
    scores = trained.scores
    if not scores:
        return "None is known for these weights."
    lines = ["| head | top-1 | top-5 | cross-entropy |", "|---|---|---|---|"]
    for key, label in HEADS.items():
        if row := scores.get(key):
            lines.append(f"| {label} | {row['top1']:.2f} % | {row['top5']:.2f} % | {row['loss']:.4f} |")
    n = next(iter(scores.values()))["n"]
    source = f"\nSource: `summary.json` of the run, {n:,} validation images, measured by the trainer at its end"
    teacher = (trained.summary or {}).get("teacher")
    return "\n".join(lines) + source + (f"; its teacher: top-1 {teacher['top1']:.2f} %." if teacher else ".")
