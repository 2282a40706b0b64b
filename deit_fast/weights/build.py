"""Any image classifier by name: our DeiT models, timm's, and weights from a file, a package or a Python function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..config import Config
from ..model import CONFIGS, IMAGENET_NORMALISATION, Normalisation, VisionTransformer, create_model
from ..names import did_you_mean
from ..run.folder import chosen_weights
from .pretrained import SUFFIXES, load_pretrained


def classifier(config: Config, classes: int) -> nn.Module:
    """The model that a configuration names, with its starting weights.

    Raises:
        ValueError: unknown name, sizes that only our models take, weights that do not fit or cannot be fetched.
    """
    sizes = {name: getattr(config, name) for name in ("patch_size", "width", "depth", "heads") if getattr(config, name)}
    base, _, tag = config.model.partition(".")
    if config.model in CONFIGS:
        changes = {**sizes, "image_size": config.image_size, "classes": classes}
        drops = {"drop_path_rate": config.drop_path, "dropout": config.dropout}
        model: nn.Module = create_model(config.model, fusion=config.fusion, **changes, **drops)
    elif base in CONFIGS:
        raise ValueError(f"{config.model} is ours under its name without .{tag}: type --model {base} --weights timm")
    elif sizes and timm.is_model(config.model):
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sizes)
        raise ValueError(f"{named} only changes our own models ({', '.join(CONFIGS)}), not timm's {config.model}")
    else:
        options: dict[str, Any] = {"num_classes": classes}
        if timm.is_model(base) and timm.models.get_pretrained_cfg_value(base, "fixed_input_size"):
            options["img_size"] = config.image_size  # transformers of timm are built for one size
        if config.dropout:
            options["drop_rate"] = config.dropout
        model = timm_model(config.model, drop_path_rate=config.drop_path, **options)
    if config.weights:
        load_pretrained(model, _weights(config), config.pos_embed_resize)
    check_forward(model, config.model, config.image_size, classes)
    return model


def _weights(config: Config) -> str | Path | Mapping[str, Tensor]:
    """What --weights names: timm's weights of the model, a file, a run, a folder with a file, or a function's result.

    Raises:
        ValueError: none of these.
    """
    path = Path(config.weights)
    if config.weights == "timm":
        return timm_model(config.model, pretrained=True).state_dict()
    if path.suffix in SUFFIXES:
        return path
    if (path / "data.json").is_file():
        return chosen_weights(path)
    if path.is_dir():
        files = [file for suffix in SUFFIXES for file in sorted(path.glob(f"*{suffix}"))]
        if not files:
            raise ValueError(f"--weights {path} holds neither a run nor a weights file: type a file's path")
        return files[0]
    return named_function(config.weights, "--weights")()


def check_forward(model: nn.Module, name: str, image_size: int, classes: int | None = None) -> int:
    """Try the model on one black image, in evaluation mode, and return how many classes it knows.

    Raises:
        ValueError: it fails, or returns anything but logits (1, classes).
    """
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # whatever a foreign model's forward may raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} fails on an image of {image_size} x {image_size} pixels ({reason})") from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"{name} is no classifier: for one image it gives {got}, not logits of shape (1, classes)")
    if classes is not None and logits.shape[1] != classes:
        raise ValueError(f"{name} gives {logits.shape[1]} logits for {classes} classes")
    return logits.shape[1]


def timm_model(
    name: str, *, pretrained: bool = False, drop_path_rate: float = 0.0, then: str = "", **options: Any
) -> nn.Module:
    """`timm.create_model`, whose failures say what to type.

    Args:
        then: what to do with weights that had to be fetched by hand; default: the trainer's two ways.

    Raises:
        ValueError: unknown name (the nearest are offered); weights that cannot be fetched (says which file, and where
            to put it).
    """
    elsewhere = name.startswith(("hf_hub:", "hf-hub:", "local-dir:"))
    if not elsewhere and not timm.is_model(name):
        known = [*CONFIGS, *timm.list_models()]
        raise ValueError(f"unknown model {name!r}: {did_you_mean(name.split('.')[0], known, list(CONFIGS)[:3])}")
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, TypeError, AssertionError) as error:  # unknown tag, no weights, an option it does not take
        raise ValueError(f"timm cannot make {name}: {error}") from error
    except (OSError, ValueError) as error:
        # huggingface_hub's off-line and not-found errors are OSErrors or ValueErrors.
        if not pretrained:
            raise
        cfg = None if elsewhere else timm.get_pretrained_cfg(name)
        where = f"https://huggingface.co/{cfg.hf_hub_id}" if cfg is not None and cfg.hf_hub_id else "timm's model page"
        then = then or (
            f"type --teacher PATH/model.safetensors --teacher-model {name.split('.')[0]} for a teacher, or --weights "
            f"PATH/model.safetensors to start from it"
        )
        raise ValueError(
            f"the weights of {name} could not be fetched ({type(error).__name__}). On a machine with a network, "
            f"download model.safetensors from {where}, copy it here, and {then}"
        ) from error


def normalisation(model: nn.Module) -> Normalisation:
    """(mean, std) of the images that a model expects: its own, or timm's `pretrained_cfg`, or ImageNet's."""
    if isinstance(model, VisionTransformer):
        return IMAGENET_NORMALISATION
    cfg = getattr(model, "pretrained_cfg", None) or {}
    mean, std = getattr(model, "mean", cfg.get("mean")), getattr(model, "std", cfg.get("std"))
    if mean is None or std is None:
        return IMAGENET_NORMALISATION
    return tuple(map(float, mean)), tuple(map(float, std))


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
        self._dtype = torch.float32

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: a teacher's batch statistics and dropout are never the student's batch's."""
        return super().train(False)

    def cast(self, dtype: torch.dtype) -> Teacher:
        """Weights and activations in `dtype`, once and for all; the logits stay float32."""
        self.model.to(dtype)
        self._dtype = dtype
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if self.scale is not None:
            images = images * self.scale + self.shift
        return self.model(images.to(self._dtype)).float()


def named_function(spec: str, flag: str) -> Callable[[], Any]:
    """The function that "module:function" names.

    Raises:
        ValueError: not of that form, or no such module or function.
    """
    module, _, function = spec.partition(":")
    if not (module and function):
        raise ValueError(f"{flag} {spec} is neither a file nor module:function: check the path")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"{flag} {spec}: the module {module} cannot be imported ({error})") from error
    except AttributeError as error:
        raise ValueError(f"{flag} {spec}: the module {module} has no function {function}") from error
