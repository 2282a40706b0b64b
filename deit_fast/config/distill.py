"""What is learnt from the labels, and what from a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .marks import BelowOne, Free, Later, Part, Ref, Taught, UpTo1e5, span


@dataclass(frozen=True)
class DistillConfig(Part):
    # Distillation
    distill: Taught[Literal["none", "soft", "hard"]] = "none"  # learn nothing, the teacher's distribution, or its label
    distill_on: Taught[Literal["token", "class"]] = "token"  # which head learns from the teacher
    teacher: Taught[Ref] = ""  # timm name, weights file, run folder, module:function, or recipe:NAME to train one first
    teacher_model: Taught[str] = "regnety_160"  # architecture (timm name) when --teacher is a weights file
    teacher_cache: Free[str] = ""  # folder of the teacher's labels: those in it are used, the others written into it
    teacher_top_k: Taught[UpTo1e5] = 0  # soft: learn only the K most likely classes (as a cache keeps them); 0: all
    teacher_precision: Taught[Literal["auto", "fp32", "bf16"]] = "auto"  # its weights; auto: bf16 where a GPU has it
    teacher_layout: Free[Literal["auto", "nchw", "channels_last"]] = "auto"  # of its images; auto: measured on a GPU
    alpha: Annotated[Taught[float | None], span(0, 1)] = None  # its loss weight; hard: 0.5 unless given; soft: required
    tau: Annotated[Taught[float | None], span(1e-3, 1e3)] = None  # temperature of soft distillation
    kl_normalizer: Taught[Literal["batch", "numel"] | None] = None  # soft: over rows (paper) or rows x classes (code)
    label_smoothing: BelowOne = 0.1  # smoothing of the true labels
    bce_loss: Later[bool] = False  # of the true labels, a binary cross-entropy for every class, averaged (DeiT III)
    bce_sum: Later[bool] = False  # binary cross-entropy: summed over the classes
    bce_target_thresh: Annotated[Later[float | None], span(0, 0.999)] = 0.0  # above it a target is 1; None: as it is

    def check(self) -> None:
        super().check()
        if self.bce_loss and self.label_smoothing and self.bce_target_thresh is not None:
            raise ValueError(
                "--bce-loss calls every class right whose target is above --bce-target-thresh, and --label-smoothing "
                "lifts all of them: type --label-smoothing 0, or --bce-target-thresh None"
            )
        if not self.bce_loss and (self.bce_sum or self.bce_target_thresh != 0):
            raise ValueError("--bce-sum and --bce-target-thresh belong to --bce-loss: leave them out, or type that")
        if self.distill == "none" and self.teacher:
            raise ValueError("a teacher is given but --distill is none: type --distill hard, or no --teacher")
        if self.distill != "none" and not self.teacher:
            raise ValueError(f"--distill {self.distill} needs a teacher: add --teacher NAME, or type --distill none")
        if self.distill == "none" and self.teacher_cache:
            raise ValueError("--teacher-cache is given but --distill is none: type --distill hard, or leave it out")
        if self.distill != "soft" and self.teacher_top_k:
            raise ValueError("--teacher-top-k belongs to --distill soft: leave it out, or type that")
        if self.distill == "soft" and self.teacher_cache and not self.teacher_top_k:
            raise ValueError(
                "a --teacher-cache of soft labels keeps the most likely classes, and training learns only those: add "
                "--teacher-top-k 10, or leave the cache out"
            )
        if self.distill != "soft" and (self.tau, self.kl_normalizer) != (None, None):
            raise ValueError("--tau and --kl-normalizer belong to --distill soft: leave them out, or type that")
        if self.distill == "soft" and None in (self.alpha, self.tau, self.kl_normalizer):
            raise ValueError(
                "--distill soft has no defaults, because the paper and the official code differ. Type one of:\n"
                "  --alpha 0.1 --tau 3 --kl-normalizer batch    the paper (arXiv 2012.12877, eq. 2)\n"
                "  --alpha 0.5 --tau 1 --kl-normalizer numel    the official code's defaults"
            )
