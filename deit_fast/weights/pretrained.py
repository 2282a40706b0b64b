"""Weights from elsewhere: official `.pth`, timm and Hugging Face `.safetensors`, our own files.

    load_pretrained(model, "deit_small_distilled_patch16_224-649709d9.pth")
    load_pretrained(model, "runs/deit-.../checkpoints/step_00375300/model.safetensors")
    load_pretrained(timm_model, timm_state_dict)
    torch.save({"model": to_official(model.state_dict())}, "deit_3_small_224.pth")

A `.pth` file is a pickle, which can hold code: it is read with `weights_only=True` and never otherwise.
"""

from __future__ import annotations

import argparse
import logging
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..files import check_readable, reading_tensors, sha256_of, shown
from ..model import CONFIGS, VisionTransformer
from .huggingface import from_huggingface, is_huggingface, with_layer_scale

logger = logging.getLogger(__name__)

ResizeMethod = Literal["official", "timm"]
Grid = tuple[int, int]  # rows and columns of patches
_FIRST_SCALE = "blocks.0.ls1.gamma"
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".pth.tar")

# SHA-256 prefixes in the names of the released files (facebookresearch/deit, README and hubconf).
RELEASES = {
    "deit_tiny_patch16_224": "a1311bcf",
    "deit_small_patch16_224": "cd65a155",
    "deit_base_patch16_224": "b5f2ef4d",
    "deit_tiny_distilled_patch16_224": "b40b3cf7",
    "deit_small_distilled_patch16_224": "649709d9",
    "deit_base_distilled_patch16_224": "df68dfff",
    "deit_base_patch16_384": "8de9b5d1",
    "deit_base_distilled_patch16_384": "d0272ac0",
}
TEACHERS = {"regnety_160": "a5fe301d"}  # the same, of the paper's teacher


def resize_pos_embed(
    pos_embed: Tensor,
    grid: int | Grid,
    prefix_tokens: int,
    method: ResizeMethod = "official",
    old_grid: Grid | None = None,
) -> Tensor:
    """Position embeddings for another image size; the rows of the class and distillation token stay.

    Args:
        pos_embed: (1, prefix + patches, width), the patches row by row.
        grid: rows and columns of patches of the new image, or a number for both.
        prefix_tokens: 1, or 2 for a distilled model; 0 for DeiT III, where only patches have positions.
        method: "official" is bicubic interpolation (a = −0.75) as facebookresearch/deit `main.py`; "timm" adds
            antialiasing (a = −0.5) as timm 1.0.31 `resample_abs_pos_embed`. They differ even when enlarging.
        old_grid: of pos_embed; None: it is square.

    Returns:
        (1, prefix + rows · columns, width) in the input's type.

    Raises:
        ValueError: the old grid is not square and not given, or does not fit, or the method is unknown.
    """
    if method not in ("official", "timm"):
        raise ValueError(f'the position embedding is resized by "official" or "timm", got {method!r}')
    new = (grid, grid) if isinstance(grid, int) else tuple(grid)
    prefix, patches = pos_embed[:, :prefix_tokens], pos_embed[:, prefix_tokens:]
    side = math.isqrt(patches.shape[1])
    old = old_grid or (side, side)
    if math.prod(old) != patches.shape[1]:
        wrong = "which is not a square grid: give old_grid" if old_grid is None else f"which is no grid of {old}"
        raise ValueError(f"pos_embed holds {patches.shape[1]} patch positions, {wrong}")
    if old == new:
        return pos_embed
    patches = patches.float().unflatten(1, old).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, new, mode="bicubic", align_corners=False, antialias=method == "timm")
    return torch.cat([prefix, patches.flatten(2).transpose(1, 2).to(pos_embed.dtype)], dim=1)


class WeightsFile(NamedTuple):
    """Weights, and what a checkpoint of timm's train.py tells beside them."""

    weights: dict[str, Tensor]
    architecture: str = ""  # by timm's name; "" where nothing tells it
    arguments: Mapping[str, Any] = MappingProxyType({})  # of train.py, by its own names
    average: bool = False  # the weights are the moving average of those that were trained
    huggingface: bool = False  # the file has Hugging Face's names


def read_weights(source: str | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in a file, by name, from under "model" or "state_dict", without the prefixes of compile and DDP.

    A checkpoint of timm's train.py gives its moving average where it has one, as `timm.models.load_checkpoint`. A DeiT
    or ViT under Hugging Face's names gets our names.

    Raises:
        ValueError: no such file, not a weights file, or a pickle that holds code (which is not run).
    """
    return read_weights_file(source).weights


def read_weights_file(source: str | Path | Mapping[str, Any]) -> WeightsFile:
    """`read_weights`, and what the file tells of the model."""
    content: Mapping[str, Any] = source if isinstance(source, Mapping) else _read_file(Path(source))
    weights, average = content, False
    for key in ("model", "state_dict_ema", "state_dict"):
        if isinstance(weights.get(key), Mapping):
            weights, average = weights[key], average or key == "state_dict_ema"
    if not weights or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        where = "the mapping" if isinstance(source, Mapping) else f"{source}"
        raise ValueError(f'{where} holds no weights: expected tensors by name, plain or under "model" or "state_dict"')
    weights = {_own_name(key): value for key, value in weights.items()}
    if is_huggingface(weights):
        return WeightsFile(from_huggingface(weights), huggingface=True)
    architecture, arguments = content.get("arch"), content.get("args")
    if not isinstance(architecture, str):
        return WeightsFile(weights)
    return WeightsFile(
        weights, architecture, vars(arguments) if isinstance(arguments, argparse.Namespace) else {}, average
    )


def _own_name(key: str) -> str:
    """Without the prefixes of torch.compile and of DDP, whichever is around the other."""
    return key.removeprefix("_orig_mod.").removeprefix("module.").removeprefix("_orig_mod.")


def from_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeiT III's weights under our names, which are timm's: the official LayerScale `gamma_1` is `ls1.gamma`."""
    return {re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", key): value for key, value in weights.items()}


def to_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the official code's names, in which DeiT III alone differs."""
    return {re.sub(r"^(blocks\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2", key): value for key, value in weights.items()}


def without_zero_positions(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeiT III's weights, in which timm's distilled class has positions for its tokens, without them if they are 0."""
    positions, prefix = weights.get("pos_embed"), 2 if "dist_token" in weights else 1
    if positions is None or not has_layer_scale(weights) or positions[:, :prefix].any():
        return dict(weights)
    if math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:  # a square of patches, and no token
        return dict(weights)
    return {**weights, "pos_embed": positions[:, prefix:]}


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"no weights file at {path}: type the path of a .pth or .safetensors file")
    released = {f"{name}-{prefix}.pth" for name, prefix in (RELEASES | TEACHERS).items()}
    if path.name in released and not (digest := sha256_of(path)).startswith(path.stem.rpartition("-")[2]):
        raise ValueError(
            f"{path} is not the released file of that name (its SHA-256 begins with {digest[:8]}): download it again, "
            f"or rename it if the weights are your own"
        )
    check_readable(path)
    if path.suffix == ".safetensors":
        if shown(str(path)) != str(path):
            raise ValueError(f"{shown(str(path))}: safetensors reads no path that is not UTF-8: rename or move it")
        with reading_tensors(path, "copy or download it again"):
            return load_file(path)
    with open(path, "rb") as file:
        if file.read(2) not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):  # zip; pickle protocol 2, 4, 5
            raise ValueError(f"{path} is not a PyTorch weights file, whatever its name says: download it again")
    try:
        # Checkpoints of the official code and of timm carry their argparse.Namespace, a plain holder of values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled Python objects beside tensors, which could run any code, so it was not loaded: "
            f"save the tensors alone, safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
    except Exception as error:
        # A damaged zip or pickle raises anything: RuntimeError, EOFError, struct.error, KeyError, OverflowError, …
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a whole PyTorch weights file ({reason}): copy or download it again") from error
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path} holds a {type(weights).__name__}, not weights by name")
    return weights


def load_pretrained(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    resize: ResizeMethod = "official",
    old_grid: Grid | None = None,
) -> list[str]:
    """Load weights into a model; resize its position embeddings, start its heads anew when the classes differ.

    Args:
        model: ours or timm's.
        source: path of a `.pth` or `.safetensors` file, or a state dict.
        resize: see `resize_pos_embed`.
        old_grid: rows and columns of patches that the weights are for, where those images were not square.

    Returns:
        What was changed, one sentence each; also logged as warnings.

    Raises:
        ValueError: unreadable file, weights of another architecture (both are described), or keys that are missing,
            unexpected or of another shape (listed); the model is then as it was.
    """
    file, own, notes = read_weights_file(source), model.state_dict(), []
    weights = file.weights
    if _FIRST_SCALE in own and _FIRST_SCALE not in weights:
        if file.huggingface:
            weights = with_layer_scale(weights)
            notes.append("LayerScale starts at 1: in Hugging Face's files its factors are in the matrices")
        else:
            weights = from_official(weights)
    sizes = model.config if isinstance(model, VisionTransformer) else getattr(model, "patch_embed", None)  # or timm's
    prefix_positions = getattr(sizes, "prefix_positions", not getattr(model, "no_embed_class", False))
    if not prefix_positions:
        weights = without_zero_positions(weights)
    theirs, ours = _architecture(weights), _architecture(own)
    if theirs and ours and theirs != ours:
        _refuse_architecture(theirs, ours)
    if ours and "pos_embed" in weights and (old_grid or weights["pos_embed"].shape != own["pos_embed"].shape):
        old, prefix_tokens = weights["pos_embed"].shape[1], (2 if "dist_token" in weights else 1) * prefix_positions
        grid = getattr(sizes, "grid_size", None) or math.isqrt(own["pos_embed"].shape[1] - prefix_tokens)
        weights["pos_embed"] = resize_pos_embed(weights["pos_embed"], grid, prefix_tokens, resize, old_grid)
        notes.append(f"position embeddings resized from {old} to {weights['pos_embed'].shape[1]} tokens ({resize})")
    for head in _heads_of_other_classes(model, weights, own):
        notes.append(
            f"{head} starts anew: the file has {len(weights[f'{head}.weight'])} classes, "
            f"the model {len(own[f'{head}.weight'])}"
        )
        weights |= {key: own[key] for key in (f"{head}.weight", f"{head}.bias") if key in own}
    problems = {
        "missing": sorted(own.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - own.keys()),
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own.keys() & weights.keys()
            if weights[key].shape != own[key].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        way = f"; they are of {file.architecture}: type --model {file.architecture}" if file.architecture else ""
        raise ValueError(f"these weights do not fit the model. {listed}{way}")
    model.load_state_dict(weights)
    for note in notes:
        logger.warning(note)
    return notes


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")


class _Architecture(NamedTuple):
    """The sizes that neither the image size nor the classes change."""

    width: int
    depth: int
    patch_size: int
    distilled: bool
    layer_scale: bool

    def __str__(self) -> str:
        token = "a distillation token" if self.distilled else "no distillation token"
        sizes = f"{self.width} channels, {self.depth} blocks, patches of {self.patch_size} pixels"
        return f"{sizes}, {token} and LayerScale" if self.layer_scale else f"{sizes} and {token}"


def _architecture(weights: Mapping[str, Tensor]) -> _Architecture | None:
    """None for weights that are not a DeiT's or a ViT's."""
    patches = weights.get("patch_embed.proj.weight")
    if patches is None or patches.ndim != 4 or "pos_embed" not in weights or "blocks.0.attn.qkv.weight" not in weights:
        return None
    depth = sum(key.startswith("blocks.") and key.endswith(".attn.qkv.weight") for key in weights)
    return _Architecture(patches.shape[0], depth, patches.shape[2], "dist_token" in weights, has_layer_scale(weights))


def has_layer_scale(weights: Mapping[str, Tensor]) -> bool:
    """True for a DeiT III's, under timm's or the official names."""
    return _FIRST_SCALE in weights or "blocks.0.gamma_1" in weights


def _refuse_architecture(theirs: _Architecture, ours: _Architecture) -> NoReturn:
    fits = [
        name
        for name, config in CONFIGS.items()
        if theirs == (config.width, config.depth, config.patch_size, config.distilled, bool(config.layer_scale))
    ]
    flags = ("--width", "--depth", "--patch-size")
    differing = [f"{flag} {value}" for flag, value, own in zip(flags, theirs, ours, strict=False) if value != own]
    if theirs.distilled != ours.distilled:
        differing.append(f"a --model {'with' if theirs.distilled else 'without'} _distilled in its name")
    if theirs.layer_scale != ours.layer_scale:
        differing.append(f"a --model whose name begins with {'deit3_' if theirs.layer_scale else 'deit_'}")
    way = f"--model {fits[0]}" if fits else " and ".join(differing)
    raise ValueError(f"these weights do not fit the model: they have {theirs}, the model has {ours}: type {way}")


def _heads_of_other_classes(model: nn.Module, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Classifiers that differ in the number of rows only; timm's models name theirs in `pretrained_cfg`."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ("head", "head_dist")
    found = []
    for name in (named,) if isinstance(named, str) else named:
        if (key := f"{name}.weight") in weights and key in own:
            theirs, ours = weights[key].shape, own[key].shape
            if theirs[0] != ours[0] and theirs[1:] == ours[1:]:
                found.append(name)
    return found
