"""The configurations that a model of the machine predicts to be fastest: what `deit_kernels.tune` tries first.

Predicted, not measured: for a batch of 256 and 6 heads of 64 features in bf16. Nothing reads this at run time.
"""

from __future__ import annotations

from .configuration import Config, Direction

# Printed by `python -m benchmarks.compiled.order` (Triton 3.8.0, 2026-11-26): (direction, family, tokens) -> predicted
# µs and the configuration, best first.
_PREDICTED: dict[tuple[Direction, int, int], list[tuple[float, Config]]] = {
    ("forward", 80, 198): [
        (169, Config("resident", 128, 0, 8, 1, 128)),
        (182, Config("resident", 64, 0, 4, 3)),
        (189, Config("resident", 64, 0, 4, 2)),
        (190, Config("resident", 64, 0, 4, 1)),
        (197, Config("resident", 64, 0, 4, 3, 168)),
        (199, Config("tiled", 128, 32, 4, 3)),
        (199, Config("resident", 64, 0, 4, 2, 168)),
        (201, Config("resident", 128, 0, 8, 2)),
        (202, Config("resident", 128, 0, 8, 1)),
        (209, Config("resident", 64, 0, 4, 1, 168)),
        (242, Config("resident", 32, 0, 4, 1)),
        (253, Config("tiled", 64, 64, 4, 3)),
        (265, Config("tiled", 128, 64, 8, 3)),
    ],
    ("backward", 80, 198): [
        (529, Config("two_phase", 128, 32, 4, 3)),
        (531, Config("tiled", 128, 32, 4, 3)),
        (541, Config("two_phase", 128, 32, 4, 2)),
        (629, Config("two_phase", 64, 32, 4, 3, 168)),
        (672, Config("two_phase", 64, 32, 4, 2, 168)),
        (684, Config("resident", 32, 0, 8, 3)),
        (701, Config("resident", 32, 0, 8, 2)),
        (708, Config("two_phase", 64, 64, 4, 2, 168)),
        (721, Config("tiled", 64, 64, 4, 3)),
        (725, Config("two_phase", 64, 64, 4, 3, 168)),
        (746, Config("resident", 16, 0, 8, 3)),
        (756, Config("resident", 16, 0, 8, 2)),
        (756, Config("tiled", 128, 64, 8, 3)),
        (799, Config("two_phase", 128, 64, 8, 3)),
    ],
    ("forward", 80, 578): [
        (999, Config("tiled", 128, 64, 4, 3)),
        (1056, Config("tiled", 128, 64, 4, 2)),
        (1095, Config("tiled", 128, 32, 4, 3)),
        (1125, Config("tiled", 128, 32, 4, 2)),
        (1146, Config("tiled", 64, 64, 4, 2)),
        (1157, Config("tiled", 64, 32, 4, 3)),
        (1293, Config("tiled", 64, 64, 4, 3)),
        (1313, Config("tiled", 128, 64, 8, 3)),
        (1422, Config("tiled", 64, 32, 4, 2)),
        (1549, Config("tiled", 128, 32, 8, 3)),
        (1586, Config("tiled", 128, 64, 8, 2)),
    ],
    ("backward", 80, 578): [
        (2993, Config("tiled", 128, 32, 4, 3)),
        (3090, Config("tiled", 128, 32, 4, 2)),
        (3325, Config("tiled", 128, 64, 4, 3)),
        (3540, Config("tiled", 128, 64, 4, 2)),
        (3848, Config("tiled", 64, 32, 4, 3)),
        (3863, Config("tiled", 64, 64, 4, 3)),
        (3865, Config("tiled", 128, 64, 8, 3)),
        (4125, Config("tiled", 128, 32, 8, 3)),
        (4462, Config("tiled", 64, 64, 4, 2)),
        (4473, Config("tiled", 128, 64, 8, 2)),
        (5259, Config("tiled", 64, 32, 4, 2)),
    ],
    ("forward", 90, 198): [
        (78, Config("resident", 64, 0, 4, 1, 168)),
        (84, Config("resident", 128, 0, 8, 1, 128)),
        (86, Config("resident", 64, 0, 4, 3)),
        (87, Config("tiled", 64, 64, 4, 3)),
        (88, Config("resident", 64, 0, 4, 2, 168)),
        (89, Config("resident", 64, 0, 4, 1)),
        (89, Config("resident", 64, 0, 4, 2)),
        (92, Config("resident", 64, 0, 4, 3, 168)),
        (96, Config("tiled", 128, 64, 8, 3)),
        (102, Config("tiled", 128, 32, 4, 3)),
        (106, Config("resident", 128, 0, 8, 1)),
        (108, Config("resident", 128, 0, 8, 2)),
        (131, Config("resident", 32, 0, 4, 1)),
    ],
    ("backward", 90, 198): [
        (221, Config("resident", 32, 0, 8, 3)),
        (240, Config("two_phase", 64, 32, 4, 3, 168)),
        (248, Config("resident", 32, 0, 8, 2)),
        (253, Config("two_phase", 128, 32, 4, 3)),
        (269, Config("two_phase", 64, 64, 4, 3, 168)),
        (284, Config("tiled", 128, 32, 4, 3)),
        (286, Config("two_phase", 64, 64, 4, 2, 168)),
        (296, Config("resident", 16, 0, 8, 3)),
        (297, Config("two_phase", 128, 32, 4, 2)),
        (302, Config("two_phase", 64, 32, 4, 2, 168)),
        (330, Config("tiled", 64, 64, 4, 3)),
        (338, Config("two_phase", 128, 64, 8, 3)),
        (350, Config("resident", 16, 0, 8, 2)),
        (362, Config("tiled", 128, 64, 8, 3)),
    ],
    ("forward", 90, 578): [
        (447, Config("tiled", 64, 64, 4, 3)),
        (450, Config("tiled", 64, 32, 4, 3)),
        (475, Config("tiled", 128, 64, 8, 3)),
        (512, Config("tiled", 64, 64, 4, 2)),
        (523, Config("tiled", 128, 64, 8, 2)),
        (537, Config("tiled", 128, 64, 4, 3)),
        (551, Config("tiled", 64, 32, 4, 2)),
        (560, Config("tiled", 128, 32, 4, 3)),
        (595, Config("tiled", 128, 32, 8, 3)),
        (615, Config("tiled", 128, 64, 4, 2)),
        (671, Config("tiled", 128, 32, 4, 2)),
    ],
    ("backward", 90, 578): [
        (1364, Config("tiled", 64, 32, 4, 3)),
        (1422, Config("tiled", 128, 32, 4, 3)),
        (1472, Config("tiled", 64, 64, 4, 3)),
        (1665, Config("tiled", 128, 64, 8, 3)),
        (1859, Config("tiled", 128, 32, 4, 2)),
        (1868, Config("tiled", 64, 32, 4, 2)),
        (1963, Config("tiled", 64, 64, 4, 2)),
        (1976, Config("tiled", 128, 32, 8, 3)),
        (2106, Config("tiled", 128, 64, 4, 3)),
        (2126, Config("tiled", 128, 64, 8, 2)),
        (2270, Config("tiled", 128, 64, 4, 2)),
    ],
}
_MODELLED = {80: 80, 89: 80, 90: 90, 100: 90}  # family -> the one whose predictions it takes


def order(direction: Direction, card: int, length: int) -> list[Config]:
    """The configurations of the nearest length that has predictions, best first."""
    lengths = [tokens for way, of, tokens in _PREDICTED if (way, of) == (direction, _MODELLED[card])]
    nearest = min(lengths, key=lambda tokens: abs(tokens - length))
    return [config for _, config in _PREDICTED[direction, _MODELLED[card], nearest]]
