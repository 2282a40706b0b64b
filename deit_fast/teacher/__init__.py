"""The teacher: loaded, made fast, and its labels computed or read from a cache."""

from .load import efficientnet_lite0_weights, load_teacher

__all__ = ["efficientnet_lite0_weights", "load_teacher"]
