"""How a command begins and ends: a command line from a dataclass, and exit codes.

    config = parse(Config, sys.argv[1:], program="python -m deit_fast.train", description=__doc__)

tyro reads the command line, and --help shows its flags in groups, with default and reason. The help is the source of
the dataclass itself: a comment on a line of its own names a group of the fields below it, the comment behind a field
says what it is for.

What the exit codes mean to a script, a scheduler or a launcher:

    until python -m deit_fast.train --data /imagenet; do [ $? -eq 75 ] || break; done     # go on after a preemption
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

Settings = TypeVar("Settings")


def parse(
    kind: type[Settings],
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    defaults: Settings | None = None,
    epilog: str = "",
) -> Settings:
    """The dataclass that a command line gives.

    Args:
        kind: the dataclass.
        description: how the command is used, with examples.
        defaults: values of fields that no flag changes; None: the dataclass's own.
        epilog: what the help says after the flags.

    Raises:
        SystemExit: --help (0), or a flag that does not exist or cannot be read (2).
    """
    if {"-h", "--help"} & set(arguments):
        print(help_text(kind, program, description, defaults, epilog), end="")
        raise SystemExit(0)
    given: dict[str, Any] = {} if defaults is None else {"default": defaults}
    return tyro.cli(kind, args=list(arguments), prog=program, description=description, **given)


def reasons(kind: type) -> dict[str, dict[str, str]]:
    """Group -> field -> its comment, as they stand in the dataclass."""
    groups: dict[str, dict[str, str]] = {}
    group = "Arguments"
    for line in inspect.getsource(kind).split("    def ", 1)[0].splitlines():
        if heading := re.fullmatch(r"    # (\w[\w ]*)", line):
            group = heading[1]
        elif field := re.match(r"    (\w+): [^#]+?(?:  # (.*))?$", line):
            groups.setdefault(group, {})[field[1]] = field[2] or ""
    return groups


def help_text(kind: type, program: str, description: str, defaults: Any = None, epilog: str = "") -> str:
    """The whole help; the arguments are those of `parse`."""
    parser = argparse.ArgumentParser(
        prog=program, usage=f"{program} [--FLAG VALUE]…", description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    types = typing.get_type_hints(kind)
    own = {field.name: field.default for field in dataclasses.fields(kind)}
    for title, members in reasons(kind).items():
        group = parser.add_argument_group(title)
        for name, reason in members.items():
            default = own[name] if defaults is None else getattr(defaults, name)
            spelled = "--" + name.replace("_", "-")
            shown = f"{reason} (default: {_value(default)})".replace("%", "%%")
            if types[name] is bool:
                group.add_argument(spelled, action=argparse.BooleanOptionalAction, help=shown)
            else:
                group.add_argument(spelled, metavar=_metavar(types[name]), nargs=_count(types[name]), help=shown)
    return parser.format_help()


def listed(named: Mapping[str, Any]) -> str:
    """Functions by name, with the first line of their docstrings."""
    return "\n".join(f"  {name:<16} {(make.__doc__ or '').strip().splitlines()[0]}" for name, make in named.items())


def _value(value: object) -> str:
    if value == "":
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _count(kind: object) -> int | None:
    return len(typing.get_args(kind)) if typing.get_origin(kind) is tuple else None


def _metavar(kind: object) -> str:
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(map(str, parts)) + "}"
    if parts:  # tuple[float, float], float | None, Literal[…] | None
        return _metavar(parts[0])
    return {int: "N", float: "X", str: "TEXT"}.get(kind, "VALUE")


DONE = 0  # trained, or finished before
USAGE = 2  # a mistake in the command, the data, the run folder or its disk: one sentence says what to mend
DIVERGED = 3  # the numbers went bad: the same command would do so again
LOST = 4  # another process of the run was killed or cannot be reached: run the same command again
PREEMPTED = 75  # SIGTERM or SIGUSR1, the run is saved: run the same command again (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # Ctrl-C, as shells count it


class OfOneRank(ValueError):
    """A mistake that one rank may meet alone, so it says it itself; what all meet alike is said by rank 0."""


def leave(code: int) -> NoReturn:
    """End this process with a code.

    A rank that has failed ends without Python's and torch's tidying up. Threads of its process group, which nobody
    joins then, abort the process there now and again (gloo, torch 2.14), and for its code a signal would be reported.
    """
    if code and "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
