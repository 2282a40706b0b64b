"""Hugging Face's names for the same weights, in both directions, and the configuration that goes with them.

    weights = from_huggingface(load_file("deit-small-distilled-patch16-224/model.safetensors"))
    save_file(to_huggingface(model.state_dict()), "model.safetensors")

transformers calls a distilled DeiT `DeiTForImageClassificationWithTeacher` (prefix `deit.`) and a plain one
`ViTForImageClassification` (`vit.`). Queries, keys and values are three matrices there and one here; every other tensor
is the same, so both directions keep every bit. transformers 5 has shorter names in memory than in its files: both are
read, and the files' names are written, which every version reads.

transformers has no DeiT III. It is written as the DeiT or ViT that computes the same: LayerScale is multiplied into the
matrix before it, and the tokens before the patches get positions of 0.
Source: the files and modules of transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..model import VisionTransformer

# Ours -> the name in a file, within one block.
_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_PARTS = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
_OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_HEADS = {"cls_classifier": "head", "distillation_classifier": "head_dist", "classifier": "head"}
# Names that transformers 5 has in memory -> the name in a file; its mlp.fc1 and mlp.fc2 are also ours.
_IN_MEMORY = {
    "attention.q_proj": _PARTS[0],
    "attention.k_proj": _PARTS[1],
    "attention.v_proj": _PARTS[2],
    "attention.o_proj": "attention.output.dense",
}


def is_huggingface(weights: Mapping[str, Any]) -> bool:
    """Whether these are the weights of a DeiT or ViT under Hugging Face's names."""
    return any(key.endswith("embeddings.position_embeddings") for key in weights)


def from_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, which are the official code's and timm's.

    The pooler, which no classifier uses, is left out; an unknown name stays as it is. A block without its query, key or
    value, or a distillation token without its classifier, is a ValueError.
    """
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    outside = {theirs: name for name, theirs in _OUTSIDE.items()}
    block_names = {theirs: name for name, theirs in _BLOCK.items()}
    for key, value in weights.items():
        name = re.sub(r"^(deit|vit)\.", "", key)
        head, _, kind = name.rpartition(".")
        if name in outside:
            ours[outside[name]] = value
        elif head in _HEADS:
            ours[f"{_HEADS[head]}.{kind}"] = value
        elif block := re.match(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)$", name):
            index, module, kind = block.groups()
            module = _IN_MEMORY.get(module, module)
            if module in _PARTS:
                parts.setdefault(f"blocks.{index}.attn.qkv.{kind}", {})[module] = value
            else:
                ours[f"blocks.{index}.{block_names.get(module, module)}.{kind}"] = value
        elif not name.startswith("pooler."):
            ours[key] = value
    for name, found in parts.items():
        if missing := [part.rpartition(".")[2] for part in _PARTS if part not in found]:
            raise ValueError(f"these Hugging Face weights lack the {' and '.join(missing)} of {name}: copy them again")
        ours[name] = torch.cat([found[part] for part in _PARTS])
    if "dist_token" in ours and "head.weight" in ours and "head_dist.weight" not in ours:
        raise ValueError(
            "these weights have a distillation token and no distillation classifier, as Hugging Face's "
            "DeiTForImageClassification: load the file of a DeiTForImageClassificationWithTeacher instead"
        )
    return ours


def without_layer_scale(weights: Mapping[str, Tensor], prefix_positions: bool) -> dict[str, Tensor]:
    """DeiT III as a DeiT that computes the same; `prefix_positions` says whether its class token has a position."""
    plain = dict(weights)
    for name, gamma in weights.items():
        if scale := re.match(r"(blocks\.\d+)\.ls([12])\.gamma$", name):
            matrix = f"{scale[1]}.{'attn.proj' if scale[2] == '1' else 'mlp.fc2'}"
            if f"{matrix}.weight" in weights and f"{matrix}.bias" in weights:
                plain[f"{matrix}.weight"] = weights[f"{matrix}.weight"] * gamma[:, None]
                plain[f"{matrix}.bias"] = weights[f"{matrix}.bias"] * gamma
                del plain[name]
    if not prefix_positions:
        positions = weights["pos_embed"]
        prefix = positions.new_zeros(1, 2 if "dist_token" in weights else 1, positions.shape[2])
        plain["pos_embed"] = torch.cat([prefix, positions], dim=1)
    return plain


def with_layer_scale(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A DeiT as the DeiT III that computes the same: factors of 1, and each token's position added to the token."""
    tokens = [name for name in ("cls_token", "dist_token") if name in weights]
    scaled = dict(weights)
    for place, name in enumerate(tokens):
        scaled[name] = weights[name] + weights["pos_embed"][:, place : place + 1]
    scaled["pos_embed"] = weights["pos_embed"][:, len(tokens) :].clone()
    for name, value in weights.items():
        if block := re.match(r"(blocks\.\d+)\.norm([12])\.weight$", name):
            scaled[f"{block[1]}.ls{block[2]}.gamma"] = torch.ones_like(value)
    return scaled


def to_huggingface(weights: Mapping[str, Tensor], prefix_positions: bool = True) -> dict[str, Tensor]:
    """Our weights under the names of Hugging Face's files; a name that a DeiT does not have is a ValueError.

    DeiT III, whose `prefix_positions` are False, becomes a DeiT or ViT that computes the same.
    """
    weights = without_layer_scale(weights, prefix_positions)
    distilled = "dist_token" in weights
    prefix = "deit." if distilled else "vit."
    heads = {"head": "cls_classifier" if distilled else "classifier", "head_dist": "distillation_classifier"}
    theirs: dict[str, Tensor] = {}
    for name, value in weights.items():
        head, _, kind = name.rpartition(".")
        if name in _OUTSIDE:
            theirs[prefix + _OUTSIDE[name]] = value
        elif head in heads:
            theirs[f"{heads[head]}.{kind}"] = value
        elif block := re.match(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)$", name):
            layer = f"{prefix}encoder.layer.{block[1]}"
            for part, third in zip(_PARTS, value.chunk(3), strict=True):
                theirs[f"{layer}.{part}.{block[2]}"] = third.clone()  # a file holds no two views of one memory
        elif (block := re.match(r"blocks\.(\d+)\.(.+)\.(weight|bias)$", name)) and block[2] in _BLOCK:
            theirs[f"{prefix}encoder.layer.{block[1]}.{_BLOCK[block[2]]}.{block[3]}"] = value
        else:
            raise ValueError(f"{name} has no counterpart in Hugging Face's DeiT")
    return theirs


def huggingface_config(model: VisionTransformer, classes: list[str]) -> dict[str, Any]:
    """The `config.json` of a model, for `DeiTForImageClassificationWithTeacher` or, undistilled, a ViT.

    `layer_norm_eps` is 1e-6 in ours and in the official code; the files on the Hugging Face hub say 1e-12.
    """
    sizes = model.config
    return {
        "architectures": ["DeiTForImageClassificationWithTeacher" if sizes.distilled else "ViTForImageClassification"],
        "model_type": "deit" if sizes.distilled else "vit",
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "intermediate_size": int(sizes.width * sizes.mlp_ratio),
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": sizes.layer_norm_eps,
        "initializer_range": 0.02,
        "id2label": {str(label): name for label, name in enumerate(classes)},
        "label2id": {name: label for label, name in enumerate(classes)},
        "dtype": "float32",
    }
