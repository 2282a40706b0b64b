"""The learning rate of every step.

    schedule = learning_rates(config, epoch_steps=5004, peak=1e-3)
    schedule(step)

"step": linear warm-up, then a cosine, both following the step. "official": as the official trainer sets it, which calls
timm's `CosineLRScheduler.step(epoch)` after the epoch of that number. So the rate changes once an epoch and one epoch
late: epochs 0 and 1 both run at the warm-up's first rate, the peak is never reached (epoch 6 of DeiT has 9.993e-4 of
1e-3), and the last epoch of 300 runs at 1.0109e-5. Where the official trainer resumes it uses the rate of the next
epoch; a run continued here has the rates of one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from .config import Config


def learning_rate(step: float, *, total: int, warmup: float, peak: float, start: float, floor: float) -> float:
    """Linear warm-up from `start` to `peak`, then a cosine to `floor`, for steps 0 … total − 1.

    The cosine is a function of step / total, not of the steps after warm-up, as the official schedule
    (`warmup_prefix=False`).
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    return floor + (peak - floor) * (1 + math.cos(math.pi * step / total)) / 2


def learning_rates(config: Config, epoch_steps: int, peak: float) -> Callable[[int], float]:
    """The rate as a function of the step, counted from 0 over the whole run.

    Args:
        epoch_steps: steps of an epoch.
        peak: the rate after warm-up.
    """
    ends = {"peak": peak, "start": config.warmup_lr, "floor": config.min_lr}
    if config.schedule == "official":
        late = partial(learning_rate, total=config.epochs, warmup=config.warmup_epochs, **ends)
        return lambda step: late(max(step // epoch_steps - 1, 0))
    total, warmup = config.epochs * epoch_steps, round(config.warmup_epochs * epoch_steps)
    return partial(learning_rate, total=total, warmup=warmup, **ends)
