"""Attention for the short sequences of vision transformers: packed qkv in, packed gradient out."""

from .op import attention, attention_qkvpacked, attention_unsupported_reasons

__all__ = ["attention", "attention_qkvpacked", "attention_unsupported_reasons"]
