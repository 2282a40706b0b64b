"""A trained model, from wherever it lies, with its classes and the way its images are prepared.

trained = deit_fast.load("runs/flowers")                        a run: its moving average where that scored better
trained = deit_fast.load("runs/flowers/checkpoints/best_00000300.safetensors")   one of its checkpoints
trained = deit_fast.load("exported/")                           a folder of ours, of timm or of Hugging Face
trained = deit_fast.load("deit_small_distilled_patch16_224-649709d9.pth")        weights of the official code
trained = deit_fast.load("output/model_best.pth.tar")           a checkpoint of timm's train.py
trained = deit_fast.load("deit_tiny_patch16_224")               a name: fetched from the Hugging Face hub
trained = deit_fast.load("my_models:build")                     a function that returns a model, or weights

logits = trained.model(images)              an nn.Module in evaluation mode
for row in trained.predict(["cat.jpg"]): print(row.path, row.top[0])

--weights, --teacher, evaluate, predict and export name a model in the same way: `resolve` tells the six kinds apart.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
from torch import Tensor, nn

from ..config import Config, ModelConfig, Preprocessing
from ..files import read_json
from ..model import CONFIGS, VisionTransformer
from ..names import flag
from ..run.checkpoint import newest
from ..run.folder import chosen_weights, read_summary
from . import exported
from .build import HUBS, built_for, check_forward, nearest_models, normalisation, timm_model, untrained
from .prediction import Trained
from .pretrained import SUFFIXES, load_pretrained, read_weights

# What already tells the sizes of its model.
_KNOWING = {"run": "a run", "checkpoint": "a checkpoint of a run", "exported": "an exported folder", "name": "a name"}


class Named(NamedTuple):
    kind: Literal["run", "checkpoint", "exported", "file", "name", "function"]
    spec: str  # as it was typed
    flag: str  # where it was typed, such as "--teacher"; "" for an argument of its own
    path: Path  # of a run, a checkpoint's file, an exported folder or a weights file
    run: Path | None = None  # the folder of a run, or of a checkpoint's run

    def __str__(self) -> str:
        return f"{self.flag} {self.spec}".strip()

    def files(self) -> list[Path]:
        """The files that decide its weights: of a run those of the newest checkpoint, the last weights first; of a
        function its module; of a name none. A run without a checkpoint and a module that is not here have none either.
        """
        if self.kind == "run":
            step = newest(self.path)
            names = ("model.safetensors", "ema.safetensors")
            return [] if step is None else [step / name for name in names if (step / name).is_file()]
        if self.kind == "exported":
            return [exported.weights_file(self.path)]
        if self.kind == "function":
            try:
                found = importlib.util.find_spec(self.spec.partition(":")[0])
            except (ImportError, ValueError):  # a package above it is not here; no name
                found = None
            return [Path(found.origin)] if found is not None and found.origin is not None else []
        return [] if self.kind == "name" else [self.path]


def resolve(spec: str | Path, flag: str = "") -> Named:
    """What a spec names, by its form and by what is on disk; nothing is opened, fetched or imported."""
    spec = str(spec)
    path = Path(spec.removeprefix("local-dir:")).expanduser()
    given = f" for {flag}" if flag else ""
    if path.is_dir():
        if (path / "data.json").is_file() or (path / "checkpoints").is_dir():
            return Named("run", spec, flag, path, path)
        return Named("exported", spec, flag, path)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(
                f"{path} is not a weights file, whose name ends in {', '.join(SUFFIXES)}: type one, or the folder"
            )
        # checkpoints/best_….safetensors, checkpoints/step_…/ema.safetensors
        for run in path.resolve().parents[1:3]:
            if (run / "checkpoints").is_dir() and (run / "config.json").is_file():
                return Named("checkpoint", spec, flag, path, run)
        return Named("file", spec, flag, path)
    if "://" in spec:
        raise ValueError(f"{spec} is an address{given}: download the file, and type its path")
    if spec in CONFIGS or timm.is_model(spec) or spec.startswith(("hf_hub:", "hf-hub:")):
        return Named("name", spec, flag, path)
    if "/" in spec or spec.endswith(SUFFIXES) or spec.startswith(HUBS):
        raise ValueError(f"there is no file or folder {path}{given}: check the path, or type a model's name")
    if ":" in spec:
        return Named("function", spec, flag, path)
    near = nearest_models(spec)
    raise ValueError(f"unknown model {spec!r}{given}, neither a path here nor a name: {near}")


def load(source: str | Path, *, architecture: str = "", image_size: int = 0, **sizes: Any) -> Trained:
    """A trained model by path or name.

    Args:
        source: a run folder; a file of its checkpoints; a folder that `deit-fast export`, timm or transformers wrote;
            a weights file (official, timm, Hugging Face, ours), or a checkpoint of timm's train.py; a model of
            ours by its name, or one of timm or of the Hugging Face hub, whose weights are then fetched; module:function
            that returns a model, or weights.
        architecture: timm's name of what weights fit, where it is not a DeiT.
        image_size: of other images than it was trained on, pixels; position embeddings are resized.
        sizes: what the tensors of a weights file do not tell, such as heads=2.

    Raises:
        ValueError: there is no such file, folder or name (the nearest are offered), its contents do not fit, or sizes
            are given for what already tells them.
    """
    named, given = resolve(source), [*(["architecture"] if architecture else []), *sizes]
    if given and named.kind in _KNOWING:
        flags, it = " and ".join(map(flag, given)), "it" if len(given) == 1 else "them"
        raise ValueError(
            f"{flags} {'is' if it == 'it' else 'are'} only for a weights file; {_KNOWING[named.kind]} already tells "
            f"its sizes: leave {it} out"
        )
    return opened(named, architecture, image_size, sizes)


def opened(
    named: Named, architecture: str, image_size: int, sizes: dict[str, Any] | None = None, as_teacher: bool = False
) -> Trained:
    """The model that was named; `architecture` and `sizes` count for weights that do not tell them.

    As a teacher, weights and names are built by timm, DeiTs too, at `image_size`; a function's model stays as it is.
    """
    if named.run is not None:
        return run_model(named.run, weights=None if named.kind == "run" else named.path, image_size=image_size)
    if named.kind == "exported":
        return resized(exported.from_folder(named.path), image_size)
    timm_size = image_size if as_teacher else 0
    if named.kind == "function":
        return _called(named, architecture, image_size, sizes or {}, timm_size)
    if named.kind == "file":
        trained = exported.from_file(named.path, architecture, sizes or {}, timm_size)
    else:
        then = "" if as_teacher else "type its path instead of the name"
        model = timm_model(named.spec, pretrained=True, then=then, **built_for(named.spec, timm_size))
        if named.spec.split(".")[0] in CONFIGS and not timm_size:
            model = exported.ours_of_timm(model)
        trained = exported.ready(model, f"{named.spec}, timm's pretrained weights")
    return trained if as_teacher else resized(trained, image_size)


def run_model(run: Path, *, weights: Path | None = None, image_size: int = 0) -> Trained:
    """The model of a run, finished or not, for images of `image_size` (0: its own).

    `weights` is a file of one of its checkpoints; None: of the newest, the moving average where that scored better.
    """
    for name in ("config.json", "data.json"):
        if not (run / name).is_file():
            raise ValueError(f"{run} is not a whole run ({name} is missing): copy it again, or type another model")
    config, data = Config.from_json(run / "config.json"), read_json(run / "data.json")
    config = config.replace(image_size=image_size or config.data.image_size)
    summary = read_summary(run) if (run / "summary.json").is_file() else None
    weights = weights or chosen_weights(run)
    model = classifier(dataclasses.replace(config.model, weights=""), config.data.image_size, len(data["classes"]))
    load_pretrained(model, weights)
    kinds = {"ema": "moving average", "model": "last weights", "best": "best weights"}
    which = kinds.get(weights.name.split(".")[0].split("_")[0], weights.name)
    step = re.search(r"\d+", weights.stem) or re.search(r"\d+", weights.parent.name)
    when = f" at step {int(step[0]):,}" if step else ""
    unfinished = "" if summary else ", of an unfinished run"
    # summary.json holds the scores of the last step only, not those of an earlier or the best checkpoint.
    last, part = newest(run), {"model": "student", "ema": "ema"}.get(weights.stem, "")
    measured = summary is not None and last is not None and weights.resolve().parent == last.resolve()
    return Trained(
        model.eval(),
        data["classes"],
        config.data.preprocessing(normalisation(model)),
        f"{run}, {which}{when}{unfinished}",
        config,
        summary,
        data,
        (summary or {}).get(part) if measured else None,
    )


def _called(named: Named, architecture: str, image_size: int, sizes: dict[str, Any], timm_size: int) -> Trained:
    """What a function returns: a model as it is, or the one that its weights fit."""
    model = _result(named)
    if isinstance(model, Mapping):
        model = exported.from_tensors(model, named.spec, architecture, sizes, timm_size)
    if isinstance(model, VisionTransformer):
        side = exported.square_side(model, named.spec)
    else:
        side = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
    mean, std = normalisation(model)
    trained = Trained(model.eval(), [], Preprocessing(side, mean=mean, std=std), f"{named.spec} {architecture}".strip())
    trained = trained if timm_size else resized(trained, image_size)
    count = check_forward(trained.model, str(named), image_size or side)
    return dataclasses.replace(trained, classes=exported.class_names(count))


def _result(named: Named) -> nn.Module | dict[str, Tensor]:
    """The model or the weights that a function returns; instead of weights it may return the path of their file."""
    module, _, function = named.spec.partition(":")
    if not (module and function):
        raise ValueError(f"{named} is neither a file nor module:function: check the path")
    try:
        made: Any = getattr(importlib.import_module(module), function)
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"{named}: the module {module} cannot be imported ({error})") from error
    except AttributeError as error:
        raise ValueError(f"{named}: the module {module} has no function {function}") from error
    try:
        made = made()
    except Exception as error:  # the user's own code
        if module.startswith("deit_fast."):
            raise
        raise ValueError(f"{named} raised {type(error).__name__}: {error}") from error
    if isinstance(made, str | Path | Mapping):
        return read_weights(made)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{named} returned a {type(made).__name__}: it must return an nn.Module, or weights by name")
    return made


def resized(trained: Trained, image_size: int) -> Trained:
    """The same weights for images of another size; 0: as they are."""
    model = trained.model
    if not image_size or image_size == trained.policy.size:
        return trained
    if isinstance(model, VisionTransformer):
        model = VisionTransformer(dataclasses.replace(model.config, image_size=image_size), model.fusion).eval()
        load_pretrained(model, trained.model.state_dict())
    elif callable(resize := getattr(model, "set_input_size", None)):  # transformers of timm
        try:
            resize(img_size=(image_size, image_size))
        except AssertionError as error:
            raise ValueError(f"{trained.source} cannot see images of {image_size} pixels: {error}") from error
    preprocessing = dataclasses.replace(trained.preprocessing, image_size=image_size)
    return dataclasses.replace(trained, model=model, preprocessing=preprocessing)


def classifier(config: ModelConfig, image_size: int, classes: int) -> nn.Module:
    """The model that a configuration names, with its starting weights."""
    model = untrained(config, image_size, classes)
    if config.weights:
        load_pretrained(model, _starting_weights(config), config.pos_embed_resize)
    check_forward(model, config.model, image_size, classes)
    return model


def _starting_weights(config: ModelConfig) -> Path | Mapping[str, Tensor]:
    if config.weights == "timm":
        return timm_model(config.model, pretrained=True).state_dict()
    named = resolve(config.weights, "--weights")
    if named.kind == "run":
        return chosen_weights(named.path)
    if named.kind == "name":
        return timm_model(named.spec, pretrained=True).state_dict()
    if named.kind == "function":
        made = _result(named)
        return made.state_dict() if isinstance(made, nn.Module) else made
    return named.files()[0]
