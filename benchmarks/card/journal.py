"""A plugin of pytest that writes down each test as it begins and ends, so that a crash or a hang costs one test.

    pytest -p benchmarks.card.journal --journal tests.jsonl --known 0 --hang 60 …

Tests that have an outcome in the first `--known` bytes of the journal do not run again. A test that takes longer than
`--hang` seconds ends the process, and so does an error that leaves the CUDA context unusable: the next process goes on.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

FAILED = pytest.StashKey[bool]()  # whether the set-up or the test of an item has failed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--journal", type=Path, required=True)
    # A worker that replaces a crashed one has to collect the same tests, while the journal grows.
    parser.addoption("--known", type=int, default=0, help="bytes of the journal that are of earlier processes")
    parser.addoption("--hang", type=float, default=60.0, help="seconds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    journal = config.option.journal
    lines = journal.read_bytes()[: config.option.known].splitlines() if journal.exists() else []
    known = {entry["test"] for entry in map(json.loads, lines) if entry["outcome"] != "began"}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _write(item, "began")
    faulthandler.dump_traceback_later(item.config.option.hang, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    before = item.stash.get(FAILED, False)
    if report.failed:
        reason = getattr(report.longrepr, "reprcrash", None)
        _write(item, "failed", reason.message if reason else report.longreprtext)
        if not _context_is_usable():
            os._exit(70)
    elif report.when == "teardown" and not before:
        _write(item, "passed")
    item.stash[FAILED] = before or report.failed
    return report


def _write(item: pytest.Item, outcome: str, message: str = "") -> None:
    entry = {"test": item.nodeid, "outcome": outcome, "message": message[:400]}
    with item.config.option.journal.open("a") as file:  # one short write, so that workers do not mix
        file.write(json.dumps(entry) + "\n")


def _context_is_usable() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
