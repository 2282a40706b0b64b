"""Data sets from the command line.

    python -m deit_fast.data check /imagenet                              lists what is broken, odd or there twice
    python -m deit_fast.data pack /imagenet /packed                       tar shards with the original bytes
    python -m deit_fast.data pack /imagenet /packed512 --max-side 512     larger images re-encoded, half the decoding
    python -m deit_fast.data preview --data /imagenet --recipe deit       draws what the model sees

SRC is whatever `--data` of the trainer takes. `pack` continues where it was interrupted. Exit codes: 0 done, 1 `check`
found something broken, 2 a mistake in the command or the data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..model import IMAGENET_NORMALISATION
from ..recipes.named import recipe
from .check import check
from .preview import preview
from .sources.dataset import Broken
from .sources.open import SPLITS, open_dataset, open_unpacked
from .sources.pack import Settings, pack

CORES = len(os.sched_getaffinity(0))


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, and the function that moves it on by some images."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda images: bar.update(task, advance=images)


def run_check(arguments: argparse.Namespace) -> int:
    broken: Broken = []
    splits = open_unpacked(arguments.source, broken)
    with progress("checking", sum(map(len, splits.values()))) as advance:
        report = check(splits, arguments.threads, advance)
    report.broken[:0] = broken
    print("\n".join(report.lines()))
    return 1 if report.broken else 0


def run_pack(arguments: argparse.Namespace) -> int:
    settings = Settings(arguments.max_side, arguments.quality, arguments.shard_images, arguments.threads)
    splits = open_unpacked(arguments.source)
    with progress("packing", sum(map(len, splits.values()))) as advance:
        pack(splits, Path(arguments.folder), settings, advance)
    lacking = " and ".join(split for split in SPLITS if split not in splits)
    print(f"packed: {arguments.folder} without {lacking}" if lacking else f"packed: type --data {arguments.folder}")
    return 0


def run_preview(arguments: argparse.Namespace) -> int:
    config = recipe(arguments.recipe)
    if Path(arguments.out).is_dir():
        raise ValueError(f"--out {arguments.out} is a folder: type --out {Path(arguments.out) / 'preview.png'}")
    if not (source := arguments.data or config.data):
        raise ValueError(f"recipe {arguments.recipe} needs data: type --data FOLDER")
    train, _ = open_dataset(source)
    numbers = {name: getattr(arguments, name) for name in ("epoch", "images", "copies")}
    policy = config.training_policy(IMAGENET_NORMALISATION)
    preview(train, policy, Path(arguments.out), data_seed=config.data_seed, **numbers)
    print(f"drawn: {arguments.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    """One sub-command a function `run_…`."""
    parser = argparse.ArgumentParser(
        prog="python -m deit_fast.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, what: str, example: str) -> argparse.ArgumentParser:
        description = f"{what}.\n\n    python -m deit_fast.data {example}"
        form = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=what, description=description, formatter_class=form)

    checking = command("check", "read everything; list what is broken, odd or there twice", "check /imagenet")
    checking.set_defaults(run=run_check)
    checking.add_argument("source", metavar="SRC", help="whatever --data of the trainer takes")

    packing = command(
        "pack", "write indexed tar shards that WebDataset reads too", "pack /imagenet /packed --max-side 512"
    )
    packing.set_defaults(run=run_pack)
    packing.add_argument("source", metavar="SRC", help="whatever --data of the trainer takes")
    packing.add_argument("folder", metavar="DST", help="a new or empty folder, or one that was begun by this command")
    packing.add_argument("--max-side", type=int, default=0, help="re-encode images above (default 0: none)")
    packing.add_argument("--quality", type=int, default=90, help="of re-encoded JPEG (default 90)")
    packing.add_argument("--shard-images", type=int, default=5000, help="images a shard (default 5000)")

    showing = command(
        "preview", "draw originals and augmented copies, with what was done to them", "preview --data /imagenet"
    )
    showing.set_defaults(run=run_preview)
    showing.add_argument("--data", default="", help="whatever --data of the trainer takes; default: the recipe's")
    showing.add_argument("--recipe", default="deit", help="of the trainer (default deit)")
    showing.add_argument("--out", default="preview.png", help="the picture (default preview.png)")
    showing.add_argument("--images", type=int, default=6, help="originals (default 6)")
    showing.add_argument("--copies", type=int, default=5, help="augmented copies of each (default 5)")
    showing.add_argument("--epoch", type=int, default=0, help="whose augmentation is shown (default 0)")

    for command in (checking, packing, showing):
        command.add_argument("--threads", type=int, default=CORES, help=f"that read and decode (default {CORES})")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    try:
        given = parser().parse_args(arguments)
        if given.threads < 1:
            raise ValueError(f"--threads is 1 or more, got {given.threads}")
        return given.run(given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
