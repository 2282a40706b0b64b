"""deit_fast: train data-efficient image transformers with distillation.

    from deit_fast import create_model, load, load_pretrained
    from deit_fast.train import train, Config

`python -m deit_fast.train --help` is the command line. Models, their weights and Config need torch, numpy and
safetensors; everything else needs the extras, pip install 'deit-fast[train]'.
"""

import importlib
import importlib.util
import os
import sys
import types

_EXPORTS = {
    "Config": "config",
    "DistillationLoss": "criterion",
    "TokenDistillationTask": "timm_task",
    "VisionTransformer": "model",
    "create_model": "model",
    "load": "weights.trained",
    "load_pretrained": "weights.pretrained",
    "read_weights": "weights.pretrained",
    "resize_pos_embed": "weights.pretrained",
}
__all__ = list(_EXPORTS)

# What needs no extras.
_SMALL = {
    "config", "files", "model", "names", "run", "run.timing", "weights", "weights.huggingface", "weights.pretrained",
}  # fmt: skip


def _absent(*names: str) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def _refuse_incomplete(name: str, path: object = None, target: object = None) -> None:
    """Asked before Python's own finders where something is missing: importing what needs it ends in a sentence."""
    room = name.removeprefix(f"{__name__}.")
    if room != name and room not in _SMALL:
        raise ImportError(_message)


_core = _absent("deit_kernels", "torch", "numpy", "safetensors")
_missing = _core + _absent("timm", "PIL", "tyro", "rich", "matplotlib")
_ours = any(word.removeprefix("-m").startswith(__name__) for word in sys.orig_argv[1:])
# A command: `python -m deit_fast.…` while it is being imported, or `deit-fast …`.
_starting = (sys.argv[0] == "-m" and _ours) or os.path.basename(sys.argv[0]) == "deit-fast"
if _missing:
    _message = f"deit_fast needs {', '.join(_missing)}: run pip install 'deit-fast[train]'"
    if os.path.exists(".venv/setup.stamp") and not sys.prefix.endswith(".venv"):
        _message = "deit_fast is installed in .venv: type .venv/bin/python, or source .venv/bin/activate first"
    elif {"deit_kernels", "torch"} & {*_core}:
        _message = "deit_fast is not installed here: run make setup, or pip install -e ./kernels -e '.[train]'"
    if _starting:  # a sentence, not a traceback
        print(f"error: {_message}", file=sys.stderr)
        sys.exit(2)
    if _core:
        raise ImportError(_message)
    sys.meta_path.insert(0, types.SimpleNamespace(find_spec=_refuse_incomplete))

if _starting:  # torch and others are imported for seconds, in which someone may type Ctrl-C
    from . import command

    command.watch()


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
