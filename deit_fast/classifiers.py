"""Any image classifier by name: our DeiT models, timm's, and weights from a file, a package or a Python function."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from torch import nn

from .config import Config
from .model import CONFIGS, VisionTransformer, create_model
from .pretrained import load_pretrained

# (mean, std) of the channels red, green, blue, for pixels in [0, 1].
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET_NORMALISATION: Normalisation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classifier(config: Config, classes: int) -> nn.Module:
    """The model that a configuration names, with its starting weights.

    Raises:
        ValueError: unknown name, sizes that only our models take, weights that do not fit or cannot be fetched.
    """
    sizes = {name: getattr(config, name) for name in ("patch_size", "width", "depth", "heads") if getattr(config, name)}
    if config.model in CONFIGS:
        changes = {**sizes, "image_size": config.image_size, "drop_path_rate": config.drop_path}
        model: nn.Module = create_model(config.model, classes=classes, **changes)
    elif sizes and timm.is_model(config.model):
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sizes)
        raise ValueError(f"{named} only changes our own models ({', '.join(CONFIGS)}), not timm's {config.model}")
    else:
        model = timm_model(config.model, num_classes=classes, drop_path_rate=config.drop_path)
    if config.weights == "timm":
        pretrained = timm_model(config.model, pretrained=True)
        load_pretrained(model, pretrained.state_dict())
    elif config.weights and Path(config.weights).suffix in (".pth", ".pt", ".bin", ".safetensors"):
        load_pretrained(model, config.weights)
    elif config.weights:
        load_pretrained(model, named_function(config.weights, "--weights")())
    return model


def timm_model(name: str, *, pretrained: bool = False, drop_path_rate: float = 0.0, **options: Any) -> nn.Module:
    """`timm.create_model`, whose failures say what to type.

    Raises:
        ValueError: unknown name (the nearest are offered); weights that cannot be fetched (says which file, and where
            to put it).
    """
    if not timm.is_model(name):
        known = [*CONFIGS, *timm.list_models()]
        near = difflib.get_close_matches(name.split(".")[0], known, n=3, cutoff=0.5) or list(CONFIGS)[:3]
        raise ValueError(f"unknown model {name!r}: did you mean {' or '.join(near)}?")
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except RuntimeError as error:  # an unknown tag of a known architecture, or no pretrained weights at all
        raise ValueError(f"timm cannot make {name}: {error}") from error
    except (OSError, ValueError) as error:
        # huggingface_hub's off-line and not-found errors are OSErrors or ValueErrors.
        if not pretrained:
            raise
        cfg = timm.get_pretrained_cfg(name)
        where = f"https://huggingface.co/{cfg.hf_hub_id}" if cfg is not None and cfg.hf_hub_id else "timm's model page"
        raise ValueError(
            f"the weights of {name} could not be fetched ({type(error).__name__}). On a machine with a network, "
            f"download model.safetensors from {where}, copy it here, and type --teacher PATH/model.safetensors "
            f"--teacher-model {name.split('.')[0]} for a teacher, or --weights PATH/model.safetensors to start from it"
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


def named_function(spec: str, flag: str) -> Callable[[], Any]:
    """The function that "module:function" names.

    Raises:
        ValueError: not of that form, or no such module or function.
    """
    module, _, function = spec.partition(":")
    if not function:
        raise ValueError(f"{flag} {spec} is neither a file nor module:function: check the path")
    try:
        return getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ValueError(f"{flag} {spec}: the module {module} cannot be imported ({error})") from error
    except AttributeError as error:
        raise ValueError(f"{flag} {spec}: the module {module} has no function {function}") from error
