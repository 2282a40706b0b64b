"""What the tests of the loader share."""

import threading
from dataclasses import replace

import pytest
import torch

from deit_fast.data import Share, TrainLoader
from deit_kernels.augment import Policy

POLICY = replace(Policy.deit(16), mix=None)
EVAL = Policy.eval(16)


def loader_of(dataset, policy, **settings) -> TrainLoader:
    """The fields of a share and the arguments of a loader, told apart by name."""
    share = {name: settings.pop(name) for name in Share.__dataclass_fields__ if name in settings}
    return TrainLoader(dataset, policy, Share(len(dataset), **share), **settings)


def train_loader(dataset, **changes) -> TrainLoader:
    """12 rows a step, 2 steps an epoch, 5 steps."""
    settings = dict(data_seed=7, batch_size=12, total_steps=5, threads=2)
    return loader_of(dataset, POLICY, **settings | changes)


def columns(batch) -> list[torch.Tensor]:
    target = [batch.target] if isinstance(batch.target, torch.Tensor) else batch.target
    return [batch.images, batch.labels, batch.samples, batch.positions, *target]


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.step == b.step
        assert all(torch.equal(one, other) for one, other in zip(columns(a), columns(b), strict=True))


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("deit_fast")]


@pytest.fixture(autouse=True)
def no_thread_survives_a_test():
    yield
    assert our_threads() == []
