"""Mixup and CutMix of training batches: which row is mixed with which, and how a batch is cut so that partners stay.

`grouped` order: rows mix inside mix groups (`order.py`), each group with a λ, a mode and a box of its own, drawn from
(data seed, step, group). A group lies on one rank, so the mixed global batch is the same for every number of ranks.

`official` order: as the official code mixes. Row i of a rank's b rows is mixed with row b − 1 − i (its `x.flip(0)`),
and one λ, mode and box serve the rank's whole batch; they are drawn from (data seed, step, rank). So the batch depends
on the number of ranks.

A row whose own or whose partner's image is unreadable is blank and has no label (`BatchBuilder`): what it would have
shown is not known, and nothing takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deit_kernels.augment import MixPlan, Policy, sample_mix

from .order import Share, mix_group


@dataclass(frozen=True)
class Mixing:
    """How the batches of one rank are mixed.

    Attributes:
        policy: whose `mix` is drawn from.
        data_seed: 64-bit.
        rows: b, of this rank.
        start: position of its first row, as `sample_mix` counts them.
        group: rows that mix among themselves.
        mirrored: row i of a group meets row g − 1 − i, else the one half a group further.
    """

    policy: Policy
    data_seed: int
    rows: int
    start: int
    group: int
    mirrored: bool

    @classmethod
    def of_share(cls, policy: Policy, share: Share) -> Mixing | None:
        """The mixing of a rank's part of every global batch; None where the policy has none.

        Raises:
            ValueError: the rank's rows cannot be mixed; says which --batch-size can.
        """
        if policy.mix is None:
            return None
        rows, world_size, mirrored = share.rows, share.world_size, share.order == "official"
        group = rows if mirrored else mix_group(share.batch_size, share.repeats)
        if rows % 2 or rows % group:
            unit = (2 if mirrored else 2 * share.repeats) * world_size
            below = share.batch_size // unit * unit
            sizes = " or ".join(str(size) for size in (below, below + unit) if size)
            why = f"needs groups of {group} rows, which do not divide the {rows} rows of each of {world_size} processes"
            if mirrored:
                why = f"pairs a process's rows from both ends, so each of {world_size} needs an even number, not {rows}"
            raise ValueError(f"mixing {why}: type --batch-size {sizes}")
        return cls(policy, share.data_seed, rows, share.rank * rows, group, mirrored)

    @property
    def decision(self) -> tuple[str, str]:
        """What was decided, and why, in words."""
        if self.mirrored:
            return (
                f"all {self.group} rows of a process with one draw",
                "the official code's; other numbers of processes differ",
            )
        return f"in groups of {self.group} rows", "the smallest that part the copies of an image and fit the batch"

    def plan(self, step: int) -> MixPlan:
        """How the rows of a step are mixed, in host memory."""
        plan = sample_mix(
            self.policy, seed=self.data_seed, step=step, start=self.start, count=self.rows, group=self.group
        )
        if not self.mirrored:
            return plan
        table, row = plan.table, np.arange(self.rows)
        table["partner"] = np.where(table["mode"] > 0, self.rows - 1 - row, row)
        return plan._replace(partner_row=torch.from_numpy(table["partner"].astype(np.int64)))

    def parts(self, threads: int) -> list[NDArray[np.int64]]:
        """Rows for each of up to `threads` threads, ascending: a row and its partner are in one part."""
        if self.mirrored:
            halves = np.array_split(np.arange(self.rows // 2), threads)
            return [np.concatenate([half, self.rows - 1 - half[::-1]]) for half in halves if len(half)]
        groups = np.array_split(np.arange(self.rows).reshape(-1, self.group), threads)
        return [rows.reshape(-1) for rows in groups if len(rows)]


def part_of(plan: MixPlan, rows: NDArray[np.int64]) -> MixPlan:
    """The plan of some rows alone, ascending, that hold their partners."""
    table = plan.table[rows]
    table["partner"] = np.searchsorted(rows, table["partner"])
    bytes_ = table.view(np.uint8).reshape(len(rows), -1)
    return MixPlan(torch.from_numpy(bytes_), torch.from_numpy(table["partner"].astype(np.int64)), plan.lam[rows])
