"""The configurations that a model of the machine predicts to be fastest: what `deit_kernels.tune` tries first.

Predicted, not measured: for a batch of 256 and 6 heads of 64 features in bf16. Nothing reads this at run time.
"""

from __future__ import annotations

from .configuration import Config, Direction

# Printed by `python -m benchmarks.compiled.order` (Triton 3.8.0, 2026-11-26): (direction, family, tokens) -> predicted
# µs and the configuration, best first.
_PREDICTED: dict[tuple[Direction, int, int], list[tuple[float, Config]]] = {
    ("forward", 80, 198): [
        (173, Config("resident", 128, 0, 8, 1, 128)),
        (186, Config("resident", 64, 0, 4, 3)),
        (190, Config("resident", 64, 0, 4, 2)),
        (192, Config("resident", 64, 0, 4, 1)),
        (199, Config("tiled", 128, 32, 4, 3)),
        (199, Config("resident", 64, 0, 4, 3, 168)),
        (201, Config("resident", 128, 0, 8, 2)),
        (202, Config("resident", 128, 0, 8, 1)),
        (203, Config("resident", 64, 0, 4, 2, 168)),
        (210, Config("resident", 64, 0, 4, 1, 168)),
        (242, Config("resident", 32, 0, 4, 1)),
        (256, Config("tiled", 64, 64, 4, 3)),
        (265, Config("tiled", 128, 64, 8, 3)),
    ],
    ("backward", 80, 198): [
        (529, Config("tiled", 128, 32, 4, 3)),
        (530, Config("two_phase", 128, 32, 4, 3)),
        (553, Config("two_phase", 128, 32, 4, 2)),
        (632, Config("two_phase", 64, 32, 4, 3, 168)),
        (677, Config("two_phase", 64, 32, 4, 2, 168)),
        (684, Config("resident", 32, 0, 8, 3)),
        (701, Config("resident", 32, 0, 8, 2)),
        (714, Config("two_phase", 64, 64, 4, 2, 168)),
        (732, Config("two_phase", 64, 64, 4, 3, 168)),
        (746, Config("resident", 16, 0, 8, 3)),
        (750, Config("tiled", 64, 64, 4, 3)),
        (756, Config("tiled", 128, 64, 8, 3)),
        (756, Config("resident", 16, 0, 8, 2)),
        (799, Config("two_phase", 128, 64, 8, 3)),
    ],
    ("forward", 80, 578): [
        (1028, Config("tiled", 128, 64, 4, 3)),
        (1077, Config("tiled", 128, 64, 4, 2)),
        (1141, Config("tiled", 128, 32, 4, 3)),
        (1149, Config("tiled", 128, 32, 4, 2)),
        (1191, Config("tiled", 64, 64, 4, 2)),
        (1193, Config("tiled", 64, 32, 4, 3)),
        (1313, Config("tiled", 128, 64, 8, 3)),
        (1342, Config("tiled", 64, 64, 4, 3)),
        (1422, Config("tiled", 64, 32, 4, 2)),
        (1549, Config("tiled", 128, 32, 8, 3)),
        (1586, Config("tiled", 128, 64, 8, 2)),
    ],
    ("backward", 80, 578): [
        (2987, Config("tiled", 128, 32, 4, 3)),
        (3086, Config("tiled", 128, 32, 4, 2)),
        (3325, Config("tiled", 128, 64, 4, 3)),
        (3539, Config("tiled", 128, 64, 4, 2)),
        (3832, Config("tiled", 64, 32, 4, 3)),
        (3864, Config("tiled", 128, 64, 8, 3)),
        (3931, Config("tiled", 64, 64, 4, 3)),
        (4125, Config("tiled", 128, 32, 8, 3)),
        (4466, Config("tiled", 64, 64, 4, 2)),
        (4473, Config("tiled", 128, 64, 8, 2)),
        (5258, Config("tiled", 64, 32, 4, 2)),
    ],
    ("forward", 90, 198): [
        (78, Config("resident", 64, 0, 4, 1, 168)),
        (83, Config("resident", 128, 0, 8, 1, 128)),
        (87, Config("resident", 64, 0, 4, 3)),
        (88, Config("resident", 64, 0, 4, 2, 168)),
        (89, Config("resident", 64, 0, 4, 2)),
        (89, Config("resident", 64, 0, 4, 1)),
        (90, Config("tiled", 64, 64, 4, 3)),
        (93, Config("resident", 64, 0, 4, 3, 168)),
        (96, Config("tiled", 128, 64, 8, 3)),
        (103, Config("tiled", 128, 32, 4, 3)),
        (106, Config("resident", 128, 0, 8, 1)),
        (108, Config("resident", 128, 0, 8, 2)),
        (131, Config("resident", 32, 0, 4, 1)),
    ],
    ("backward", 90, 198): [
        (221, Config("resident", 32, 0, 8, 3)),
        (240, Config("two_phase", 64, 32, 4, 3, 168)),
        (248, Config("resident", 32, 0, 8, 2)),
        (251, Config("two_phase", 128, 32, 4, 3)),
        (269, Config("two_phase", 64, 64, 4, 3, 168)),
        (283, Config("tiled", 128, 32, 4, 3)),
        (286, Config("two_phase", 64, 64, 4, 2, 168)),
        (295, Config("resident", 16, 0, 8, 3)),
        (297, Config("two_phase", 128, 32, 4, 2)),
        (302, Config("two_phase", 64, 32, 4, 2, 168)),
        (322, Config("tiled", 64, 64, 4, 3)),
        (338, Config("two_phase", 128, 64, 8, 3)),
        (349, Config("resident", 16, 0, 8, 2)),
        (362, Config("tiled", 128, 64, 8, 3)),
    ],
    ("forward", 90, 578): [
        (452, Config("tiled", 64, 64, 4, 3)),
        (465, Config("tiled", 64, 32, 4, 3)),
        (485, Config("tiled", 128, 64, 8, 3)),
        (515, Config("tiled", 64, 64, 4, 2)),
        (523, Config("tiled", 128, 64, 8, 2)),
        (549, Config("tiled", 64, 32, 4, 2)),
        (549, Config("tiled", 128, 64, 4, 3)),
        (575, Config("tiled", 128, 32, 4, 3)),
        (598, Config("tiled", 128, 32, 8, 3)),
        (623, Config("tiled", 128, 64, 4, 2)),
        (673, Config("tiled", 128, 32, 4, 2)),
    ],
    ("backward", 90, 578): [
        (1394, Config("tiled", 64, 32, 4, 3)),
        (1432, Config("tiled", 128, 32, 4, 3)),
        (1465, Config("tiled", 64, 64, 4, 3)),
        (1665, Config("tiled", 128, 64, 8, 3)),
        (1859, Config("tiled", 128, 32, 4, 2)),
        (1888, Config("tiled", 64, 32, 4, 2)),
        (1963, Config("tiled", 64, 64, 4, 2)),
        (1975, Config("tiled", 128, 32, 8, 3)),
        (2105, Config("tiled", 128, 64, 4, 3)),
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
