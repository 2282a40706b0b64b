"""Mixup and CutMix of training batches: which rows are mixed, and how a batch is cut without parting them.

`grouped` order: rows mix inside mix groups (`order.py`), each with its own λ, mode and box, drawn from (data seed,
step, group). A group is on one rank, so the mixed global batch is the same for any number of ranks.

`official` order: as the official code mixes. Row i of a rank's b rows is mixed with row b − 1 − i (its `x.flip(0)`).
The whole batch of a rank has the same λ, mode and box, drawn from (data seed, step, rank). So the batch depends on the
number of ranks.

If the image of a row or of its partner is unreadable, the row is blank and has no label (`BatchBuilder`).
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
    """How the batches of one rank are mixed."""

    policy: Policy
    share: Share
    group: int  # g, rows that mix among themselves
    mirrored: bool  # row i of a group is mixed with row g − 1 − i, else with row (i + g/2) mod g

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
        return cls(policy, share, group, mirrored)

    @property
    def decision(self) -> tuple[str, str]:
        """(value, reason), for `Reporter.decide`."""
        if self.mirrored:
            reason = "the official code's; other numbers of processes differ"
            return f"all {self.group} rows of a process with one draw", reason
        return f"in groups of {self.group} rows", "the smallest that keep copies of an image apart and fit the batch"

    def plan(self, step: int) -> MixPlan:
        """The plan of a step, in host memory."""
        seed, rows, start = self.share.data_seed, self.share.rows, self.share.rank * self.share.rows
        plan = sample_mix(self.policy, seed=seed, step=step, start=start, count=rows, group=self.group)
        if not self.mirrored:
            return plan
        table, row = plan.table, np.arange(rows)
        table["partner"] = np.where(table["mode"] > 0, rows - 1 - row, row)
        return plan._replace(partner_row=torch.from_numpy(table["partner"].astype(np.int64)))


def parts_of(count: int, mixing: Mixing | None, threads: int) -> list[NDArray[np.int64]]:
    """`count` rows divided among up to `threads` threads, ascending; a row and its partner are in the same part."""
    if mixing is not None and mixing.mirrored:
        halves = np.array_split(np.arange(count // 2), threads)
        return [np.concatenate([half, count - 1 - half[::-1]]) for half in halves if len(half)]
    groups = np.array_split(np.arange(count).reshape(-1, 1 if mixing is None else mixing.group), threads)
    return [rows.reshape(-1) for rows in groups if len(rows)]


def part_of(plan: MixPlan, rows: NDArray[np.int64]) -> MixPlan:
    """The plan of some of the rows, which are ascending and include their partners."""
    table = plan.table[rows]
    table["partner"] = np.searchsorted(rows, table["partner"])
    bytes_ = table.view(np.uint8).reshape(len(rows), -1)
    return MixPlan(torch.from_numpy(bytes_), torch.from_numpy(table["partner"].astype(np.int64)), plan.lam[rows])
