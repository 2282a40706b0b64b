"""Evaluation: every image exactly once, whatever the number of processes, and every head of every model in one pass.

    deit-fast evaluate runs/flowers                                    on the data that the run was trained on
    deit-fast evaluate deit_small_patch16_224-cd65a155.pth --data /imagenet /imagenetv2
    deit-fast evaluate regnety_160.deit_in1k --data /imagenet/val --crop-ratio official
    deit-fast evaluate model.safetensors --architecture resnet50 --data /imagenet --json resnet50.json
    deit-fast evaluate runs/plain runs/distilled                       beside each other, as in paper Table 4
    torchrun --nproc-per-node 8 -m deit_fast evaluate runs/imagenet              eight GPUs, the same counts

A run gives its last weights and its moving average, a distilled model its class token, its distillation token and both
ways of fusing them, and beside them the teacher that the run learned from. Printed are top-1, top-5 and loss, how often
models and heads disagree (Table 4), the worst classes and the most frequent mistakes; --json holds every class.

Data: class folders, ImageNet's flat val/ with any of its label files, a data set with train/ and val/, ImageNet-V2 (one
variant, or the folder with all three), shards, parquet, built-in sets. On ImageNet's own validation images the
reassessed labels (ReaL) are scored in the same pass, from the copy inside timm unless --real-labels names a file.
"""

from __future__ import annotations

from collections.abc import Sequence

from ... import command
from .results import Settings, evaluate_all


@command.entry("evaluate")
def main(arguments: Sequence[str]) -> None:
    settings = command.parse(Settings, arguments, program="deit-fast evaluate", description=__doc__)
    evaluate_all(settings, arguments)


if __name__ == "__main__":
    command.leave(main())
