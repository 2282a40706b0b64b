"""The vision transformer of DeiT and DeiT III, with its class and its distillation token. One file, the whole model.

    model = create_model("deit_small_distilled_patch16_224", classes=37)
    cls_logits, dist_logits = model(images)             # training: the two heads
    logits = model.eval()(images)                       # evaluation: one tensor, by `fusion`
    load_pretrained(model, "deit_small_distilled_patch16_224-649709d9.pth")

Keys, shapes and order of the state dict are those of facebookresearch/deit and of timm, so their checkpoints load
strictly and ours load there; only DeiT III's LayerScale has two names, timm's here (`ls1.gamma`) and the official
`gamma_1`, which `weights/pretrained.py` reads too. Initialisation is the official code's, in its order of draws.
Source: arXiv 2012.12877, 2204.07118; facebookresearch/deit `models.py`, `models_v2.py`; checked against timm 1.0.31.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from deit_kernels import attention_qkvpacked
from deit_kernels.philox import Stream, philox, uniform

from .names import did_you_mean

Fusion = Literal["logits", "softmax", "cls", "dist"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
# (mean, std) of the channels red, green, blue, for pixels in [0, 1].
Channels = tuple[float, float, float]
Normalisation = tuple[Channels, Channels]
IMAGENET_NORMALISATION: Normalisation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of one model; lengths in pixels, `width` and `heads` in channels and attention heads of every block.

    An image that is not square has an `image_size` of (height, width). The last three are DeiT III's: LayerScale's
    initial value (0: none), whether the tokens before the patches have positions, the same drop path in every block.
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    classes: int = 1000
    distilled: bool = False
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    drop_path_rate: float = 0.0
    dropout: float = 0.0
    layer_scale: float = 0.0
    prefix_positions: bool = True
    constant_drop_path: bool = False

    def __post_init__(self) -> None:
        for side in self._sides:
            if side % self.patch_size:
                raise ValueError(
                    f"image_size {side} is not a multiple of patch_size {self.patch_size}: "
                    f"use {side // self.patch_size * self.patch_size or self.patch_size}"
                )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        for name in ("drop_path_rate", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a probability in [0, 1), got {getattr(self, name)}")
        if min(self.width, self.depth, self.classes) < 1:
            raise ValueError(f"width, depth and classes are at least 1, got {self.width}, {self.depth}, {self.classes}")

    @property
    def _sides(self) -> tuple[int, int]:
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self._sides
        return height // self.patch_size, width // self.patch_size

    @property
    def grid(self) -> int:
        """Patches along one side of a square image."""
        rows, columns = self.grid_size
        assert rows == columns
        return rows

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: the class token and, if distilled, the distillation token."""
        return 2 if self.distilled else 1


# Family, size, width, depth, heads, patch size, image sizes. A distillation token in DeiT III is ours.
_SIZES = [
    ("deit", "tiny", 192, 12, 3, 16, (224,)), ("deit", "small", 384, 12, 6, 16, (224,)),
    ("deit", "base", 768, 12, 12, 16, (224, 384)), ("deit3", "small", 384, 12, 6, 16, (224, 384)),
    ("deit3", "medium", 512, 12, 8, 16, (224,)), ("deit3", "base", 768, 12, 12, 16, (224, 384)),
    ("deit3", "large", 1024, 24, 16, 16, (224, 384)), ("deit3", "huge", 1280, 32, 16, 14, (224,)),
]  # fmt: skip
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "deit": {}, "deit3": {"layer_scale": 1e-4, "prefix_positions": False, "constant_drop_path": True},
}  # fmt: skip
CONFIGS = {
    f"{family}_{size}{distilled}_patch{patch}_{side}": ViTConfig(
        side, patch, width, depth, heads, distilled=bool(distilled), **_OF_FAMILY[family]
    )
    for family, size, width, depth, heads, patch, sides in _SIZES
    for side in sides
    for distilled in ("", "_distilled")
}


def _trunc_normal(tensor: Tensor) -> None:
    # The official bounds are ±2 in absolute value, 100 standard deviations: in effect a plain N(0, 0.02²).
    nn.init.trunc_normal_(tensor, std=0.02, a=-2.0, b=2.0)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        _trunc_normal(module.weight)
        nn.init.zeros_(module.bias)


class PatchEmbed(nn.Module):
    """A convolution of stride P, computed as what it is: one matrix product on patches.

    Evaluation on a CPU takes oneDNN's convolution, which is faster; in training, images and patches give equal bits.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images or (B, N, 3·P·P) patches, channel-major inside a patch -> (B, N, width)."""
        if images.dim() == 4 and images.is_cpu and not self.training:
            return F.conv2d(images, self.proj.weight, self.proj.bias, self.proj.stride).flatten(2).transpose(1, 2)
        if images.dim() == 4:
            batch, channels, height, width = images.shape
            side = self.proj.kernel_size[0]
            cut = images.reshape(batch, channels, height // side, side, width // side, side)
            images = cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)
        return F.linear(images, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, tokens: int | None = None) -> Tensor:
        """x (B, N, width) -> (B, tokens, width), of the first tokens; None for all."""
        packed = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, H, D)
        return self.dropout(self.proj(attention_qkvpacked(packed)[:, :tokens].flatten(2)))


class Mlp(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        hidden = F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden)
        return self.dropout(self.fc2(self.dropout(hidden)))


class LayerScale(nn.Module):
    """The learnt factor of each channel of a residual branch (arXiv 2103.17239)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((config.width,), config.layer_scale))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gamma


class Block(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config) if config.layer_scale else None
        self.norm2 = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config) if config.layer_scale else None

    def forward(self, x: Tensor, scale: Tensor | None, tokens: int | None = None) -> Tensor:
        """x (B, N, width) -> (B, tokens, width).

        scale (2, B, 1, 1) is the factor of each residual branch for each image, None for 1. Of `tokens`, the first of
        x, all is computed, of the others keys and values; None is all tokens.
        """
        attention_scale, mlp_scale = (None, None) if scale is None else scale
        x = _add(x[:, :tokens], self.attn(self.norm1(x), tokens), self.ls1, attention_scale)
        return _add(x, self.mlp(self.norm2(x)), self.ls2, mlp_scale)


def _add(x: Tensor, branch: Tensor, layer_scale: LayerScale | None, scale: Tensor | None) -> Tensor:
    """x plus a residual branch, in the type of x."""
    if layer_scale is not None:
        branch = layer_scale(branch).to(x.dtype)
    return x + branch if scale is None else x + branch * scale.to(x.dtype)


class VisionTransformer(nn.Module):
    """DeiT; `fusion` is what evaluation returns, see `fuse`: "logits" is the official code's average."""

    def __init__(self, config: ViTConfig, fusion: Fusion = "logits") -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is one of {', '.join(FUSIONS)}, got {fusion!r}")
        if fusion == "dist" and not config.distilled:
            raise ValueError('fusion="dist" needs a distilled model: this one has no distillation token')
        self.config = config
        self.fusion = fusion
        self.residual_dtype: torch.dtype | None = None  # of the sums between blocks; None: float32 under autocast
        patches = math.prod(config.grid_size)
        positions = patches + config.prefix_tokens * config.prefix_positions
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, config.width))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.patch_embed = PatchEmbed(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.head = nn.Linear(config.width, config.classes)

        # The official order of draws: the plain model first, whose position embedding the distilled one draws anew.
        _trunc_normal(self.pos_embed[:, : patches + config.prefix_positions])
        _trunc_normal(self.cls_token)
        self.apply(_init_linear)
        if config.distilled:
            self.head_dist = nn.Linear(config.width, config.classes)
            _trunc_normal(self.dist_token)
            if config.prefix_positions:
                _trunc_normal(self.pos_embed)
            _init_linear(self.head_dist)

    def drop_path_rates(self) -> list[float]:
        """Probability of dropping a residual branch in each block: from 0 rising linearly, in DeiT III the same."""
        if self.config.constant_drop_path:
            return [self.config.drop_path_rate] * self.config.depth
        return torch.linspace(0, self.config.drop_path_rate, self.config.depth).tolist()

    def no_weight_decay(self) -> set[str]:
        """Parameters that the official code leaves undecayed beside biases and norms; it does decay `dist_token`."""
        return {"pos_embed", "cls_token"}

    def features(self, images: Tensor, drop_path: Tensor | None = None, tokens: int | None = None) -> Tensor:
        """The first `tokens` after the last norm; all by default.

        Args:
            images: (B, 3, S, S), or patches (B, N, 3·P·P).
            drop_path: (depth, 2, B), see `drop_path_scales`. Without it, training draws from torch's generator.
            tokens: how many are needed; the last block computes the projection and the MLP of these only.

        Returns:
            (B, tokens or prefix + N, width): class token, distillation token if there is one, patches row by row.
        """
        x = self.patch_embed(images)
        batch = x.shape[0]
        prefix = [self.cls_token.expand(batch, -1, -1)]
        if self.config.distilled:
            prefix.append(self.dist_token.expand(batch, -1, -1))
        x = x if self.config.prefix_positions else x + self.pos_embed
        x = torch.cat([*prefix, x], dim=1)
        x = self.dropout(x + self.pos_embed if self.config.prefix_positions else x)
        x = x if self.residual_dtype is None else x.to(self.residual_dtype)
        if drop_path is None and self.training and self.config.drop_path_rate > 0:
            keep = 1 - torch.tensor(self.drop_path_rates(), device=x.device)[:, None, None]
            drop_path = torch.where(torch.rand(len(keep), 2, batch, device=x.device) < keep, 1 / keep, 0.0)
        scales: Sequence[Tensor | None] | Tensor = (
            [None] * len(self.blocks) if drop_path is None else drop_path[..., None, None]
        )
        *before, last = zip(self.blocks, scales, strict=True)
        for block, scale in before:
            x = block(x, scale)
        block, scale = last
        return self.norm(block(x, scale, tokens))

    def heads(self, images: Tensor, drop_path: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(cls_logits, dist_logits or None), each (B, classes), in training and in evaluation."""
        x = self.features(images, drop_path, self.config.prefix_tokens)
        return self.head(x[:, 0]), self.head_dist(x[:, 1]) if self.config.distilled else None

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Training: (cls_logits, dist_logits) if distilled, else logits. Evaluation: one tensor, by `fusion`."""
        cls_logits, dist_logits = self.heads(images, drop_path)
        if dist_logits is None:
            return cls_logits
        return (cls_logits, dist_logits) if self.training else fuse(cls_logits, dist_logits, self.fusion)


def fuse(cls_logits: Tensor, dist_logits: Tensor, fusion: Fusion) -> Tensor:
    """One prediction from two heads.

    "logits" averages logits (official code and timm); "softmax" averages the two softmaxes (paper §4) and returns the
    logarithm, so that the result serves as logits everywhere; "cls" and "dist" take one head.

    Arguments and result are logits (B, C) in every case.
    """
    if fusion == "softmax":
        log_probs = torch.stack([cls_logits, dist_logits]).float().log_softmax(-1)
        return log_probs.logsumexp(0) - math.log(2)
    if fusion == "logits":
        return (cls_logits + dist_logits) / 2
    return cls_logits if fusion == "cls" else dist_logits


def drop_path_scales(seed: int, step: int, positions: ArrayLike, rates: Sequence[float]) -> Tensor:
    """The factor of every residual branch: 0 where it is dropped, 1 / (1 − rate) where it is kept.

    A pure function of its arguments (Philox; stream drop-path, counter (step low, step high, position, layer), word 0
    for attention and 1 for the MLP), so it depends neither on ranks nor on restarts.

    Args:
        seed: the run's seed.
        positions: (B,) places in the global batch.
        rates: drop probability of each layer.

    Returns:
        float32 (depth, 2, B) on the CPU.
    """
    layers = np.arange(len(rates))[:, None]
    bits = philox(seed, Stream.DROP_PATH, step & 0xFFFFFFFF, step >> 32, positions, layers)
    keep = 1 - torch.tensor(rates, dtype=torch.float64)[:, None, None]
    drawn = torch.from_numpy(uniform(bits[..., :2])).transpose(1, 2)  # (depth, 2, B)
    return torch.where(drawn < keep, 1 / keep, 0.0).float()


def create_model(name: str, *, fusion: Fusion = "logits", **changes: Any) -> VisionTransformer:
    """A DeiT or DeiT III by its name, with any size changed.

    Args:
        name: deit_SIZE[_distilled]_patch16_224 or deit3_SIZE[_distilled]_patch16_224 and so on: a key of `CONFIGS`.
        fusion: what evaluation returns, see `fuse`.
        changes: fields of `ViTConfig`, e.g. classes=10, image_size=(64, 128), patch_size=8, width=128, heads=2.

    Raises:
        ValueError: unknown name (the nearest are offered), unknown or impossible size.
    """
    if name not in CONFIGS:
        raise ValueError(f"unknown model {name!r}: {did_you_mean(name, CONFIGS, CONFIGS, cutoff=0.3)}")
    unknown = changes.keys() - ViTConfig.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(ViTConfig.__dataclass_fields__)
        raise ValueError(f"unknown model size {', '.join(sorted(unknown))}: the sizes are {known}")
    return VisionTransformer(replace(CONFIGS[name], **changes), fusion)
