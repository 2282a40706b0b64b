"""Our attention in other people's models: timm's and Hugging Face's vision transformers, weights and outputs unchanged.

    from deit_kernels.integrations import patch_timm, register_huggingface

    patch = patch_timm(timm.create_model("deit_small_patch16_224"))
    print(patch.changed, patch.skipped)          # 12 {}

    register_huggingface()
    DeiTModel.from_pretrained(..., attn_implementation="deit_kernels")

Both run our kernels where `attention_unsupported_reasons` is empty, and PyTorch's SDPA elsewhere. timm and transformers
are imported by these functions only.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..short_attention import attention, attention_qkvpacked


class Patch(NamedTuple):
    """What `patch_timm` did.

    Attributes:
        changed: attention modules that now call `attention_qkvpacked`.
        skipped: name of every other attention module -> why it was left alone.
    """

    changed: int
    skipped: dict[str, str]


def patch_timm(model: nn.Module, *, strict: bool = False) -> Patch:
    """Let the attention modules of a timm model call `attention_qkvpacked`; parameters and their names stay.

    Changed are modules of exactly `timm.layers.Attention`, which ViT, DeiT and their many relatives use, without q/k
    norm. A call with a mask, a causal flag or attention dropout in training runs SDPA, as timm's own does.

    Graphs that torch.fx traces, such as the feature extractors of timm and torchvision, call our kernels too, in nodes
    named `packed_attention`. TorchScript compiles a patched model and runs SDPA: a script holds no Triton kernel.

    Args:
        model: changed in place; a second call changes nothing. It can still be copied, saved, compiled.
        strict: refuse a model of which a block would be left alone.

    Returns:
        how many modules changed, and why others did not.

    Raises:
        ValueError: strict, and some modules cannot be replaced (which, and why) or there are none; nothing is changed.
    """
    packed = packed_timm_attention()
    change, skipped, already = [], {}, False
    for name, module in model.named_modules():
        if type(module) is packed:
            already = True
        elif "attention" in type(module).__name__.lower():
            reason = _why_not(module, packed)
            if reason is None:
                change.append(module)
            else:
                skipped[name] = reason
    if strict and (skipped or not (change or already)):
        raise ValueError(_refusal(model, skipped))
    for module in change:
        module.__class__ = packed
    return Patch(len(change), skipped)


def _refusal(model: nn.Module, skipped: dict[str, str]) -> str:
    if not skipped:
        return f"a {type(model).__name__} has no attention module: there is nothing to replace"
    blocks: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        blocks.setdefault(reason, []).append(name)
    listed = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in blocks.items())
    return f"the attention of {len(skipped)} modules cannot be replaced, so none was. {listed}"


def _why_not(module: nn.Module, packed: type[nn.Module]) -> str | None:
    known = packed.__bases__[0]
    if type(module) is not known:
        return f"{type(module).__name__} is not timm.layers.Attention: it may add rope, a bias or windows"
    if not isinstance(module.q_norm, nn.Identity) or not isinstance(module.k_norm, nn.Identity):
        return "it normalises queries and keys"
    return None


@torch.fx.wrap  # one node of a traced graph: which attention runs is decided by its arguments when the graph runs
def packed_attention(qkv: Tensor, attn_mask: Tensor | None, is_causal: bool, dropout_p: float, scale: float) -> Tensor:
    """qkv (B, N, 3, H, D) -> (B, N, H, D), by our kernels; with a mask, dropout or a causal flag by SDPA."""
    if torch.jit.is_scripting() or attn_mask is not None or is_causal or dropout_p > 0:
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        return out.transpose(1, 2)
    return attention_qkvpacked(qkv, scale=scale)


@functools.cache
def packed_timm_attention() -> type[nn.Module]:
    from timm.layers import Attention

    class PackedTimmAttention(Attention):
        def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, D), a view
            dropout = self.attn_drop.p if self.training else 0.0
            out = self.norm(packed_attention(qkv, attn_mask, is_causal, dropout, self.scale).flatten(2))
            gate = getattr(self, "gate", None)  # timm >= 1.0.28
            if gate is not None:
                out = out * gate(x).sigmoid()
            return self.proj_drop(self.proj(out))

    # Where pickle looks for it: the package's __getattr__ makes it there.
    PackedTimmAttention.__module__, PackedTimmAttention.__qualname__ = __package__, "PackedTimmAttention"
    return PackedTimmAttention


def register_huggingface(name: str = "deit_kernels") -> str:
    """Register `attention` with transformers as an attn_implementation; returns its name.

    Models of the attention interface take it by `attn_implementation=name` or `model.set_attn_implementation(name)`.
    Calls with a mask, a causal model or an argument that `attention` lacks run transformers' own SDPA function.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, _huggingface_attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def _huggingface_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = [name for name in ("position_bias", "cache", "softcap", "s_aux") if others.get(name) is not None]
    if attention_mask is not None or causal or unknown or query.shape[1] != key.shape[1]:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **others
        )
    return attention(query, key, value, dropout_p=dropout, scale=scaling).transpose(1, 2), None
