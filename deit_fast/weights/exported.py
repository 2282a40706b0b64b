"""A model from a weights file, or from a folder that deit-fast export, timm or transformers wrote."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, resolve_model_data_config
from timm.utils import natural_key
from torch import Tensor, nn

from deit_kernels.augment.policy import FILTERS

from ..config import OFFICIAL_CROP_RATIO, Preprocessing
from ..files import read_json
from ..model import CONFIGS, VisionTransformer, ViTConfig
from .build import built_for, timm_model
from .prediction import Trained
from .pretrained import (
    RELEASES,
    SUFFIXES,
    WeightsFile,
    has_layer_scale,
    load_pretrained,
    read_weights,
    read_weights_file,
    without_zero_positions,
)

EXIF = "exif_orientation"  # what we add to the files of timm (config.json) and transformers (preprocessor_config.json)


def from_file(path: Path, architecture: str, sizes: dict[str, Any], timm_size: int) -> Trained:
    file = read_weights_file(path)
    if timm.is_model(file.architecture):
        if sizes or (architecture and not timm_size and architecture != file.architecture):
            raise ValueError(
                f"{path} already tells that it is a {file.architecture} of timm: leave out --architecture and --heads"
            )
        try:
            return _of_timms_training(path, file, timm_size)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"the arguments in {path} are not those of timm's train.py ({error}): type --architecture NAME with a "
                f"file of its weights alone"
            ) from error
    model = from_tensors(file.weights, str(path), architecture, sizes, timm_size)
    # read_weights_file has compared the content of a file of such a name with the release.
    release = next((name for name, digest in RELEASES.items() if path.name == f"{name}-{digest}.pth"), "")
    source = str(path) if isinstance(model, VisionTransformer) else f"{path}, {architecture}"
    return ready(model, source, release=release)


def from_tensors(
    weights: Mapping[str, Tensor], source: str, architecture: str, sizes: dict[str, Any], timm_size: int
) -> nn.Module:
    """The model that weights fit: of `architecture`, else a DeiT, whose sizes are read off its tensors.

    `sizes` are those that the tensors do not tell, such as {"heads": 2}. With a `timm_size`, timm builds the
    architecture, DeiTs too, for images of this size.
    """
    if architecture and (timm_size or architecture not in CONFIGS):
        options = {"num_classes": _classes(weights, source), **built_for(architecture, timm_size), **sizes}
        model = timm_model(architecture, **options)
    else:
        model = VisionTransformer(_sizes(source, without_zero_positions(weights), architecture, sizes))
    load_pretrained(model, weights)
    return model


# Arguments of timm.create_model that load other weights, which older timm unpickles.
_LOADS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


def _of_timms_training(path: Path, file: WeightsFile, timm_size: int) -> Trained:
    """The model of a checkpoint of timm's train.py, built and shown its images as the arguments there say."""
    arguments, name, weights = file.arguments, file.architecture, file.weights
    given = arguments.get("model_kwargs") or {}
    own = {key: value for key, value in given.items() if key not in _LOADS}
    own |= {"global_pool": arguments["gp"]} if arguments.get("gp") else {}
    sides = (timm_size, own.get("img_size"), arguments.get("img_size"), (arguments.get("input_size") or [0])[-1])
    classes = arguments.get("num_classes") or _classes(weights, str(path))
    options = {"num_classes": classes, **own}
    model: Any = timm_model(name, **{**options, **built_for(name, next(filter(None, sides), 0))})
    if not timm_size and "pos_embed" in weights and model.pos_embed.shape != weights["pos_embed"].shape:
        model = timm_model(name, **options)  # it sees images of other sizes than its own
    load_pretrained(model, weights)
    model.pretrained_cfg = {**model.pretrained_cfg, **resolve_model_data_config(model, dict(arguments))}
    names, timm_classes = [], ""
    if arguments.get("dataset") == "":  # class folders, not a data set of another library
        names = _class_map(arguments)
        timm_classes = "mapped" if len(names) == classes else "" if arguments.get("class_map") else "sorted"
    source = f"{path}, timm's {name}{', moving average' if file.average else ''}"
    trained = ready(model, source, names if timm_classes == "mapped" else (), timm_classes=timm_classes)
    ours = name.split(".")[0] in CONFIGS and not timm_size and not own
    return dataclasses.replace(trained, model=ours_of_timm(model)) if ours else trained


def _class_map(arguments: Mapping[str, Any]) -> list[str]:
    """The class names in the class map of a training of timm, index = label; empty if it had none or it is not here."""
    file, root = arguments.get("class_map") or "", Path(arguments.get("data_dir") or arguments.get("data") or ".")
    for place in (Path(file), root / str(arguments.get("train_split")) / file):
        if place.suffix == ".txt" and place.is_file():
            return list(map(str.strip, place.read_text(errors="backslashreplace").removesuffix("\n").split("\n")))
    return []


def in_timms_order(classes: Sequence[str]) -> list[str]:
    """Class folders as timm sorts them: by the numbers in their names, and without case."""
    return sorted(classes, key=natural_key)


def from_folder(path: Path) -> Trained:
    """A folder with weights and the config.json of timm or transformers."""
    weights_file(path)  # refuses a folder without
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("model_type") in ("deit", "vit"):
        return _huggingface(path, config)
    if "architecture" not in config:
        raise _no_model(path)
    labels = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names") or ()
    model = timm_model(f"local-dir:{path}", pretrained=True)
    trained = ready(model, f"{path}, timm's {config['architecture']}", labels)
    preprocessing = dataclasses.replace(trained.preprocessing, exif_orientation=config.get(EXIF, False))
    model = ours_of_timm(model) if config["architecture"] in CONFIGS else model
    return dataclasses.replace(trained, model=model, preprocessing=preprocessing)


def weights_file(path: Path) -> Path:
    names = sorted(os.listdir(path))  # Path.glob finds nothing in a folder that may not be read
    # Not .pth.tar: of the many checkpoints in a folder of timm's train.py, none is the folder's model.
    files = [path / name for suffix in SUFFIXES for name in names if os.path.splitext(name)[1] == suffix]
    if not files:
        raise _no_model(path)
    return files[0]


def view_of_folder(path: Path) -> tuple[int | None, float | None]:
    """(side in pixels of the images of the model in a folder, its crop ratio); None what its config.json lacks."""
    config = read_json(path / "config.json")
    cfg = config.get("pretrained_cfg") or config
    return config.get("image_size") or cfg.get("input_size", [None])[-1], cfg.get("crop_pct")


def _no_model(path: Path) -> ValueError:
    return ValueError(
        f"{path} holds no model: expected a run (config.json, data.json, checkpoints/), or weights with the "
        f"config.json that deit-fast export, timm or transformers wrote; type the weights file itself if there is one"
    )


def square_side(model: VisionTransformer, source: str) -> int:
    """Side of the images of a model, pixels; ValueError if they are not square: no command prepares such images."""
    side = model.config.image_size
    if not isinstance(side, int):
        raise ValueError(
            f"{source} sees images of {side[0]} x {side[1]} pixels: build it for square ones, image_size=224"
        )
    return side


def ready(model: Any, source: str, classes: Sequence[str] = (), **others: Any) -> Trained:
    """A DeiT, which sees images as in the official code's evaluation, or a model of timm, as in timm's."""
    if isinstance(model, VisionTransformer):
        # The official code evaluates DeiT III with --eval-crop-ratio 1.0.
        crop_ratio = 1.0 if model.config.layer_scale else OFFICIAL_CROP_RATIO
        count, preprocessing = model.config.classes, Preprocessing(square_side(model, source), crop_ratio)
    else:
        count, wanted = model.num_classes, resolve_model_data_config(model)
        preprocessing = Preprocessing(
            wanted["input_size"][-1],
            min(1.0, wanted["crop_pct"]),
            wanted["interpolation"] if wanted["interpolation"] in FILTERS else "bicubic",
            tuple(wanted["mean"]),
            tuple(wanted["std"]),
        )
    return Trained(model.eval(), list(classes) or class_names(count), preprocessing, source, **others)


def class_names(count: int) -> list[str]:
    """ImageNet's names for 1000 classes, else "class 0", "class 1", …: weights alone tell only the number."""
    return list(ImageNetInfo().label_descriptions()) if count == 1000 else [f"class {label}" for label in range(count)]


def knows_classes(trained: Trained) -> bool:
    """Whether its class names are its data's: weights alone have none, and ImageNet's are spelled in many ways."""
    count = len(trained.classes)
    return trained.data is not None or (count != 1000 and trained.classes != class_names(count))


def _classes(weights: Mapping[str, Tensor], source: str) -> int:
    """How many there are: the last matrix of a weights file is its classifier."""
    matrices = [value for value in weights.values() if value.ndim == 2]
    if not matrices:
        raise ValueError(f"{source} holds no classifier: none of its {len(weights)} tensors is a matrix")
    return len(matrices[-1])


def _sizes(source: str, weights: Mapping[str, Tensor], architecture: str, given: dict[str, Any]) -> ViTConfig:
    try:
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        tokens = weights["pos_embed"].shape[1]
        hidden, classes = weights["blocks.0.mlp.fc1.weight"].shape[0], weights["head.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{source} holds no DeiT ({error} is missing): type --architecture NAME, timm's name of what it fits"
        ) from error
    known = CONFIGS.get(architecture) or next((config for config in CONFIGS.values() if config.width == width), None)
    heads = given.get("heads") or (known.heads if known is not None else 0)
    if not heads:
        raise ValueError(
            f"the tensors of {source} do not tell its number of attention heads, and {width} channels are no official "
            f"model's: type --heads N, --architecture NAME for a model of timm, or its run folder or exported folder "
            f"instead of the file"
        )
    distilled, layer_scale = "dist_token" in weights, has_layer_scale(weights)
    # No two squares are 1 or 2 apart, so the number of positions tells whether the class token has one.
    prefix_positions = not (layer_scale and math.isqrt(tokens) ** 2 == tokens)
    of_deit3 = CONFIGS["deit3_small_patch16_224"]
    return ViTConfig(
        image_size=math.isqrt(tokens - (1 + distilled) * prefix_positions) * patch,
        patch_size=patch,
        width=width,
        depth=1 + max(int(found[1]) for key in weights if (found := re.match(r"blocks\.(\d+)\.", key))),
        heads=heads,
        classes=classes,
        distilled=distilled,
        mlp_ratio=hidden / width,
        layer_norm_eps=given.get("layer_norm_eps", ViTConfig.layer_norm_eps),
        layer_scale=of_deit3.layer_scale if layer_scale else 0.0,
        prefix_positions=prefix_positions,
        constant_drop_path=layer_scale,
    )


def _huggingface(path: Path, config: dict[str, Any]) -> Trained:
    file = weights_file(path)
    weights = read_weights(file)
    if "head.weight" not in weights:
        raise ValueError(f"{path} holds a {config['model_type']} without a classifier: it is a start for training only")
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise ValueError(f"{path} computes with {activation}, ours with gelu: use it by transformers")
    sizes = {"heads": config["num_attention_heads"], "layer_norm_eps": config.get("layer_norm_eps", 1e-12)}  # theirs
    model = from_tensors(weights, str(file), "", sizes, 0)
    names = {int(label): name for label, name in config.get("id2label", {}).items()}
    classes = [names.get(label, f"class {label}") for label in range(len(weights["head.weight"]))]
    trained = ready(model, f"{path}, Hugging Face's {config['model_type']}", classes)
    processor = path / "preprocessor_config.json"
    if not processor.is_file():
        return trained
    settings = read_json(processor)
    preprocessing = dataclasses.replace(
        trained.preprocessing,
        crop_ratio=_crop_ratio(settings, trained.preprocessing.image_size),
        interpolation="bilinear" if settings.get("resample") == 2 else "bicubic",  # Pillow's number
        mean=tuple(settings.get("image_mean", trained.preprocessing.mean)),
        std=tuple(settings.get("image_std", trained.preprocessing.std)),
        exif_orientation=settings.get(EXIF, False),
    )
    return dataclasses.replace(trained, preprocessing=preprocessing)


def _crop_ratio(settings: dict[str, Any], size: int) -> float:
    """Crop side over resized side of an image processor; one that does not crop sees the whole image."""
    resized = settings.get("size", size)
    if isinstance(resized, Mapping):
        resized = resized.get("shortest_edge", resized.get("height", size))
    if not settings.get("do_center_crop", False) or resized <= size:
        return 1.0
    # A policy resizes to int(size / ratio): one pixel too few where size / resized was rounded up, hence the half.
    return size / resized if int(size / (size / resized)) == resized else size / (resized + 0.5)


def ours_of_timm(model: Any) -> nn.Module:
    """A DeiT of timm as one of ours, in evaluation mode."""
    return from_tensors(model.state_dict(), "", "", {"heads": model.blocks[0].attn.num_heads}, 0).eval()
