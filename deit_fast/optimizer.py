"""Parameter groups, optimizer and moving average, as the official DeiT trainer has them unless said otherwise."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .config import Config


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
