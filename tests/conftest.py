"""What every test shares: one thread a worker, the longest first, `gpu` tests only where there is a card, proofs."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.proven import ROOT, Proven


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--skip-proven", action="store_true", help="skip what passed for the same sources and tools")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Proven(ROOT / "build" / "proven"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest tests first: a worker that starts them last would finish alone.
    items.sort(key=lambda item: "test_interpreter.py" not in item.nodeid)
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA card"))
