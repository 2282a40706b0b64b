"""Data sets for the tests of this folder."""

from tests.deit_fast.data.conftest import image_folder, own_cache

__all__ = ["image_folder", "own_cache"]
