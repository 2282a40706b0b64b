"""How the weights follow from the loss: steps, rates, precision, seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .marks import Free, Later, Part, Rate, Seed, Shared, UpTo1e6, label, span

Precision = Literal["auto", "fp32", "bf16", "bf16-residual", "fp16"]
CompileMode = Literal["default", "max-autotune-no-cudagraphs"]


@dataclass(frozen=True)
class OptimConfig(Part):
    # Optimisation
    epochs: Annotated[int, span(1, 10**6)] = 300  # passes; an epoch is (images // batch size) steps
    batch_size: Annotated[Shared[int], span(1, 10**6), label(2)] = 1024  # global batch: all processes together
    micro_batch: Free[Shared[UpTo1e6]] = 0  # most images a process takes at once, to save memory; 0: its whole share
    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"  # sgd: Nesterov momentum 0.9; lamb: as Apex, clips at norm 1
    lr: Rate = 5e-4  # peak learning rate for a batch of 512; scaled by batch size / 512
    unscale_lr: Later[bool] = False  # --lr is the peak itself, whatever the batch
    layer_decay: Annotated[Later[float], span(0.01, 1)] = 1.0  # learning rate of a block / that of the one after it
    warmup_epochs: Annotated[float, span(0, 10**6)] = 5.0  # linear warm-up
    warmup_lr: Rate = 1e-6  # learning rate of the first step, not scaled
    min_lr: Rate = 1e-5  # learning rate at the end of the cosine, not scaled
    schedule: Literal["step", "official"] = "step"  # official: once an epoch, and one epoch late
    weight_decay: Rate = 0.05  # of matrices and of the distillation token
    decay_dist_token: bool = True  # the official code decays it, today's timm does not
    ema_decay: Annotated[float, span(0, 0.9999999)] = 0.99996  # moving average of the weights; 0: none
    precision: Shared[Precision] = "auto"  # auto: bf16 on a GPU or a CPU with AMX; -residual: sums between blocks too
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile of the model; auto: on a GPU
    compile_mode: Free[CompileMode] = "default"  # torch.compile's mode; the other tries more kernels: minutes longer
    seed: Seed = 0  # initialisation and stochastic depth
    data_seed: Annotated[Shared[Seed], label(1)] = 0  # order and augmentation

    def check(self) -> None:
        super().check()
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup-epochs {self.warmup_epochs:g} leaves nothing of --epochs {self.epochs}: "
                f"try --warmup-epochs {self.epochs / 10:g}"
            )
