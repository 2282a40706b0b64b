"""What `python -m deit_fast.train --help` prints: every field of the configuration, in groups, with default and reason.

The text is the source of `config.py` itself: a comment on a line of its own between blank lines names a group, the
comment behind a field says what it is for. The defaults shown are those of the recipe that the command line names.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping

from .config import Config, flag


def fields() -> dict[str, dict[str, str]]:
    """Group -> field -> its comment, as they stand in `Config`."""
    groups: dict[str, dict[str, str]] = {"Recipe": {}}
    group = "Recipe"
    for line in inspect.getsource(Config).split("    def ", 1)[0].splitlines():
        if heading := re.fullmatch(r"    # (\w[\w ]*)", line):
            group = heading[1]
            groups[group] = {}
        elif field := re.match(r"    (\w+): [^#]+?(?:  # (.*))?$", line):
            groups[group][field[1]] = field[2] or ""
    return groups


def help_text(defaults: Config, recipes: Mapping[str, Callable[[], Config]], description: str) -> str:
    """The whole help.

    Args:
        defaults: of the recipe that the command names.
        recipes: all of them, by name; the first line of a docstring is shown.
        description: how the command is used, with examples.
    """
    parser = argparse.ArgumentParser(
        prog="python -m deit_fast.train",
        usage="python -m deit_fast.train [--recipe NAME] [--data FOLDER] [FLAG VALUE]…",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_listed(recipes),
    )
    types = typing.get_type_hints(Config)
    for name, members in fields().items():
        title = f"Recipe (the defaults below are those of {defaults.recipe})" if name == "Recipe" else name
        group = parser.add_argument_group(title)
        for field, reason in members.items():
            default = getattr(defaults, field)
            shown = f"{reason} (default: {_value(default)})".replace("%", "%%")
            if types[field] is bool:
                group.add_argument(flag(field), action=argparse.BooleanOptionalAction, help=shown)
            else:
                group.add_argument(flag(field), metavar=_metavar(types[field]), nargs=_count(default), help=shown)
    return parser.format_help()


def _listed(recipes: Mapping[str, Callable[[], Config]]) -> str:
    lines = [f"  {name:<24} {(make.__doc__ or '').strip().splitlines()[0]}" for name, make in recipes.items()]
    return "recipes (--recipe NAME --help shows the defaults of one):\n" + "\n".join(lines)


def _value(value: object) -> str:
    if value == "":
        return "empty"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _count(value: object) -> int | None:
    return len(value) if isinstance(value, tuple) else None


def _metavar(kind: object) -> str:
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(map(str, parts)) + "}"
    if parts:  # tuple[float, float], float | None, Literal[…] | None
        return _metavar(parts[0])
    return {int: "N", float: "X", str: "TEXT"}.get(kind, "VALUE")


def undocumented() -> list[str]:
    """Fields without a reason; a test holds this empty."""
    known = {name: reason for members in fields().values() for name, reason in members.items()}
    return [field.name for field in dataclasses.fields(Config) if not known.get(field.name)]
