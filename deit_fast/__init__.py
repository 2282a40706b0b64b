"""deit_fast: train data-efficient image transformers with distillation.

    from deit_fast import create_model, load, load_pretrained
    from deit_fast.train import train, Config

`python -m deit_fast.train --help` is the command line.
"""

import importlib
import importlib.util
import os
import sys

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

_missing = [
    name
    for name in ("deit_kernels", "torch", "timm", "safetensors", "PIL", "tyro", "rich", "matplotlib")
    if importlib.util.find_spec(name) is None
]
if _missing:
    _message = "deit_fast is not installed here: run make setup, or pip install -e '.[train]'"
    if os.path.exists(".venv/setup.stamp") and not sys.prefix.endswith(".venv"):
        _message = "deit_fast is installed in .venv: type .venv/bin/python, or source .venv/bin/activate first"
    elif "deit_kernels" not in _missing and "torch" not in _missing:
        _message = f"deit_fast needs {', '.join(_missing)}: run pip install 'deit-fast[train]'"
    if sys.argv[0] == "-m":  # python -m deit_fast.…: a sentence, not a traceback
        print(f"error: {_message}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(_message)


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
