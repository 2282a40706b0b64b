"""The weight of every class in the loss, for data of which some classes have few images: --class-weights.

balanced     n / (C · n_c) of n images in C classes, n_c in the class, as scikit-learn
effective    (1 − β) / (1 − β^n_c), β = 0.9999, divided by its mean over the classes (arXiv 1901.05555)
FILE         a weight for every class: lines "CLASS WEIGHT", or JSON {"CLASS": WEIGHT}
             A class without a training image is none of the C and has the weight 1, but in a FILE.
"""

import json
from collections import Counter
from math import inf, log
from pathlib import Path

import torch
from torch import Tensor

from ..files import shown
from .sources.dataset import Dataset


def class_weights(spec: str, dataset: Dataset) -> Tensor:
    """The weights float64 (C,); ValueError if a file does not name every class once, or holds what is no weight."""
    if spec not in ("balanced", "effective"):
        return _of_file(spec, [*map(shown, dataset.classes)])
    counts = torch.from_numpy(dataset.labels).bincount(minlength=len(dataset.classes)).double()
    images = counts[counts > 0]
    rarity = 1 / images if spec == "balanced" else -1 / torch.expm1(images * log(0.9999))
    rarity *= images.mean() if spec == "balanced" else 1 / rarity.mean()
    return torch.ones_like(counts).masked_scatter(counts > 0, rarity)


def _of_file(spec: str, classes: list[str]) -> Tensor:
    try:
        text = Path(spec).read_text(encoding="utf-8")
        lines = [line.rsplit(None, 1) for line in map(str.strip, text.splitlines()) if line]
        pairs = json.loads(text, object_pairs_hook=list) if text.lstrip().startswith("{") else lines
        given, named = {name: float(weight) for name, weight in pairs}, Counter(name for name, _ in pairs)
    except OSError as error:
        problem = f"cannot be read ({error.strerror}): type balanced, effective, or the path of a file of weights"
        raise ValueError(f"--class-weights {spec} {problem}") from error
    except (ValueError, TypeError, RecursionError) as error:
        problem = f"holds no class weights ({error})"
    else:
        if unknown := [*(named - Counter(classes))]:
            problem = f"names {unknown[0]!r}{' twice' if unknown[0] in classes else ', which is no class of the data'}"
        elif missing := [*(Counter(classes) - named)]:
            problem = f"has no weight for {missing[0]!r}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
        elif bad := [name for name, weight in given.items() if not 0 <= weight < inf]:
            problem = f"gives {bad[0]!r} the weight {given[bad[0]]}"
        elif any(given.values()):
            return torch.tensor([given[name] for name in classes], dtype=torch.float64)
        else:
            problem = "gives every class the weight 0"
    advice = 'write a line CLASS WEIGHT for every class, or JSON {"CLASS": WEIGHT}, with finite weights of at least 0'
    raise ValueError(f"--class-weights {spec} {problem}: {advice}")
