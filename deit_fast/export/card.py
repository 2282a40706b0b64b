"""The model card of an export: what the model is, how it was trained and on what, its scores, how to load it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import timm
import torch

from ..config import Config, flag
from ..model import VisionTransformer
from ..names import HEADS, SCORE_NAMES
from ..recipes.named import RECIPES, recipe
from ..weights.exported import knows_classes
from ..weights.prediction import Trained

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
_PATHS = ("data", "teacher", "weights")  # written without the folders above them
_NAMED_CLASSES = 20  # listed at most

# timm's scripts read it; without it they sort class folders by their numbers and without case, and we by code point.
CLASS_MAP = "class_map.txt"
_VALIDATION = f"""
timm's own scripts sort class folders in another order (1, 2, 10; Apple, banana, Cherry) unless they are given this one:

```bash
python validate.py --data-dir DATA --split val --model local-dir:. --pretrained --class-map {CLASS_MAP}
```
"""

_LOADING = {
    "timm": """import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    probabilities = model(transform(Image.open("image.jpg").convert("RGB"))[None]).softmax(-1)[0]
print(model.pretrained_cfg["label_names"][probabilities.argmax()])""",
    "hf": """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(".").eval()
processor = AutoImageProcessor.from_pretrained(".")
with torch.no_grad():
    logits = model(**processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")).logits
print(model.config.id2label[logits.argmax().item()])""",
    "onnx": """import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
size, image = facts["image_size"], Image.open("image.jpg").convert("RGB")
scale = int(size / facts["crop_ratio"]) / min(image.size)  # the shorter side, then the central crop
image = image.resize([round(scale * side) for side in image.size], Image.Resampling[facts["interpolation"].upper()])
left, top = ((side - size) // 2 for side in image.size)
pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
images = ((pixels - np.float32(facts["mean"])) / np.float32(facts["std"])).transpose(2, 0, 1)[None]
(logits,) = session.run(["logits"], {"images": images})
print(facts["classes"][logits[0].argmax()])""",
}


def model_card(trained: Trained, to: str, library: str, difference: float) -> str:
    """Markdown with the front matter of the Hugging Face hub.

    `library` checked the export and found logits that differ by at most `difference`.
    """
    front = {"timm": "timm", "hf": "transformers", "onnx": "onnx"}[to]
    kind = "DeiT" if isinstance(trained.model, VisionTransformer) else type(trained.model).__name__
    name = trained.config.model if trained.config else trained.release or kind
    path, comma, rest = trained.source.partition(",")
    source = Path(path).name + comma + rest
    policy = trained.policy
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (policy.mean, policy.std))
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

{_metrics(trained)}

## How to load it

In this folder, with an `image.jpg`:

```python
{_LOADING[to]}
```
{_VALIDATION if to == "timm" and knows_classes(trained) else ""}
Images are RGB; the shorter side is resized to {int(policy.size / policy.crop_ratio)} pixels ({policy.interpolation},
antialiased), the central {policy.size} x {policy.size} pixels are kept and normalised with mean ({mean})
and std ({std}).

## Where it comes from

Exported by deit-fast from `{source}` with torch {torch.__version__.split("+")[0]} and timm {timm.__version__}.
After the export, {library} loaded these files and gave the same logits within {difference:.1e}, for random images in
batches of 1 and 5.
"""


def _model(trained: Trained) -> str:
    model = trained.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    about = f"{parameters:,} parameters, {len(trained.classes)} classes, images of {trained.policy.size} pixels."
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
    defaults = (recipe(config.recipe) if config.recipe in RECIPES else Config()).identity()
    command = ["python -m deit_fast.train", "--recipe", config.recipe]
    for name, value in config.identity().items():
        if name == "recipe" or value == defaults[name]:
            continue
        value = Path(value).name if name in _PATHS else value
        if isinstance(value, bool):
            command.append(flag(name if value else f"no_{name}"))
        else:
            values = value if isinstance(value, list | tuple) else [value]
            command += [flag(name), *(shlex.quote(str(item)) for item in values)]
    names = {name: Path(getattr(config, name)).name for name in _PATHS}
    whole = json.dumps(dataclasses.asdict(config) | {"out": ""} | names, indent=2)
    return (
        f"```\n{' '.join(command)}\n```\n\n<details><summary>The whole configuration</summary>\n\n"
        f"```json\n{whole}\n```\n\n</details>"
    )


def _data(trained: Trained) -> str:
    data, count = trained.data, len(trained.classes)
    listed = ", ".join(trained.classes[:_NAMED_CLASSES]) + (", …" if count > _NAMED_CLASSES else "")
    if data is None:
        return f"Not recorded with these weights. Its {count} classes: {listed}."
    source = Path(trained.config.data).name
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
    teacher = trained.summary.get("teacher")
    return "\n".join(lines) + source + (f"; its teacher: top-1 {teacher['top1']:.2f} %." if teacher else ".")
