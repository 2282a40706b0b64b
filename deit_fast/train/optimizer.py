"""Parameter groups, optimizer, moving average and learning rate, as the official DeiT trainer has them.

    schedule = learning_rates(config, epoch_steps=5004, peak=1e-3)
    schedule(step)

Schedule "step": linear warm-up, then a cosine, both following the step. "official": as the official trainer sets it,
which calls timm's `CosineLRScheduler.step(epoch)` after the epoch of that number. So the rate changes once an epoch and
one epoch late: epochs 0 and 1 both run at the warm-up's first rate, the peak is never reached (epoch 6 of DeiT has
9.993e-4 of 1e-3), and the last epoch of 300 runs at 1.0109e-5. Where the official trainer resumes it uses the rate of
the next epoch; a run continued here has the rates of one that was never interrupted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..config import Config


def parameter_groups(model: nn.Module, weight_decay: float, decay_dist_token: bool = True) -> list[dict]:
    """Decayed and undecayed parameters: no decay for vectors, biases, and what `model.no_weight_decay()` names.

    Source: timm 0.3.2 `add_weight_decay`, as facebookresearch/deit calls it. It decays the distillation token, which
    timm's model has exempted since; `decay_dist_token=False` does too.
    """
    skipped = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    if not decay_dist_token:
        skipped = skipped | {"dist_token"}
    decayed, undecayed = [], []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or name.endswith(".bias") or name in skipped
        (undecayed if plain else decayed).append(parameter)
    return [{"params": undecayed, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def create_optimizer(config: Config, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW (betas 0.9 and 0.999, eps 1e-8), or SGD with Nesterov momentum 0.9, as timm 0.3.2 makes them by default.

    Moments are there, and 0, from the start. torch makes them in the first step: later than memory is tried out, and
    SGD's of whatever fresh memory holds where that step is left out. The bits of every step are torch's.
    """
    groups = parameter_groups(model, config.weight_decay, config.decay_dist_token)
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    for parameter in model.parameters():
        if config.optimizer == "sgd":
            moments = {"momentum_buffer": torch.zeros_like(parameter)}
        else:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            moments["step"] = torch.zeros((), device=parameter.device)
        optimizer.state[parameter].update(moments)
    return optimizer


class MovingAverage:
    """Exponential moving average of a model's parameters and buffers; `module` is a model like any other.

    Args:
        model: what to follow; the average starts as a copy of it.
        decay: weight of the past in each `update`; 0.99996 in the official recipe.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the moving average's decay is in [0, 1), got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._pairs = _floating_pairs(self.module, model)
        self._counts = [
            pair for pair in zip(self.module.buffers(), model.buffers(), strict=True) if not pair[0].is_floating_point()
        ]

    @torch.no_grad()
    def update(self, finite: Tensor | None = None) -> None:
        """Move towards the model's present weights: a few fused launches however many tensors there are.

        Args:
            finite: bool scalar on the device; where it is false the average stays as it is.
        """
        averages, values = self._pairs
        if finite is None:
            torch._foreach_lerp_(averages, values, 1 - self.decay)
        else:
            # By a factor on the device, which lerp does not take for a list; the memory is what the gradients had.
            distances = torch._foreach_sub(values, averages)
            torch._foreach_mul_(distances, finite * (1 - self.decay))
            torch._foreach_add_(averages, distances)
        for average, value in self._counts:  # batch-norm step counters
            average.copy_(value)


def _floating_pairs(average: nn.Module, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    pairs = zip([*average.parameters(), *average.buffers()], [*model.parameters(), *model.buffers()], strict=True)
    floating = [(mine.detach(), theirs.detach()) for mine, theirs in pairs if mine.is_floating_point()]
    averages, values = zip(*floating, strict=True)
    return list(averages), list(values)


@torch.no_grad()
def all_finite(model: nn.Module) -> bool:
    """Whether every weight is a number. The host waits for the device: for checkpoints, not for every step."""
    return bool(torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all())


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
