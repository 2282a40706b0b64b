"""Mixup and CutMix plans: which row of a batch is mixed with which, how, and by how much.

    mix = sample_mix(policy, seed=0, step=41, start=0, count=256, group=8)
    images = apply(batch, plan, mix)
    loss = distillation_loss(cls, dist, teacher, mix.target(labels))

A group is `group` consecutive positions of the global batch; the partner of position p in it is (p + group / 2) mod
group, so that an image never meets its own copies, which lie side by side. One λ, mode and box serve a group. Drawn in
NumPy alone: a batch has few groups, and the functions of `exact_math` give the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..distill_loss import MixedTarget
from ..philox import Stream, philox, uniform
from .exact_math import exp, log, normals
from .policy import Mix, Policy
from .rand_augment import require

MODES = ("none", "mixup", "cutmix")  # a row stores the index
GAMMA_TRIES = 16  # of which each is accepted with a chance above 0.95

# One row of a mix: struct MixRow of csrc/augment/mix.h.
MIX = np.dtype(
    [
        ("partner", np.int32),  # index into the rows of this batch
        ("mode", np.int32),  # index into MODES
        ("lam", np.float64),  # share of the row itself, in pixels and in the target
        ("box", np.int32, 4),  # top, left, height, width of what the partner gives, for CutMix
    ]
)


class Draw:
    """The fourth counter word of a group's draws."""

    KIND = 0  # whether to mix, which kind, boosts of the two gammas
    BOX = 1  # centre of the box: row, column
    GAMMAS = (16, 32)  # try t of each uses GAMMAS + t: two for a normal number, one for its test


class MixPlan(NamedTuple):
    """One row a row of the batch.

    Fields:
        rows: uint8 (B, MIX.itemsize), the C struct of `MIX`.
        partner_row: int64 (B,), index into the rows of this batch; the row itself where nothing is mixed.
        lam: float32 (B,), share of the row's own label.
    """

    rows: Tensor
    partner_row: Tensor
    lam: Tensor

    @property
    def table(self) -> NDArray[np.void]:
        """The rows as a NumPy structured array (B,) of dtype `MIX`, sharing memory; only in host memory."""
        return self.rows.numpy().view(MIX)[:, 0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MixPlan:
        """The plan on `device`; `apply` moves one that is in host memory by itself."""
        return MixPlan(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))

    def target(self, labels: Tensor) -> MixedTarget:
        """What the losses of deit_kernels take for these images: labels are int64 (B,), on the device of this plan."""
        return MixedTarget(labels, labels[self.partner_row], self.lam)


def sample_mix(policy: Policy, *, seed: int, step: int, start: int, count: int, group: int) -> MixPlan:
    """Draw how the rows [start, start + count) of the global batch of a step are mixed.

    Args:
        policy: its `mix` holds the recipe; without one nothing is mixed.
        seed: 64-bit data seed.
        step: training step, in [0, 2**64).
        start: position of the first row in the global batch, a multiple of group.
        count: rows, a multiple of group.
        group: positions that mix among themselves, even.

    Returns:
        MixPlan in host memory; for the rows of a part of the global batch it is that part of the whole plan.

    Raises:
        ValueError: a number outside its range, a group that is odd or does not divide start and count.

    Source: timm 1.0 Mixup, mode "batch", its generator replaced by Philox with the counter (step, group, draw). Beta is
    X / (X + Y) of two gammas (Marsaglia and Tsang, 2000).
    """
    require(0 <= seed < 2**64, f"seed is an integer in [0, 2**64), got {seed}")
    require(0 <= step < 2**64, f"step is an integer in [0, 2**64), got {step}")
    require(group >= 2 and group % 2 == 0, f"a mix group is an even number of rows, 2 or more, got {group}")
    require(start >= 0 and start % group == 0, f"start is a multiple of the mix group {group}, got {start}")
    require(count >= 0 and count % group == 0, f"count is a multiple of the mix group {group}, got {count}")
    rows = np.zeros(count, MIX)
    row = np.arange(count)
    rows["partner"], rows["lam"] = row, 1.0
    if policy.mix is not None and count:
        groups = start // group + np.arange(count // group)
        mode, lam, box = draw_groups(policy.mix, policy.size, seed, step, groups)
        group_row = np.repeat(np.arange(len(groups)), group)
        rows["mode"], rows["lam"], rows["box"] = mode[group_row], lam[group_row], box[group_row]
        partner = row // group * group + (row + group // 2) % group
        rows["partner"] = np.where(rows["mode"] > 0, partner, row)
    return MixPlan(
        torch.from_numpy(rows.view(np.uint8).reshape(count, MIX.itemsize)),
        torch.from_numpy(rows["partner"].astype(np.int64)),
        torch.from_numpy(rows["lam"].astype(np.float32)),
    )


def draw_groups(
    mix: Mix, size: int, seed: int, step: int, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]:
    """Mode (G,), lam (G,) and box (G, 4) of each group."""

    def words(draw: int) -> NDArray[np.uint32]:
        return philox(seed, Stream.MIX, step & 0xFFFFFFFF, step >> 32, groups, draw)

    first = words(Draw.KIND)
    unit = uniform(first)
    cut = np.full(len(groups), mix.cutmix_alpha > 0)
    if mix.cutmix_alpha > 0 and mix.mixup_alpha > 0:
        cut = unit[:, 1] < mix.switch_probability
    alpha = np.where(cut, mix.cutmix_alpha, mix.mixup_alpha)
    gammas = [
        gamma(alpha, (first[:, 2 + which] + 1.0) * 2.0**-32, lambda attempt, start=start: words(start + attempt))
        for which, start in enumerate(Draw.GAMMAS)
    ]
    lam = gammas[0] / (gammas[0] + gammas[1])

    box = cut_boxes(lam, words(Draw.BOX), size, mix.box_rounding)
    lam = np.where(cut, 1.0 - (box[:, 2] * box[:, 3]) / float(size * size), lam)
    mixes = (unit[:, 0] < mix.probability) & (lam < 1.0)
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


def cut_boxes(lam: NDArray[np.float64], bits: NDArray[np.uint32], size: int, rounding: str) -> NDArray[np.int64]:
    """Boxes (G, 4) of share 1 − lam round a random centre, clipped to the image: timm's rand_bbox."""
    cut = (size * np.sqrt(1.0 - lam)).astype(np.int64)[:, None]
    centre = ((bits[:, :2].astype(np.uint64) * np.uint64(size)) >> np.uint64(32)).astype(np.int64)
    low = np.clip(centre - cut // 2, 0, size)
    high = np.clip(centre + (cut + (rounding == "timm")) // 2, 0, size)
    return np.concatenate([low, high - low], axis=1)
