"""An environment for a pytest of its own, started by a test."""

import os


def alone() -> dict[str, str]:
    """This environment without xdist's marks, by which pytest-benchmark would switch itself off in the child."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
