"""What every benchmark shares: one thread where a row asks for it, and one table at the end instead of many."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.compare.table import rows_of, text_table

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a -m of the user's, the slow rows of this folder are left out: they are every size, and take hours."""
    if config.option.markexpr:
        return
    slow = [item for item in items if item.path.parent == FOLDER and item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True  # its tables show the seconds of our side alone


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of JPEG files (photographs.py)."""
    from benchmarks.measure.photographs import (
        write_photographs,  # scikit-image, which a machine with a card need not have
    )

    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = rows_of(
        [{"name": b.name, "group": b.group, "extra_info": b.extra_info} for b in session.benchmarks if session]
    )
    if rows:
        terminalreporter.write_line("\n" + text_table(rows))
