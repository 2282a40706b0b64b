"""How groups of rows are mixed, drawn in NumPy: what csrc/arithmetic/sample_mix.h draws, with equal bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...philox import Stream, philox, uniform
from ..mix import MIX, MIX_NUMBERS, MODES
from .exact_math import exp, log, normals

GAMMA_TRIES = 16  # of which each is accepted with a chance above 0.95


class Draw:
    """The fourth counter word of a group's draws."""

    KIND = 0  # whether to mix, which kind, boosts of the two gammas
    BOX = 1  # centre of the box: row, column
    GAMMAS = (16, 32)  # try t of each uses GAMMAS + t: two for a normal number, one for its test


def sample_rows(numbers: Tensor, count: int) -> Tensor:
    """Rows uint8 (count, MIX.itemsize) for a `MIX_NUMBERS`; see `sample_mix`."""
    drawn = numbers.numpy().view(MIX_NUMBERS)[0]
    group, rows, row = int(drawn["group"]), np.zeros(count, MIX), np.arange(count)
    groups = int(drawn["start"]) // group + np.arange(count // group)
    mode, lam, box = draw_groups(drawn, groups)
    rows["mode"], rows["lam"], rows["box"] = (np.repeat(mode, group), np.repeat(lam, group), np.repeat(box, group, 0))
    rows["partner"] = np.where(rows["mode"] > 0, row // group * group + (row + group // 2) % group, row)
    return torch.from_numpy(rows.view(np.uint8).reshape(count, MIX.itemsize))


def draw_groups(
    mix: np.void, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]:
    """Mode (G,), lam (G,) and box (G, 4) of each group, drawn from a `MIX_NUMBERS`."""
    step, size, mixup_alpha, cutmix_alpha = (mix[name] for name in ("step", "size", "mixup_alpha", "cutmix_alpha"))

    def words(draw: int) -> NDArray[np.uint32]:
        return philox(int(mix["seed"]), Stream.MIX, int(step) & 0xFFFFFFFF, int(step) >> 32, groups, draw)

    first = words(Draw.KIND)
    unit = uniform(first)
    cut = np.full(len(groups), cutmix_alpha > 0)
    if cutmix_alpha > 0 and mixup_alpha > 0:
        cut = unit[:, 1] < mix["switch_probability"]
    alpha = np.where(cut, cutmix_alpha, mixup_alpha).astype(np.float64)

    def drawn(which: int, start: int) -> NDArray[np.float64]:
        return gamma(
            alpha, (first[:, 2 + which].astype(np.float64) + 1.0) * 2.0**-32, lambda attempt: words(start + attempt)
        )

    gammas = [drawn(which, start) for which, start in enumerate(Draw.GAMMAS)]
    lam = gammas[0] / (gammas[0] + gammas[1])

    box = cut_boxes(lam, words(Draw.BOX), int(size), bool(mix["round_up"]))
    lam = np.where(cut, 1.0 - (box[:, 2] * box[:, 3]) / float(int(size) * int(size)), lam)
    mixes = (unit[:, 0] < mix["probability"]) & (lam < 1.0)
    mode = np.where(mixes, np.where(cut, MODES.index("cutmix"), MODES.index("mixup")), 0).astype(np.int32)
    return mode, np.where(mixes, lam, 1.0), np.where((mixes & cut)[:, None], box, 0)


def gamma(
    alpha: NDArray[np.float64], boost: NDArray[np.float64], words: Callable[[int], NDArray[np.uint32]]
) -> NDArray[np.float64]:
    """Gamma(alpha) numbers: Marsaglia and Tsang for alpha + 1, then times boost ** (1 / alpha) for boost in (0, 1]."""
    d = alpha + 1.0 - 1.0 / 3.0
    c = 1.0 / np.sqrt(9.0 * d)
    result, pending = d.copy(), np.ones(len(alpha), bool)
    for attempt in range(GAMMA_TRIES):
        bits = words(attempt)
        x = normals(bits[:, 0], bits[:, 1])[0]
        v = 1.0 + c * x
        v = v * v * v
        positive = v > 0
        log_v = log(np.where(positive, v, 1.0))
        log_u = log((bits[:, 2] + 1.0) * 2.0**-32)
        accepted = pending & positive & (log_u < 0.5 * x * x + d - d * v + d * log_v)
        result = np.where(accepted, d * v, result)
        pending &= ~accepted
        if not pending.any():
            break
    # The smallest alpha, 0.01, would underflow: e**-690 is as good as 0.
    return result * exp(np.maximum(log(boost) / alpha, -690.0))


def cut_boxes(lam: NDArray[np.float64], bits: NDArray[np.uint32], size: int, round_up: bool) -> NDArray[np.int64]:
    """Boxes (G, 4) of share 1 − lam round a random centre, clipped to the image: timm's rand_bbox."""
    cut = (size * np.sqrt(1.0 - lam)).astype(np.int64)[:, None]
    centre = ((bits[:, :2].astype(np.uint64) * np.uint64(size)) >> np.uint64(32)).astype(np.int64)
    low = np.clip(centre - cut // 2, 0, size)
    high = np.clip(centre + (cut + round_up) // 2, 0, size)
    return np.concatenate([low, high - low], axis=1)
