"""Evaluation: every image exactly once, whatever the number of processes, and every head of every model in one pass.

    python -m deit_fast.evaluate runs/flowers                                    on the data that the run was trained on
    python -m deit_fast.evaluate deit_small_patch16_224-cd65a155.pth --data /imagenet /imagenetv2
    python -m deit_fast.evaluate regnety_160.deit_in1k --data /imagenet/val --crop-ratio official
    python -m deit_fast.evaluate model.safetensors --architecture resnet50 --data /imagenet --json resnet50.json
    python -m deit_fast.evaluate runs/plain runs/distilled                       beside each other, as in paper Table 4
    torchrun --nproc-per-node 8 -m deit_fast.evaluate runs/imagenet              eight GPUs, the same counts

A run gives its last weights and its moving average, a distilled model its class token, its distillation token and both
ways of fusing them, and beside them the teacher that the run learned from. Printed are top-1, top-5 and loss, how often
models and heads disagree (Table 4), the worst classes and the most frequent mistakes; --json holds every class.

Data: class folders, ImageNet's flat val/ with any of its label files, a data set with train/ and val/, ImageNet-V2 (one
variant, or the folder with all three), shards, parquet, built-in sets. On ImageNet's own validation images the
reassessed labels (ReaL) are scored in the same pass, from the copy inside timm unless --real-labels names a file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..command import OfOneRank, leave
from .results import Settings, evaluate_all


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deit_fast.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what is evaluated")
    what.add_argument(
        "models", nargs="*", metavar="RUN_OR_FILE_OR_NAME",
        help="run folders, weights files, exported folders, names of DeiTs or of timm, or module:function",
    )  # fmt: skip
    what.add_argument("--architecture", default="", help="timm's name of what weights fit (default: a DeiT)")
    what.add_argument(
        "--teacher", default="",
        help="to compare with, as the trainer's --teacher; - for none (default: the one that the run learned from)",
    )  # fmt: skip
    what.add_argument(
        "--teacher-model", default="regnety_160", metavar="NAME",
        help="architecture of a --teacher that is a weights file (default: regnety_160, the paper's)",
    )  # fmt: skip
    images = parser.add_argument_group("on which images")
    images.add_argument(
        "--data", nargs="+", default=(), metavar="FOLDER",
        help="folders, or built in: photos, digits (default: what the run was trained on)",
    )  # fmt: skip
    images.add_argument(
        "--real-labels", default="", metavar="FILE",
        help="a real.json (default: timm's copy, where the images are ImageNet's validation images)",
    )  # fmt: skip
    images.add_argument("--image-size", type=int, default=0, help="side in pixels (default: the model's own)")
    images.add_argument(
        "--crop-ratio", default="", metavar="RATIO",
        help="official (0.875), timm, or a number (default: the run's; timm's for timm's models; else official)",
    )  # fmt: skip
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--json", default="", metavar="FILE", help="write every result there (default: no file)")
    answer.add_argument(
        "--confusion", default="", metavar="PNG", help="draw the confusion matrix there (default: no picture)"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--batch-size", type=int, default=64, help="images of a process at a time (default 64; less needs less memory)"
    )
    how.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of forward passes (default fp32, as released)"
    )
    how.add_argument(
        "--bad-images", choices=("skip", "fail"), default="skip",
        help="an unreadable image is named and left out, or ends the evaluation (default skip)",
    )  # fmt: skip
    how.add_argument("--threads", type=int, default=0, help="that decode, in each process (default: one a core)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        given = vars(parser().parse_args(arguments))
        evaluate_all(Settings(**given | {name: tuple(given[name]) for name in ("models", "data")}), arguments)
        return 0
    except (ValueError, OSError) as error:
        if os.environ.get("DEIT_FAST_TRACEBACK"):
            raise
        if os.environ.get("RANK", "0") == "0" or isinstance(error, OfOneRank):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    leave(main())
