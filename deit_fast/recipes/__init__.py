"""Named trainings: the paper's, the official code's, and small ones that run anywhere."""

from typing import Any

# By name: what it trains, in a line, and the fields of Config that it sets.
Recipes = dict[str, tuple[str, dict[str, Any]]]
