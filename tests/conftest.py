"""What every test shares: one thread a worker, the longest first, and `gpu` tests only where there is a card."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The two longest tests first: a worker that starts them last would finish alone.
    items.sort(key=lambda item: "test_interpreter.py" not in item.nodeid)
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA card"))
