"""Parameter groups, optimizer, moving average and learning rate, as the official DeiT trainer has them.

    schedule = learning_rates(config, epoch_steps=5004, peak=1e-3)
    schedule(step)

Schedule "step": linear warm-up, then a cosine, both functions of the step. "official": the official trainer's, which
calls timm's `CosineLRScheduler.step(epoch)` after the epoch of that number. So the rate changes once an epoch and one
epoch late: epochs 0 and 1 both run at the warm-up's first rate, the peak is never reached (epoch 6 of DeiT has 9.993e-4
of 1e-3), and the last epoch of 300 runs at 1.0109e-5. The official trainer resumes with the rate of the next epoch; a
run continued here has the rates of one that was never interrupted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from ..config import OptimConfig
from ..model import VisionTransformer
from .lamb import Lamb

# Of our model, in timm's form; the last norm belongs to the last block, as in timm's vision transformers.
_LAYERS = {
    "stem": r"^cls_token|dist_token|pos_embed|patch_embed",
    "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
}


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_dist_token: bool = True, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Undecayed parameters (vectors, biases, and what `model.no_weight_decay()` names), then decayed ones.

    Source: timm 0.3.2 `add_weight_decay`, as facebookresearch/deit calls it. It decays the distillation token; later
    versions of timm's model exempt it, as `decay_dist_token=False` does.

    With a `layer_decay` below 1 every layer has its own groups, whose "lr_scale" is layer_decay to the power of the
    layers above it: 1 for the heads, layer_decay for the last block, layer_decay ** (depth + 1) for tokens, positions
    and patches (timm 1.0 `param_groups_layer_decay`, after BEiT).

    Raises:
        ValueError: layer_decay, and timm does not know the model's layers.
    """
    skipped: set[str] = getattr(model, "no_weight_decay", set)()
    if not decay_dist_token:
        skipped = skipped | {"dist_token"}
    parameters = dict(model.named_parameters())
    layers = dict.fromkeys(parameters, 0) if layer_decay == 1 else _layers(model)
    last = max(layers.values())
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": decay, "lr_scale": layer_decay ** (last - layer)}
        for layer in range(last + 1)
        for decay in (0.0, weight_decay)
    ]
    for name, parameter in parameters.items():
        plain = parameter.ndim <= 1 or name.endswith(".bias") or name in skipped
        groups[2 * layers[name] + (not plain)]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def _layers(model: nn.Module) -> dict[str, int]:
    """The layer of every parameter, counted from the images."""
    matcher = getattr(model, "group_matcher", None)
    if isinstance(model, VisionTransformer):
        return group_parameters(model, _LAYERS, reverse=True)
    if matcher is None:
        raise ValueError(f"the layers of a {type(model).__name__} are not known: leave --layer-decay out")
    return group_parameters(model, matcher(coarse=False), reverse=True)


def create_optimizer(config: OptimConfig, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW (betas 0.9 and 0.999, eps 1e-8), or SGD with Nesterov momentum 0.9, as timm 0.3.2 makes them by default; or
    LAMB with the same eps, as it makes Apex's FusedLAMB.

    The moments are zeros from the start. torch would allocate them in the first step: after the trial of how many rows
    fit into memory, and for SGD uninitialised where that step is skipped. The bits of every step are torch's.
    """
    # Fused: one pass over the weights, no wait for the step counter, and a flag on the device can skip the update.
    groups = parameter_groups(model, config.weight_decay, config.decay_dist_token, config.layer_decay)
    if config.optimizer == "lamb":
        return Lamb(groups, lr=lr, eps=1e-8, weight_decay=0.0)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        names: tuple[str, ...] = ("momentum_buffer",)
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=True)
    else:
        names = ("exp_avg", "exp_avg_sq")
        optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        state.update({name: torch.zeros_like(parameter) for name in names})
        if config.optimizer == "adamw":
            state["step"] = torch.zeros((), device=parameter.device)
    return optimizer


class MovingAverage:
    """Exponential moving average of a model's parameters and buffers; `module` is a model like any other.

    It starts as a copy. `decay` is the weight of the past in each `update`; 0.99996 in the official recipe.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the moving average's decay is in [0, 1), got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        average, followed = ([*one.parameters(), *one.buffers()] for one in (self.module, model))
        pairs = [(mine.detach(), theirs.detach()) for mine, theirs in zip(average, followed, strict=True)]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages, self._values = map(list, zip(*floating, strict=True))
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]  # batch norm's step counters
        self._move = _move

    def compile(self) -> None:
        """From now on one pass over values and averages; without it, `update` makes three."""
        self._move = torch.compile(_move, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Move towards the model's present weights: a few fused launches however many tensors there are.

        Where `finite`, a bool scalar on the device, is false, the average stays as it is.
        """
        self._move(self._averages, self._values, finite * (1 - self.decay))
        for average, value in self._counts:
            average.copy_(value)


def _move(averages: list[Tensor], values: list[Tensor], factor: Tensor) -> None:
    """averages += factor · (values − averages), in place; `factor` is a scalar on the device, which lerp refuses."""
    distances = torch._foreach_sub(values, averages)  # in the memory of the freed gradients
    torch._foreach_mul_(distances, factor)
    torch._foreach_add_(averages, distances)


@torch.no_grad()
def all_finite(model: nn.Module) -> bool:
    """True if no weight is NaN or infinite. The host waits for the device: for checkpoints, not for every step."""
    return bool(torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all())


def learning_rates(config: OptimConfig, epoch_steps: int, peak: float) -> Callable[[int], float]:
    """The rate as a function of the step, counted from 0 over the whole run; `peak` is the rate after warm-up.

    As in the official schedule (`warmup_prefix=False`), the cosine's phase is step / total, warm-up steps included.
    """
    start, floor = config.warmup_lr, config.min_lr

    def rate(at: float, total: int, warmup: float) -> float:
        if at < warmup:
            return start + (peak - start) * at / warmup
        return floor + (peak - floor) * (1 + math.cos(math.pi * at / total)) / 2

    if config.schedule == "official":
        return lambda step: rate(max(step // epoch_steps - 1, 0), config.epochs, config.warmup_epochs)
    total, warmup = config.epochs * epoch_steps, round(config.warmup_epochs * epoch_steps)
    return lambda step: rate(step, total, warmup)
