"""Which model is trained, from which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .marks import BelowOne, Part, Ref, Taught, UpTo1e5, span


@dataclass(frozen=True)
class ModelConfig(Part):
    # Model
    model: Taught[str] = "deit_small_distilled_patch16_224"  # DeiT, DeiT III (deit3_) or any timm classifier, by name
    weights: Ref = ""  # start from: "" random, "timm" its pretrained ones, a file, a run folder, module:function
    pos_embed_resize: Literal["official", "timm"] = "official"  # to another resolution; timm: antialiased
    patch_size: Annotated[int, span(0, 4096)] = 0  # change of the model's patch side, pixels; 0: as named
    width: UpTo1e5 = 0  # change of the model's channels; 0: as named
    depth: Annotated[int, span(0, 10**4)] = 0  # change of the model's number of blocks; 0: as named
    heads: Annotated[int, span(0, 10**4)] = 0  # change of the model's attention heads; 0: as named
    drop_path: BelowOne = 0.0  # stochastic depth of the last block; rises linearly from 0, in deit3_ the same in all
    dropout: BelowOne = 0.0  # after position embedding, projections, MLP layers; masks follow --micro-batch and ranks
    fusion: Literal["logits", "softmax", "cls", "dist"] = "logits"  # of two heads; paper: softmax
    train_mode: Literal["train", "eval"] = "train"  # eval: the official fine-tuning, on the fused logits

    def check(self) -> None:
        super().check()
        if self.train_mode == "eval" and (self.drop_path or self.dropout):
            raise ValueError(
                "--train-mode eval drops nothing: add --drop-path 0 --dropout 0, or type --train-mode train"
            )
