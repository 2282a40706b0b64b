"""From image files to model-ready batches.

train, val = open_dataset("photos")
for batch in TrainLoader(train, Policy.deit(224), Share(len(train), batch_size=64), total_steps=210): ...
"""

from .batch import IGNORE, Batch
from .decode import BadImage, decode
from .device import Target
from .loader import EvalLoader, TrainLoader
from .order import Share
from .sources.dataset import Dataset
from .sources.open import open_dataset, open_evaluation

__all__ = [
    "IGNORE",
    "BadImage",
    "Batch",
    "Dataset",
    "EvalLoader",
    "Share",
    "Target",
    "TrainLoader",
    "decode",
    "open_dataset",
    "open_evaluation",
]
