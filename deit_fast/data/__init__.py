"""From image files to model-ready batches."""

from .decode import BadImage, decode
from .sources import Dataset, open_dataset

__all__ = ["BadImage", "Dataset", "decode", "open_dataset"]
