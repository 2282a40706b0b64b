"""The smallest training that has everything: two heads, a teacher, an average, mixing, drop-path, several epochs."""

import pytest

from deit_fast.config import Config
from tests.deit_fast.conftest import images, teachers, tiny  # noqa: F401


@pytest.fixture
def small(tiny: Config) -> Config:  # noqa: F811
    """60 steps of about 15 ms, a checkpoint after every second one, an evaluation after every third epoch."""
    return tiny.replace(epochs=20, save_every=2, eval_every=3, log_every=5)
