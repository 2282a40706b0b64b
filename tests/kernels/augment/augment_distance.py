"""How far two samples are apart, for tests that compare our draws with timm's."""

import numpy as np


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Kolmogorov and Smirnov's: the largest gap between two empirical distributions."""
    points = np.concatenate([ours, theirs])
    shares = [np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (ours, theirs)]
    return float(np.abs(shares[0] - shares[1]).max())
