"""The console script: `deit-fast COMMAND …`, or `python -m deit_fast COMMAND …`."""

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from . import command

COMMANDS = {
    "train": "train a classifier, distilled or not",
    "teacher": "write a teacher's labels down, for many trainings to use",
    "evaluate": "score any model on any data set: every head, ImageNet-V2, ReaL, disagreement",
    "report": "one HTML page of a run, or of several side by side: mistakes, suspects, time",
    "demo": "a teacher, a student taught by it, and one that is not: a comparison in minutes",
    "replicate": "the paper's Tables 3 and 2 on small data, over several seeds",
    "predict": "what a model sees in images, and where its tokens look",
    "export": "write a model for onnxruntime, timm or transformers, with its card",
    "parity": "whether a model and its exports give the same answer for the same files",
    "benchmark": "how fast, large and right a model is, in PyTorch and in ONNX",
    "data": "check, pack, preview: look after a data set",
}
CORE = ("train", "teacher")  # the others are tools


def module_of(name: str) -> ModuleType:
    """The module that runs a command."""
    path = f"deit_fast.{name}" if name in CORE else f"deit_fast.tools.{name}"
    module = importlib.import_module(path)
    return importlib.import_module(f"{path}.__main__") if hasattr(module, "__path__") else module


@command.entry()
def main(arguments: Sequence[str]) -> int:
    if list(arguments[:1]) == ["--version"]:
        print(f"deit-fast {importlib.metadata.version('deit-fast')}")
        return command.DONE
    if not (name := command.choose(COMMANDS, arguments, "deit-fast")):
        return command.DONE
    sys.path.insert(0, os.getcwd())  # as python -m does, so that --teacher module:function finds the user's module
    return module_of(name).main(arguments[1:])


def script() -> None:
    command.leave(main())


if __name__ == "__main__":
    command.leave(main())
