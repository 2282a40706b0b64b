"""A trained model in the form of another library, checked there before it is handed over, with a model card.

    python -m deit_fast.export runs/flowers --to onnx --out flowers-onnx      onnxruntime, any batch size
    python -m deit_fast.export runs/flowers --to timm --out flowers-timm      timm.create_model("local-dir:…")
    python -m deit_fast.export deit_tiny.pth --to hf --out deit-tiny-hf       AutoModelForImageClassification

--out becomes a folder: the weights (model.onnx or model.safetensors), what that library needs to read them, and
README.md, the card: recipe, data, metrics with their source, how to load. The other library then loads the folder and
must give the same logits, within 1e-5 of the largest one (ONNX: 1e-4); otherwise nothing is written. `deit_fast.load`
reads the folders of timm and Hugging Face back, bit for bit. Exit codes: 0 done, 1 the other library disagrees, 2 a
mistake in the command, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..weights.trained import load
from .formats import FORMS, Disagreement, export, require


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deit_fast.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_argument_group("the model")
    which.add_argument("model", metavar="RUN_OR_FILE", help="a run folder, a weights file, or a model's name")
    which.add_argument("--architecture", default="", help="timm's name of what a weights file fits (default: a DeiT)")
    which.add_argument("--heads", type=int, default=0, help="of a DeiT of unusual width (default: as the official)")
    what = parser.add_argument_group("the export")
    what.add_argument("--to", required=True, choices=FORMS, help="the library that shall read it; required")
    what.add_argument("--out", required=True, metavar="PATH", help="the folder to write, new or empty; required")
    return parser


def run(given: argparse.Namespace) -> int:
    sizes: dict[str, Any] = {"heads": given.heads} if given.heads else {}
    form = FORMS[given.to]
    require(form.packages, f"--to {given.to}")  # before the model is loaded
    trained = load(given.model, architecture=given.architecture, **sizes)
    out = Path(given.out)
    difference = export(trained, given.to, out)
    files = sorted(out.iterdir())
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"exported: {out}/ ({', '.join(file.name for file in files)}; {megabytes:.1f} MB)")
    print(f"checked:  {form.library} gives the same logits within {difference:.1e}, in batches of 1 and 5")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    try:
        return run(parser().parse_args(arguments))
    except (ValueError, OSError, Disagreement) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, Disagreement) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
