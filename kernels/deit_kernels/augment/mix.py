"""Mixup and CutMix plans: which row of a batch is mixed with which, how, and by how much.

    mix = sample_mix(policy, seed=0, step=41, start=0, count=256, group=8)
    images = apply(batch, plan, mix)
    loss = distillation_loss(cls, dist, teacher, mix.target(labels))

A group is `group` consecutive positions of the global batch; the partner of position p in it is (p + group / 2) mod
group, so that an image never meets its own copies, which lie side by side. One λ, mode and box serve a group.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..distill_loss import MixedTarget
from .policy import Policy
from .rand_augment import require

MODES = ("none", "mixup", "cutmix")  # a row stores the index

# One row of a mix: struct MixRow of csrc/arithmetic/mix.h.
MIX = np.dtype(
    [
        ("partner", np.int32),  # index into the rows of this batch
        ("mode", np.int32),  # index into MODES
        ("lam", np.float64),  # share of the row itself, in pixels and in the target
        ("box", np.int32, 4),  # top, left, height, width of what the partner gives, for CutMix
    ]
)

# What the rows of a step are drawn from: struct MixPolicy of csrc/arithmetic/sample_mix.h.
MIX_NUMBERS = np.dtype(
    [
        *((name, np.uint64) for name in ("seed", "step")),
        *((name, np.int64) for name in ("start", "group")),
        *((name, np.float64) for name in ("mixup_alpha", "cutmix_alpha", "probability", "switch_probability")),
        ("size", np.int32),
        ("round_up", np.int32),  # whether a CutMix box of odd side keeps its last pixel
    ]
)


class MixPlan(NamedTuple):
    """One row per row of the batch.

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
    if policy.mix is None or not count:
        unmixed = np.zeros(count, MIX)
        unmixed["partner"], unmixed["lam"] = np.arange(count), 1.0
        rows = torch.from_numpy(unmixed.view(np.uint8).reshape(count, MIX.itemsize))
    else:
        mix = policy.mix
        alphas = mix.mixup_alpha, mix.cutmix_alpha, mix.probability, mix.switch_probability
        record = (seed, step, start, group, *alphas, policy.size, mix.box_rounding == "timm")
        numbers = torch.from_numpy(np.array([record], MIX_NUMBERS).view(np.uint8))
        rows = torch.ops.deit_kernels._augment_sample_mix(numbers, count)
    table = rows.numpy().view(MIX)[:, 0]
    return MixPlan(
        rows, torch.from_numpy(table["partner"].astype(np.int64)), torch.from_numpy(table["lam"].astype(np.float32))
    )
