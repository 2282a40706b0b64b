"""A training: prepared, stepped, recorded.

    from deit_fast.train import Config, train
    train(Config(data="/flowers", model="deit_small_patch16_224")).scores

`python -m deit_fast.train --help` is the command line.
"""

from ..config import Config
from .loop import Summary, train
from .record import Diverged

__all__ = ["Config", "Diverged", "Summary", "train"]
