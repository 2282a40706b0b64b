"""The configurations that a model of the machine predicts to be fastest: what `deit_kernels.tune` tries first.

Predicted, not measured: for a batch of 256 and 6 heads of 64 features in bf16. Nothing reads this at run time.
"""

from __future__ import annotations

from .configuration import Config, Direction

# (direction, family, tokens) -> the configurations predicted to be fastest, best first, with their µs.
_PREDICTED: dict[tuple[Direction, int, int], list[tuple[float, Config]]] = {}
_MODELLED = {80: 80, 89: 80, 90: 90, 100: 90}  # family -> the one whose predictions it takes


def order(direction: Direction, card: int, length: int) -> list[Config]:
    """The configurations of the nearest length that has predictions, best first."""
    lengths = [tokens for way, of, tokens in _PREDICTED if (way, of) == (direction, _MODELLED[card])]
    nearest = min(lengths, key=lambda tokens: abs(tokens - length))
    return [config for _, config in _PREDICTED[direction, _MODELLED[card], nearest]]
