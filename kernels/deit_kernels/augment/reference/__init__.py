"""The augmentation in NumPy, exact: what C++ and CUDA must equal bit for bit, and what runs where they are not built.

`sample` draws a plan, `mix` the mixing of a step; `resize` joins a plan with a batch, crops, resizes and flips; `ops`
runs what changes pixels; `finish` normalises, erases, mixes and lays out. Images are uint8 until then, as in Pillow.
"""

from . import finish, mix, ops, resize, sample

__all__ = ["finish", "mix", "ops", "resize", "sample"]
