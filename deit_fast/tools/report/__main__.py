"""A run as one HTML page that you can send: scores, curves, confusions, mistakes, suspects, time.

    deit-fast report runs/flowers                       writes runs/flowers/report.html
    deit-fast report runs/flowers --json flowers.json   and every list in it, for a program
    deit-fast report runs/flowers --baseline runs/plain says what the teacher brought
    deit-fast report runs/a runs/b runs/c               writes comparison.html, the runs side by side

A training writes the page at its end. It is one file without a server or a network, works from disk, on a phone, in
print and without a mouse, and holds thumbnails, so send it to whom you would show the images. Suspects are pairs of
images that show the same, across training and validation too, and labels that the teacher contradicts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ... import command
from ...files import check_writable, write_json
from . import page
from .facts import Facts

File = Annotated[str, arg(metavar="FILE")]


@dataclass(frozen=True)
class Settings:
    # What is reported
    runs: Annotated[tuple[str, ...], Positional, arg(metavar="RUN")]  # run folders, finished or not; several are
    # compared
    baseline: Annotated[str, arg(metavar="RUN")] = ""  # a run without a teacher (default: none), of which the gain is
    # told

    # The answer
    out: File = ""  # the page (default: report.html in the run folder; of several runs comparison.html here)
    json: File = ""  # write every list of the page there too (default: no file)

    # How
    images: int = page.MOST_IMAGES  # of each split that are looked at (default: 50,000, at random); 0: all
    threads: int = 0  # that decode (default: one a core)


@command.entry("report")
def main(arguments: Sequence[str]) -> None:
    settings = command.parse(Settings, arguments, program="deit-fast report", description=__doc__)
    report(settings)


def report(settings: Settings) -> dict[str, Any]:
    """Write the page, and return what it says.

    Raises:
        ValueError: a mistake in the command, in one sentence.
    """
    for flag, value, least in (("--images", settings.images, 0), ("--threads", settings.threads, 0)):
        if value < least:
            raise ValueError(f"{flag} {value}: type {least} or more")
    several = len(settings.runs) > 1
    if several and settings.baseline:
        raise ValueError("--baseline is for one run: name it among the runs that are compared")
    runs = [Facts.read(Path(run)) for run in settings.runs]
    baseline = Facts.read(Path(settings.baseline)) if settings.baseline else None
    if baseline is not None and baseline.config.distill != "none":
        raise ValueError(f"--baseline {settings.baseline} learned from a teacher itself: type a run without one")
    target = (
        Path(settings.out) if settings.out else Path("comparison.html") if several else runs[0].folder / "report.html"
    )
    check_writable(target, "type --out and the path of a file in a folder that exists")
    if settings.json:
        check_writable(Path(settings.json), "type --json and the path of a file in a folder that exists")
    if several:
        found = page.compare(runs, target)
    else:
        found = page.write(runs[0], target, None, settings.threads, settings.images, baseline, say=_say)
    print(f"report: {target}")
    if settings.json:
        write_json(Path(settings.json), found)
        print(f"lists: {settings.json}")
    return found


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command.leave(main())
