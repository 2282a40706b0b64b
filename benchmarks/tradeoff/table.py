"""The networks of the paper's Table 5 with the paper's numbers (arXiv 2012.12877); speeds are of one V100."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple


class Paper(NamedTuple):
    """The paper's numbers: images/s on one V100 of 16 GB in fp32, and top-1 in per cent."""

    images_per_second: float
    imagenet: float
    real: float | None = None
    v2: float | None = None


class Network(NamedTuple):
    """One line of the table; lines of one architecture and size are measured once."""

    label: str
    architecture: str  # ours where it is one of the eight DeiT names, else timm's
    size: int  # pixels
    paper: Paper | None
    family: str  # a curve of the picture


def _deit(label: str, size: str, pixels: int, *paper: float, family: str = "DeiT") -> Network:
    distilled = "_distilled" if family != "DeiT" else ""
    return Network(label, f"deit_{size}{distilled}_patch16_{pixels}", pixels, Paper(*paper), family)


def _efficientnet(number: int, pixels: int, *paper: float) -> Network:
    return Network(f"EfficientNet-B{number}", f"efficientnet_b{number}", pixels, Paper(*paper), "EfficientNet")


# Table 5. The EfficientNets, RegNets and ViTs are timm's, as in the paper.
NETWORKS = (
    Network("RegNetY-4GF", "regnety_040", 224, Paper(1156.7, 80.0, 86.4, 69.4), "RegNetY"),
    Network("RegNetY-8GF", "regnety_080", 224, Paper(591.6, 81.7, 87.4, 70.8), "RegNetY"),
    Network("RegNetY-16GF", "regnety_160", 224, Paper(334.7, 82.9, 88.1, 72.4), "RegNetY"),
    _efficientnet(0, 224, 2694.3, 77.1, 83.5, 64.3),
    _efficientnet(1, 240, 1662.5, 79.1, 84.9, 66.9),
    _efficientnet(2, 260, 1255.7, 80.1, 85.9, 68.8),
    _efficientnet(3, 300, 732.1, 81.6, 86.8, 70.6),
    _efficientnet(4, 380, 349.4, 82.9, 88.0, 72.3),
    _efficientnet(5, 456, 169.1, 83.6, 88.3, 73.6),
    _efficientnet(6, 528, 96.9, 84.0, 88.8, 73.9),
    _efficientnet(7, 600, 55.1, 84.3),
    Network("ViT-B/16", "vit_base_patch16_384", 384, Paper(85.9, 77.9, 83.6), "ViT"),
    Network("ViT-L/16", "vit_large_patch16_384", 384, Paper(27.3, 76.5, 82.2), "ViT"),
    _deit("DeiT-Ti", "tiny", 224, 2536.5, 72.2, 80.1, 60.4),
    _deit("DeiT-S", "small", 224, 940.4, 79.8, 85.7, 68.5),
    _deit("DeiT-B", "base", 224, 292.3, 81.8, 86.7, 71.5),
    _deit("DeiT-B↑384", "base", 384, 85.9, 83.1, 87.7, 72.4),
    _deit("DeiT-Ti⚗", "tiny", 224, 2529.5, 74.5, 82.1, 62.9, family="DeiT⚗"),
    _deit("DeiT-S⚗", "small", 224, 936.2, 81.2, 86.8, 70.0, family="DeiT⚗"),
    _deit("DeiT-B⚗", "base", 224, 290.9, 83.4, 88.3, 73.2, family="DeiT⚗"),
    _deit("DeiT-B⚗↑384", "base", 384, 85.8, 84.5, 89.0, 74.8, family="DeiT⚗"),
    _deit("DeiT-Ti⚗/1000 epochs", "tiny", 224, 2529.5, 76.6, 83.9, 65.4, family="DeiT⚗/1000 epochs"),
    _deit("DeiT-S⚗/1000 epochs", "small", 224, 936.2, 82.6, 87.8, 71.7, family="DeiT⚗/1000 epochs"),
    _deit("DeiT-B⚗/1000 epochs", "base", 224, 290.9, 84.2, 88.7, 73.9, family="DeiT⚗/1000 epochs"),
    _deit("DeiT-B⚗↑384/1000 epochs", "base", 384, 85.8, 85.2, 89.3, 75.2, family="DeiT⚗/1000 epochs"),
)


def select(names: Sequence[str]) -> list[Network]:
    """The networks whose labels begin with one of `names`, in the table's order; all without names.

    Raises:
        ValueError: a name that begins none; the nearest are offered.
    """
    for name in names:
        if not any(network.label.startswith(name) for network in NETWORKS):
            labels = [network.label for network in NETWORKS]
            near = difflib.get_close_matches(name, labels, n=3, cutoff=0.3) or labels[:3]
            raise ValueError(f"no network is called {name}: did you mean {' or '.join(near)}?")
    return [network for network in NETWORKS if not names or network.label.startswith(tuple(names))]
