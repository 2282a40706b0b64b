"""Measuring stands below the comparisons, they below what reads their files, and that below what runs on a card."""

from pathlib import Path

from tests.rooms import Rooms

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMPARISONS = tuple(sorted(path.name for path in BENCHMARKS.glob("*.py") if not path.name.startswith("__")))
FLOORS = (("card",), ("compiled", "tradeoff"), COMPARISONS, ("compare", "expectations"), ("measure",))


def test_benchmarks_import_downwards_and_in_no_circle() -> None:
    assert Rooms(BENCHMARKS, FLOORS, entry="conftest.py").broken() == []
