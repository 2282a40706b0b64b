"""How a command begins and ends: a command line from a dataclass; for every error one sentence and an exit code.

    @command.entry("train")
    def main(arguments: Sequence[str]) -> None:
        config = command.parse(Config, arguments, program="python -m deit_fast.train", description=__doc__)
        …

    if __name__ == "__main__":
        command.leave(main())

tyro reads the command line, and --help shows its flags in groups, with default and reason. The help is the source of
the dataclass itself: one capitalised phrase on a line of its own names the group of the fields below it, the comment
behind a field (and on the lines below) says what it is for, and what its default means where the value does not say it
("default: one a core").

What the exit codes mean to a script, a scheduler or a launcher:

    until python -m deit_fast.train --data /imagenet; do [ $? -eq 75 ] || break; done     # go on after a preemption
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import io
import os
import re
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING
from types import FrameType
from typing import Any, NoReturn, TypeVar

from .files import denied, shown
from .names import did_you_mean, flag

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
Body = Callable[[Sequence[str]], "int | None"]

DONE = 0  # trained, or finished before
USAGE = 2  # a mistake in the command, the data, the run folder or its disk: one sentence says what to mend
DIVERGED = 3  # the loss, a gradient or a weight is NaN or infinite: the same command would end so again
LOST = 4  # another process of the run was killed or cannot be reached: run the same command again
PREEMPTED = 75  # SIGTERM or SIGUSR1, the run is saved: run the same command again (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # Ctrl-C, as shells count it
_CONTINUES = "the same command continues from the last checkpoint, if there is one"
# What Ctrl-C leaves behind, by command.
_LEFT = {
    "train": _CONTINUES,
    "replicate": _CONTINUES,
    "demo": _CONTINUES,
    "teacher": "nothing was begun",
    "evaluate": "nothing was written",
}
TRACEBACK = "DEIT_FAST_TRACEBACK"  # set in the environment, it shows an error's traceback


NOBODY = -1  # as a rank


class Ending(BaseException):
    """An exception that has an exit code of its own, or that another rank than rank 0 prints."""

    code: int = USAGE
    prefix = "error: "
    printed_by: int | None = 0  # this rank; None: every rank that meets it. What all meet alike is printed by rank 0


class OfOneRank(Ending, ValueError):
    """A mistake that one rank may meet alone, so it prints it itself."""

    printed_by = None


def exit_code(error: BaseException) -> int | None:
    """None for a defect of the program, which Python reports."""
    if isinstance(error, Ending):
        return error.code
    return USAGE if isinstance(error, (ValueError, OSError)) else None


def sentence(error: BaseException) -> str:
    """An error in words; Python's own for a missing permission begin with "[Errno 13]"."""
    if isinstance(error, PermissionError) and error.filename is not None:
        return denied(error.filename)
    return str(error)


def entry(name: str = "") -> Callable[[Body], Callable[..., int]]:
    """Make a body the `main(arguments=None)` of a command: errors become a sentence and the exit code it returns.

    So does Ctrl-C, from the command's first import on (`watch`). `name` is its own, "" that of deit-fast itself.
    """

    def decorate(body: Body) -> Callable[..., int]:
        @functools.wraps(body)
        def main(arguments: Sequence[str] | None = None) -> int:
            if name and signal.getsignal(signal.SIGINT) is _end:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):  # no name of a file ends a command that prints it
                    stream.reconfigure(errors="backslashreplace")
            try:
                return body(sys.argv[1:] if arguments is None else arguments) or DONE
            except KeyboardInterrupt:
                print(interrupted(name), file=sys.stderr)
                return INTERRUPTED
            except BaseException as error:
                if (code := exit_code(error)) is None:
                    raise
                ending = error if isinstance(error, Ending) else Ending()
                if os.environ.get(TRACEBACK) and isinstance(error, Exception):  # a signal has no cause to be traced
                    traceback.print_exception(error)
                elif ending.printed_by in (None, int(os.environ.get("RANK", "0"))):
                    print(f"{ending.prefix}{shown(sentence(error))}", file=sys.stderr)
                return code

        return main

    return decorate


def interrupted(name: str) -> str:
    """What a command says after Ctrl-C."""
    return f"interrupted: {_LEFT[name]}" if name in _LEFT else "interrupted"


def watch() -> None:
    """Let Ctrl-C end this process at once, with the command's sentence, until its own `main` begins.

    A KeyboardInterrupt would be a traceback then, or be taken for a failed import by what is being imported.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        # python -m deit_fast.train, or deit-fast train
        named = re.search(r"deit[-_]fast[. ](\w+)", " ".join(sys.orig_argv[1:]))
        print(interrupted(named[1] if named else ""), file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


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


def choose(commands: Mapping[str, str], arguments: Sequence[str], program: str, description: str = "") -> str:
    """The one of `commands` (name -> what it does) that is typed; "" for --help, which is printed.

    Raises:
        ValueError: none, or an unknown one.
    """
    name = arguments[0] if arguments else ""
    if name in commands:
        return name
    listed = "\n".join(f"  {command:<9} {what}" for command, what in commands.items())
    usage = f"usage: {program} COMMAND …; {program} COMMAND --help explains one\n"
    if name in ("-h", "--help"):
        print(usage + description + listed)
        return ""
    told = [command for command, what in commands.items() if name and re.search(rf"\b{re.escape(name)}\b", what)]
    near = f"did you mean {told[0]}?" if len(told) == 1 else did_you_mean(name, commands, most=1)
    mistake = f"unknown command {name!r}" if name else "no command"
    raise ValueError(", ".join(filter(None, (mistake, near))) + f"\n{usage}{listed}")


def parse(
    kind: type[Settings],
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    defaults: Settings | None = None,
    epilog: str = "",
) -> Settings:
    """The dataclass that a command line gives, over `defaults` or its own; --help says `description` and `epilog` too.

    `tyro.conf.Positional` and `tyro.conf.arg(metavar=…)` may stand beside a field.

    Raises:
        SystemExit: --help (0), or a flag that does not exist or cannot be read (2).
        ValueError: a list that is empty.
    """
    import tyro  # here, so that `watch` waits for nothing

    if {"-h", "--help"} & set(arguments):
        print(help_text(kind, program, description, defaults, epilog), end="")
        raise SystemExit(0)
    own = {flag(field.name): field for field in dataclasses.fields(kind)}
    if _positional(kind):
        arguments = [f"./{word}" if word not in own and _looks_like_a_flag(word) else word for word in arguments]
    if defaults is None:  # else the defaults may depend on a flag that is typed in full
        arguments = [_whole(word, own) for word in arguments]
    given: dict[str, Any] = {} if defaults is None else {"default": defaults}
    given["config"] = (tyro.conf.OmitArgPrefixes,)  # --batch-size, not --optim.batch-size
    settings = tyro.cli(kind, args=list(arguments), prog=program, description=description, **given)
    for spelled, field in own.items():
        if getattr(settings, field.name) == () and (field.default is MISSING or spelled in arguments):
            raise ValueError(f"{field.name}: at least one is needed, see {program} --help")
    return settings


# tyro can write neither this help's layout (it draws boxes), nor a group's title or a comment that goes on below its
# field (it reads the class's docstring and the one comment), nor the typed command as usage.
def reasons(kind: type) -> dict[str, dict[str, str]]:
    """Group -> field -> its comment, as they stand in the dataclass."""
    groups: dict[str, dict[str, str]] = {}
    group, name = "Arguments", ""
    for line in inspect.getsource(kind).split("    def ", 1)[0].splitlines():
        if heading := re.fullmatch(r"    # ([A-Z][\w ]*)", line):
            group = heading[1]
        elif field := re.match(r"    (\w+): [^#]+?(?:  # (.*))?$", line):
            name = field[1]
            groups.setdefault(group, {})[name] = field[2] or ""
        elif more := re.match(r"    # (.*)", line):
            groups[group][name] += f" {more[1]}"
    return groups


def help_text(kind: type, program: str, description: str, defaults: Any = None, epilog: str = "") -> str:
    """The whole help; the arguments are those of `parse`."""
    from tyro.conf import Positional

    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{epilog}\n{TRACEBACK}=1 in the environment shows the traceback of an error.".lstrip(),
    )  # fmt: skip
    usage = [program]
    own = vars(defaults) if defaults else {field.name: field.default for field in dataclasses.fields(kind)}
    parts = [value for value in own.values() if dataclasses.is_dataclass(value)]  # groups of flags
    own = own | {name: value for part in parts for name, value in vars(part).items()}
    kinds = [kind, *map(type, parts)]
    types = {name: hint for each in kinds for name, hint in typing.get_type_hints(each, include_extras=True).items()}
    for title, members in ((title, members) for each in kinds for title, members in reasons(each).items()):
        group = parser.add_argument_group(title)
        for name, reason in members.items():
            if not reason:  # itself a group
                continue
            marks = getattr(types[name], "__metadata__", ())
            plain = types[name].__origin__ if marks else types[name]
            metavar = next((mark.metavar for mark in marks if hasattr(mark, "metavar")), None) or _metavar(plain)
            default, spelled = own[name], flag(name)
            if Positional in marks:
                spelled = name
                usage.append(f"{metavar}…" if _count(plain) else metavar)
            elif default is MISSING:
                usage.append(f"{spelled} {metavar}")
                reason += "; required"
            elif "default: " not in reason:
                reason += f" (default: {_value(default)})"
            shown = reason.replace("%", "%%")
            if plain is bool:
                group.add_argument(spelled, action=argparse.BooleanOptionalAction, help=shown)
            else:
                group.add_argument(spelled, metavar=metavar, nargs=_count(plain), help=shown)
    parser.usage = " ".join([*usage, "[--FLAG VALUE]…"])
    return parser.format_help()


def _whole(word: str, flags: Collection[str]) -> str:
    """A flag in full that was typed by its first letters, where it is the only one that begins so."""
    name, equals, value = word.partition("=")
    near = [known for known in flags if known.startswith(name)]
    return near[0] + equals + value if name.startswith("--") and name not in flags and len(near) == 1 else word


def _positional(kind: type) -> bool:
    from tyro.conf import Positional

    types = typing.get_type_hints(kind, include_extras=True).values()
    return any(Positional in getattr(each, "__metadata__", ()) for each in types)


def _looks_like_a_flag(word: str) -> bool:
    """Whether a file or folder has this name, such as -007.jpg, which a parser would take for a flag."""
    return re.match(r"-(?![\d.]*$)", word) is not None and os.path.lexists(word)


def _value(value: object) -> str:
    if value == "":
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _count(kind: object) -> int | str | None:
    parts = typing.get_args(kind) if typing.get_origin(kind) is tuple else ()
    return ("+" if parts[-1] is Ellipsis else len(parts)) if parts else None


def _metavar(kind: Any) -> str:
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(map(str, parts)) + "}"
    if parts:  # tuple[float, float], float | None, Literal[…] | None
        return _metavar(parts[0])
    return {int: "N", float: "X", str: "TEXT"}.get(kind, "VALUE")
