"""A trained model, from wherever it lies, with its classes and the way its images are prepared.

trained = deit_fast.load("runs/flowers")                        a run: its moving average where that scored better
trained = deit_fast.load("deit_small_distilled_patch16_224-649709d9.pth")        weights of the official code
trained = deit_fast.load("exported/")                           a folder of ours, of timm or of Hugging Face
trained = deit_fast.load("deit_tiny_patch16_224")               a name: fetched from the Hugging Face hub

logits = trained.model(images)              an nn.Module in evaluation mode
for row in trained.predict(["cat.jpg"]): print(row.path, row.top[0])
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import Tensor, nn

from deit_kernels.augment import ImageBatch, Policy, apply, sample_plan
from deit_kernels.augment.plan import ratio_limit
from deit_kernels.augment.policy import FILTERS

from ..config import Config
from ..data import BadImage, decode
from ..data.decode import Part
from ..data.sources.folder import read_file
from ..files import read_json
from ..model import CONFIGS, VisionTransformer, ViTConfig
from ..names import did_you_mean
from ..run.checkpoint import newest
from ..run.folder import chosen_weights, read_summary
from .build import classifier, normalisation, timm_model
from .pretrained import RELEASES, SUFFIXES, load_pretrained, read_weights


class Prediction(NamedTuple):
    """What a model says of one image.

    Attributes:
        path: of the image.
        top: (class name, label, probability) of the likeliest classes, the likeliest first.
    """

    path: str
    top: list[tuple[str, int, float]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model to be used.

    Attributes:
        model: in evaluation mode; images normalised by `policy` (B, 3, S, S) -> logits (B, C).
        classes: names, index = label.
        policy: how an image is resized, cropped and normalised.
        source: where it comes from, in words.
        config, summary, data: of the run it comes from (`config.json`, `summary.json`, `data.json`), else None.
        scores: of these very weights, by head, as the run measured them; None for a run's earlier checkpoints.
        release: the official model whose released file this is, by its sha256, else "".
    """

    model: nn.Module
    classes: list[str]
    policy: Policy
    source: str
    config: Config | None = None
    summary: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    scores: dict[str, Any] | None = None
    release: str = ""

    def prepare(self, images: list[NDArray[np.uint8]]) -> Tensor:
        """Decoded images, uint8 (H, W, 3) of any sizes -> float32 (B, 3, S, S), the pixels that evaluation sees."""
        batch = ImageBatch.from_images(images)
        sizes = {"height": batch.height.numpy(), "width": batch.width.numpy()}
        plan = sample_plan(self.policy, seed=0, epoch=0, sample=np.arange(len(images)), copy=0, **sizes)
        return apply(batch, plan)

    def predict(
        self, paths: Iterable[str | Path], top: int = 5, batch_size: int = 32
    ) -> Iterator[Prediction | tuple[str, BadImage]]:
        """Predictions in the order of `paths`; a file that holds no image comes as (path, what is wrong with it)."""
        device, longest = next(self.model.parameters()).device, ratio_limit(self.policy)
        paths = list(paths)
        for start in range(0, len(paths), batch_size):
            chunk = [(str(path), _read(path, longest)) for path in paths[start : start + batch_size]]
            good = [image for _, image in chunk if not isinstance(image, BadImage)]
            if good:
                with torch.inference_mode():
                    probabilities = self.model(self.prepare(good).to(device)).float().softmax(-1)
                ranked = zip(*(part.tolist() for part in probabilities.topk(min(top, len(self.classes)))), strict=True)
            for path, image in chunk:
                if isinstance(image, BadImage):
                    yield path, image
                else:
                    values, labels = next(ranked)
                    named = zip(labels, values, strict=True)
                    yield Prediction(path, [(self.classes[label], label, value) for label, value in named])


def _read(path: str | Path, longest: float = math.inf) -> NDArray[np.uint8] | BadImage:
    try:
        pixels = decode(read_file(str(path)))
        Part.whole(pixels).refuse_elongated(longest)
        return pixels
    except BadImage as error:
        return error
    except OSError as error:
        return BadImage(f"it cannot be read ({error.strerror or error})")


def load(source: str | Path, *, architecture: str = "", **sizes: Any) -> Trained:
    """A trained model by path or name.

    Args:
        source: a run folder; a weights file (official, timm, Hugging Face, ours); a folder that `deit_fast.export`,
            timm or transformers wrote; one of the eight DeiT names, or a timm name, whose weights are then fetched.
        architecture: timm's name of what a weights file fits, where it is not a DeiT.
        sizes: what the tensors of a weights file do not tell, such as heads=2.

    Raises:
        ValueError: there is no such file, folder or name (the nearest are offered), its contents do not fit, or what it
            is was given for something that says so itself.
    """
    path = Path(source).expanduser()
    run = run_of(path) if path.is_file() else None
    if path.is_file() and run is None:
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} is no weights file: its name ends in {', '.join(SUFFIXES)}, or it is a folder")
        return _file(path, architecture, sizes)
    if architecture or sizes:
        names = [*(["architecture"] if architecture else []), *sizes]
        given = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise ValueError(f"{source} says itself what it holds: leave out {given}, which is for a weights file alone")
    if run is not None:
        return run_model(run, weights=path)
    return _folder(path) if path.is_dir() else _name(str(source))


def run_of(weights: Path) -> Path | None:
    """The run that a file is a checkpoint's of: checkpoints/best_….safetensors, checkpoints/step_…/ema.safetensors."""
    for run in weights.resolve().parents[1:3]:
        if (run / "checkpoints").is_dir() and (run / "config.json").is_file():
            return run
    return None


def _folder(path: Path) -> Trained:
    if (path / "data.json").is_file() and (path / "config.json").is_file():
        return run_model(path)
    files = [file for suffix in SUFFIXES for file in sorted(path.glob(f"*{suffix}"))]
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if files and config.get("model_type") in ("deit", "vit"):
        return _huggingface(path, files[0], config)
    if files and "architecture" in config:
        return _timm_folder(path, files[0], config)
    raise ValueError(
        f"{path} holds no model: expected a run (config.json, data.json, checkpoints/), or weights with the "
        f"config.json that deit_fast.export, timm or transformers wrote; type the weights file itself if there is one"
    )


def run_model(run: Path, *, weights: Path | None = None, image_size: int = 0) -> Trained:
    """The model of a run, finished or not.

    Args:
        weights: a file of one of its checkpoints; None: of the newest, the moving average where that scored better.
        image_size: build it for this size instead of its own; position embeddings are resized.

    Raises:
        ValueError: the folder holds no checkpoint.
    """
    config, data = Config.from_json(run / "config.json"), read_json(run / "data.json")
    config = dataclasses.replace(config, image_size=image_size or config.image_size)
    summary = read_summary(run) if (run / "summary.json").is_file() else None
    weights = weights or chosen_weights(run)
    model = classifier(dataclasses.replace(config, weights=""), len(data["classes"]))
    load_pretrained(model, weights)
    kinds = {"ema": "moving average", "model": "last weights", "best": "best weights"}
    which = kinds.get(weights.name.split(".")[0].split("_")[0], weights.name)
    step = re.search(r"\d+", weights.stem) or re.search(r"\d+", weights.parent.name)
    when = f" at step {int(step[0]):,}" if step else ""
    unfinished = "" if summary else ", of an unfinished run"
    # The summary is about the end of the run: an earlier step or the best one has scores of its own, not kept there.
    last, part = newest(run), {"model": "student", "ema": "ema"}.get(weights.stem, "")
    measured = summary is not None and last is not None and weights.resolve().parent == last.resolve()
    return Trained(
        model.eval(),
        data["classes"],
        config.evaluation_policy(normalisation(model)),
        f"{run}, {which}{when}{unfinished}",
        config,
        summary,
        data,
        (summary or {}).get(part) if measured else None,
    )


def _file(path: Path, architecture: str, sizes: dict[str, Any]) -> Trained:
    weights = read_weights(path)
    if architecture and architecture not in CONFIGS:
        model = timm_model(architecture, num_classes=rows_of_last_matrix(path, weights), **sizes)
        load_pretrained(model, weights)
        return Trained(model.eval(), class_names(model.num_classes), _timm_policy(model), f"{path}, {architecture}")
    release = _release(path)
    model = VisionTransformer(_sizes(path, weights, architecture, sizes))
    load_pretrained(model, weights)
    return _ours(model, class_names(model.config.classes), f"{path}", release=release)


def _ours(model: VisionTransformer, classes: list[str], source: str, **others: Any) -> Trained:
    policy = Policy.eval(model.config.image_size, 0.875)  # at 384 pixels too: int(256 / 224 · 384)
    return Trained(model.eval(), classes, policy, source, **others)


def _sizes(path: Path, weights: Mapping[str, Tensor], architecture: str, given: dict[str, Any]) -> ViTConfig:
    """The sizes of a DeiT, read off its tensors."""
    try:
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        tokens = weights["pos_embed"].shape[1]
        hidden, classes = weights["blocks.0.mlp.fc1.weight"].shape[0], weights["head.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} holds no DeiT ({error} is missing): type --architecture NAME, timm's name of what it fits"
        ) from error
    known = CONFIGS.get(architecture) or next((config for config in CONFIGS.values() if config.width == width), None)
    heads = given.get("heads") or (known.heads if known is not None else 0)
    if not heads:
        raise ValueError(
            f"the tensors of {path} do not tell its number of attention heads, and {width} channels are no official "
            f"model's: type --heads N, or load the run folder or the exported folder instead of the file alone"
        )
    distilled = "dist_token" in weights
    return ViTConfig(
        image_size=math.isqrt(tokens - 1 - distilled) * patch,
        patch_size=patch,
        width=width,
        depth=1 + max(int(found[1]) for key in weights if (found := re.match(r"blocks\.(\d+)\.", key))),
        heads=heads,
        classes=classes,
        distilled=distilled,
        mlp_ratio=hidden / width,
    )


def _huggingface(path: Path, file: Path, config: dict[str, Any]) -> Trained:
    weights = read_weights(file)
    if "head.weight" not in weights:
        raise ValueError(f"{path} holds a {config['model_type']} without a classifier: it is a start for training only")
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise ValueError(f"{path} computes with {activation}, ours with gelu: use it by transformers")
    model = VisionTransformer(_sizes(file, weights, "", {"heads": config["num_attention_heads"]}))
    load_pretrained(model, weights)
    names = {int(label): name for label, name in config.get("id2label", {}).items()}
    classes = [names.get(label, f"class {label}") for label in range(model.config.classes)]
    trained = _ours(model, classes, f"{path}, Hugging Face's {config['model_type']}")
    processor = path / "preprocessor_config.json"
    if not processor.is_file():
        return trained
    settings = read_json(processor)
    policy = dataclasses.replace(
        trained.policy,
        mean=tuple(settings.get("image_mean", trained.policy.mean)),
        std=tuple(settings.get("image_std", trained.policy.std)),
        interpolation={2: "bilinear", 3: "bicubic"}.get(settings.get("resample", 3), "bicubic"),  # Pillow's numbers
        crop_ratio=_crop_ratio(settings, model.config.image_size),
    )
    return dataclasses.replace(trained, policy=policy)


def _crop_ratio(settings: dict[str, Any], size: int) -> float:
    """Crop side over resized side of an image processor; one that does not crop sees the whole image."""
    resized = settings.get("size", size)
    if isinstance(resized, Mapping):
        resized = resized.get("shortest_edge", resized.get("height", size))
    if not settings.get("do_center_crop", False) or resized <= size:
        return 1.0
    # Policies resize to int(size / ratio), which a quotient that is rounded up would make one pixel less.
    return size / resized if int(size / (size / resized)) == resized else size / (resized + 0.5)


def _timm_folder(path: Path, file: Path, config: dict[str, Any]) -> Trained:
    labels = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    source = f"{path}, timm's {config['architecture']}"
    model = timm_model(f"local-dir:{path}", pretrained=True)
    classes, policy = list(labels or class_names(model.num_classes)), _timm_policy(model)
    if config["architecture"] not in CONFIGS:
        return Trained(model.eval(), classes, policy, source)
    heads = model.blocks[0].attn.num_heads
    weights = read_weights(file)
    ours = VisionTransformer(_sizes(file, weights, "", {"heads": heads}))
    load_pretrained(ours, weights)
    return Trained(ours.eval(), classes, policy, source)


def _timm_policy(model: nn.Module) -> Policy:
    """timm's evaluation of one of its models."""
    wanted = resolve_model_data_config(model)
    policy = Policy.eval(wanted["input_size"][-1], min(1.0, wanted["crop_pct"]))
    interpolation = wanted["interpolation"] if wanted["interpolation"] in FILTERS else "bicubic"
    return dataclasses.replace(
        policy, mean=tuple(wanted["mean"]), std=tuple(wanted["std"]), interpolation=interpolation
    )


def _name(name: str) -> Trained:
    base = name.split(".")[0]
    if name in CONFIGS or timm.is_model(base) or name.startswith(("hf_hub:", "hf-hub:")):
        model = timm_model(name, pretrained=True, then="type its path instead of the name")
        source = f"{name}, timm's pretrained weights"
        if base in CONFIGS:
            ours = VisionTransformer(dataclasses.replace(CONFIGS[base], classes=model.num_classes))
            load_pretrained(ours, model.state_dict())
            return _ours(ours, class_names(model.num_classes), source)
        return Trained(model.eval(), class_names(model.num_classes), _timm_policy(model), source)
    if "/" in name or Path(name).suffix in SUFFIXES:
        raise ValueError(f"there is no file or folder {name}: check the path, or type a model's name")
    near = did_you_mean(name, dict.fromkeys([*CONFIGS, *timm.list_models()]), list(CONFIGS)[:3])
    raise ValueError(f"unknown model {name!r}, neither a path here nor a name: {near}")


def class_names(count: int) -> list[str]:
    """ImageNet's names for 1000 classes, else "class 0", "class 1", …: what weights alone can tell."""
    if count != 1000:
        return [f"class {label}" for label in range(count)]
    info = ImageNetInfo()
    return [info.index_to_description(label) for label in range(count)]


def rows_of_last_matrix(path: Path, weights: Mapping[str, Tensor]) -> int:
    """The number of classes of a weights file, whose last matrix is its classifier."""
    matrices = [value for value in weights.values() if value.ndim == 2]
    if not matrices:
        raise ValueError(f"{path} holds no classifier: none of its {len(weights)} tensors is a matrix")
    return matrices[-1].shape[0]


def _release(path: Path) -> str:
    """The official model whose file this is, byte for byte; "" for any other."""
    for name, prefix in RELEASES.items():
        if path.name == f"{name}-{prefix}.pth":
            return name if hashlib.sha256(path.read_bytes()).hexdigest().startswith(prefix) else ""
    return ""
