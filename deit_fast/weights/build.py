"""An image classifier by name, ours or timm's, and what it is asked before it is used."""

from __future__ import annotations

from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..model import CONFIGS, IMAGENET_NORMALISATION, Normalisation, VisionTransformer, create_model
from ..names import did_you_mean, flag

HUBS = ("hf_hub:", "hf-hub:", "local-dir:")  # timm's prefixes of models that lie elsewhere


def untrained(config: ModelConfig, image_size: int, classes: int) -> nn.Module:
    """The model that a configuration names, with random weights, for images of `image_size` pixels."""
    sizes: dict[str, Any] = {
        name: getattr(config, name) for name in ("patch_size", "width", "depth", "heads") if getattr(config, name)
    }
    base, _, tag = config.model.partition(".")
    if config.model in CONFIGS:
        sizes |= {"image_size": image_size, "classes": classes}
        sizes |= {"drop_path_rate": config.drop_path, "dropout": config.dropout}
        return create_model(config.model, fusion=config.fusion, **sizes)
    if base in CONFIGS:
        raise ValueError(f"{config.model} is ours under its name without .{tag}: type --model {base} --weights timm")
    if sizes and timm.is_model(config.model):
        named = ", ".join(map(flag, sizes))
        raise ValueError(f"{named} only changes our own models ({', '.join(CONFIGS)}), not timm's {config.model}")
    # A rate of 0 is left out: not every model of timm takes both.
    drops = {name: rate for name, rate in (("drop_rate", config.dropout), ("drop_path_rate", config.drop_path)) if rate}
    options: dict[str, Any] = {**built_for(config.model, image_size), **drops}
    return timm_model(config.model, num_classes=classes, **options)


def built_for(name: str, image_size: int) -> dict[str, int]:
    """timm's option for transformers, which are built for one image size."""
    base = name.split(".")[0]
    fixed = timm.is_model(base) and timm.models.get_pretrained_cfg_value(base, "fixed_input_size")
    return {"img_size": image_size} if fixed and image_size else {}


def check_forward(model: nn.Module, name: str, image_size: int, classes: int | None = None) -> int:
    """Try the model on one black image, in evaluation mode; returns how many classes it knows."""
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


def timm_model(name: str, *, pretrained: bool = False, then: str = "", **options: Any) -> nn.Module:
    """`timm.create_model`, whose failures are ValueErrors that say what to type.

    `then` says what to do with weights that were fetched by hand; without it: the trainer's two ways.
    """
    elsewhere = name.startswith(HUBS)
    if not elsewhere and not timm.is_model(name):
        raise ValueError(f"unknown model {name!r}: {nearest_models(name)}")
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, TypeError, AssertionError) as error:  # unknown tag, no weights, an option it does not take
        raise ValueError(f"timm cannot make {name}: {error}") from error
    except KeyError as error:
        if not elsewhere:
            raise
        # Its config.json has no "architecture".
        raise ValueError(f"{name} is not a model of timm: download it, and type the path of its folder") from error
    except (OSError, ValueError) as error:
        # huggingface_hub's off-line and not-found errors are OSErrors or ValueErrors.
        if not pretrained:
            raise
        cfg = None if elsewhere else timm.get_pretrained_cfg(name)
        where = f"https://huggingface.co/{cfg.hf_hub_id}" if cfg is not None and cfg.hf_hub_id else "timm's model page"
        then = then or (
            f"type --teacher PATH/model.safetensors --teacher-model {name.split('.')[0]} for a teacher, or --weights "
            f'PATH/model.safetensors to start from it; --weights "" starts from random ones'
        )
        raise ValueError(
            f"the weights of {name} could not be fetched ({type(error).__name__}). On a machine with a network, "
            f"download model.safetensors from {where}, copy it here, and {then}"
        ) from error


def nearest_models(name: str) -> str:
    """ "did you mean A or B?": the names that begin so, ours first, else those that come nearest to a mistyped one."""
    base, known = name.split(".")[0], [*CONFIGS, *timm.list_models()]
    begun = [one for one in dict.fromkeys(known) if base and one.startswith(base)]
    return did_you_mean(base, () if begun else dict.fromkeys(known), begun[:3] or list(CONFIGS)[:3])


def normalisation(model: nn.Module) -> Normalisation:
    """(mean, std) of the images that a model expects: its own, or timm's `pretrained_cfg`, or ImageNet's."""
    if isinstance(model, VisionTransformer):
        return IMAGENET_NORMALISATION
    cfg = getattr(model, "pretrained_cfg", None) or {}
    mean, std = getattr(model, "mean", cfg.get("mean")), getattr(model, "std", cfg.get("std"))
    if mean is None or std is None:
        return IMAGENET_NORMALISATION
    return cast(Normalisation, (tuple(map(float, mean)), tuple(map(float, std))))


class Frozen(nn.Module):
    """A classifier that only answers: maps images that were normalised for another model to float32 logits (B, C).

    `given` is the (mean, std) of the images that arrive, `own` what the model expects (None: see `normalisation`). The
    model is frozen and stays in evaluation mode.
    """

    scale: Tensor | None  # None: the images are as the model expects them
    shift: Tensor | None

    def __init__(self, model: nn.Module, given: Normalisation, own: Normalisation | None = None) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        (mean, std), (own_mean, own_std) = (
            [torch.tensor(part, dtype=torch.float64).view(3, 1, 1) for part in pair]
            for pair in (given, own or normalisation(model))
        )
        # (x · std + mean − own_mean) / own_std, as one multiplication and one addition.
        self.register_buffer("scale", (std / own_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - own_mean) / own_std).float(), persistent=False)
        self._dtype = torch.float32

    def train(self, mode: bool = True) -> Frozen:
        """Stays in evaluation mode: its batch norms never see the statistics of a student's batch."""
        return super().train(False)

    def cast(self, dtype: torch.dtype) -> Frozen:
        """Weights and activations in `dtype`; the logits stay float32."""
        self.model.to(dtype)
        self._dtype = dtype
        return self

    def normalised(self, images: Tensor) -> Tensor:
        """The images as the model expects them."""
        return images if self.scale is None or self.shift is None else images * self.scale + self.shift

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.normalised(images).to(self._dtype)).float()
