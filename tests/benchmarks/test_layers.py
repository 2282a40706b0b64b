"""Measuring stands below the comparisons, they below what reads their files, and that below what runs on a card."""

from pathlib import Path

from tests.rooms import MOST_FILES, Rooms

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMPARISONS = tuple(sorted(path.name for path in BENCHMARKS.glob("*.py") if not path.name.startswith("__")))
FLOORS = (("card",), ("compiled", "tradeoff"), COMPARISONS, ("compare", "expectations"), ("measure",))


def test_benchmarks_import_downwards_and_in_no_circle() -> None:
    broken = Rooms(BENCHMARKS, FLOORS, entry="conftest.py").broken()
    # The rooms inside of compiled/ are counted with it.
    assert [line for line in broken if not line.startswith("benchmarks/compiled has ")] == []
    assert len([*BENCHMARKS.glob("*.py")]) <= MOST_FILES
