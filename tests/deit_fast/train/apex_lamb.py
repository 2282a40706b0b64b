"""What Apex's FusedLAMB computes, a tensor at a time: csrc/multi_tensor_lamb.cu, its defaults, adam_w_mode=True."""

import torch
from torch import Tensor


class ApexLamb:
    """`groups` are (parameters, weight decay)."""

    def __init__(self, groups: list[tuple[list[Tensor], float]], eps: float = 1e-8) -> None:
        self.groups, self.eps, self.steps = groups, eps, 0
        self.moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for params, _ in groups for p in params}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.steps += 1
        norm = torch.cat([p.grad.flatten() for p in self.moments]).norm().item()
        clip = norm if norm > 1.0 else 1.0  # max_grad_norm
        for params, decay in self.groups:
            for p in params:
                m, v = self.moments[p]
                gradient = p.grad / clip
                m.mul_(0.9).add_(0.1 * gradient)
                v.mul_(0.999).add_(0.001 * gradient * gradient)
                corrected = (v / (1 - 0.999**self.steps)).sqrt() + self.eps
                update = m / (1 - 0.9**self.steps) / corrected + decay * p
                ratio = 1.0
                if decay and p.norm() > 0 and update.norm() > 0:  # without use_nvlamb only what decays is adapted
                    ratio = (p.norm() / update.norm()).item()
                p.sub_(lr * ratio * update)
