"""The console script: `deit-fast train …` is `python -m deit_fast.train …`."""

import importlib
import os
import sys

from .names import did_you_mean

COMMANDS = {
    "train": "train a classifier, distilled or not",
    "teacher": "write a teacher's labels down, for many trainings to use",
    "evaluate": "score any model on any data set: every head, ImageNet-V2, ReaL, disagreement",
    "replicate": "the paper's Tables 3 and 2 on small data, over several seeds",
    "predict": "what a model sees in images, and where its tokens look",
    "export": "write a model for onnxruntime, timm or transformers, with its card",
    "data": "check, pack, preview: look after a data set",
}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        listed = "\n".join(f"  {command:<9} {what}" for command, what in COMMANDS.items())
        wanted = name in ("-h", "--help")
        near = did_you_mean(name, COMMANDS, most=1)
        unknown = f"error: unknown command {name!r}" + (f", {near}" if near else "") + "\n"
        usage = f"usage: deit-fast COMMAND …; deit-fast COMMAND --help explains one\n{listed}"
        print(usage if wanted or not name else unknown + usage, file=sys.stdout if wanted else sys.stderr)
        return 0 if wanted else 2
    sys.path.insert(0, os.getcwd())  # as python -m does, so that --teacher module:function finds the user's module
    module = importlib.import_module(f"deit_fast.{name}")
    if hasattr(module, "__path__"):  # a package
        module = importlib.import_module(f"deit_fast.{name}.__main__")
    return module.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
