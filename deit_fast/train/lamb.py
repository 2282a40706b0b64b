"""LAMB with the settings of DeiT III, whose step is skipped by a flag on the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import timm
import timm.optim
import torch
from torch import Tensor

try:
    from timm.optim.lamb import lamb
except ImportError:  # older timm has the update inside the class only
    lamb = None  # type: ignore[assignment]

_AT_ONCE = 1 << 26  # weights that are updated together, which bounds the memory of the copies: 768 MB


class Lamb(timm.optim.Lamb):
    """timm's LAMB, which computes what Apex's FusedLAMB does with its defaults.

    The gradient of all parameters together is first clipped to the norm 1; both moments are corrected for their start
    at 0; the decay is added to the update, not to the gradient (Apex: adam_w_mode); the update of each tensor is scaled
    by norm of the weights ÷ norm of the update, where the weights are decayed (Apex: use_nvlamb=False).

    As torch's fused optimizers, it reads `found_inf`, a scalar on the device: where that is not 0, weights, moments and
    step counters keep every bit, and the host does not wait. The counters lie on the device too.
    """

    _step_supports_amp_scaling = True  # so GradScaler sets found_inf, and grad_scale where the gradients are scaled

    def __init__(self, params: Iterable[Any], lr: float, eps: float, weight_decay: float) -> None:
        if lamb is None:
            raise ValueError(f"--optimizer lamb needs timm 1.0.31, this is {timm.__version__}: pip install -U timm")
        super().__init__(params, lr=lr, eps=eps, weight_decay=weight_decay)
        for parameter in self._parameters():
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            # Not "step", which torch would put on the CPU when a checkpoint is loaded.
            self.state[parameter] = {**moments, "steps": torch.zeros((), device=parameter.device)}

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if getattr(self, "grad_scale", None) is not None:
            raise RuntimeError("scaled gradients: call scaler.unscale_(optimizer) before scaler.step(optimizer)")
        learnt = [parameter for parameter in self._parameters() if parameter.grad is not None]
        if not learnt:
            return loss
        found_inf = getattr(self, "found_inf", None)
        finite = torch.ones((), device=learnt[0].device) if found_inf is None else found_inf == 0
        # A list, since torch asks the device for the value of a single tensor.
        torch._foreach_add_([self.state[parameter]["steps"] for parameter in learnt], [finite.float()] * len(learnt))
        clip = self._get_clip_grad_norm()
        for group in self.param_groups:
            for parameters in _batches(group["params"]):
                self._update(group, parameters, clip, finite.bool())
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor], clip: Tensor, finite: Tensor) -> None:
        """timm's update of copies, which are taken over where `finite`."""
        states = [self.state[parameter] for parameter in parameters]
        kept = [parameters, *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))]
        values, averages, squares = ([tensor.clone() for tensor in tensors] for tensors in kept)
        steps = states[0]["steps"].double().clamp_min(1)  # in float32, 1 - 0.999 would be wrong by 5e-5 of itself
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        beta1, beta2 = group["betas"]
        lamb(
            values, gradients, averages, squares, clip_grad_norm=clip, foreach=True, lr=group["lr"], beta1=beta1,
            beta2=beta2, beta3=1 - beta1, bias_correction1=(1 - beta1**steps).float(),
            bias_correction2=(1 - beta2**steps).float(), eps=group["eps"], weight_decay=group["weight_decay"],
            decoupled_decay=False, max_lr=None, trust_clip=False, always_adapt=False, caution=False,
        )  # fmt: skip
        for old, new in zip(itertools.chain(*kept), [*values, *averages, *squares], strict=True):
            torch.where(finite, new, old, out=old)


def _batches(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters that have a gradient, in batches of at most `_AT_ONCE` weights, or of one parameter."""
    batch: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if batch and sum(map(torch.numel, batch)) + parameter.numel() > _AT_ONCE:
            yield batch
            batch = []
        batch.append(parameter)
    if batch:
        yield batch
