"""Data sets from the command line.

    deit-fast data check /imagenet                              lists what is broken, odd or there twice
    deit-fast data pack /imagenet /packed                       tar shards with the original bytes
    deit-fast data pack /imagenet /packed512 --max-side 512     larger images re-encoded, half the decoding
    deit-fast data preview --data /imagenet --recipe deit       draws what the model sees

SRC is whatever `--data` of the trainer takes. `pack` continues where it was interrupted. Exit codes: 0 done, 1 `check`
found something broken, 2 a mistake in the command or the data, 130 interrupted.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ... import command
from ...data import open_dataset
from ...data.sources.folder import by_suffix
from ...data.sources.open import SPLITS, open_unpacked
from ...model import IMAGENET_NORMALISATION
from ...progress import progress
from ...recipes.named import recipe
from .check import check
from .pack import check_limits, pack
from .parts import open_parts
from .preview import preview

CORES = len(os.sched_getaffinity(0))
Source = Annotated[str, Positional, arg(metavar="SRC")]


@dataclass(frozen=True, kw_only=True)
class Check:
    """Read everything; list what is broken, odd or there twice.

    deit-fast data check /imagenet
    """

    source: Source  # whatever --data of the trainer takes
    threads: int = CORES  # that read and decode

    def run(self) -> int:
        splits, broken = open_parts(self.source)
        with progress("checking", sum(map(len, splits.values()))) as update:
            report = check(splits, self.threads, lambda images: update(advance=images), broken)
        print("\n".join(report.lines()))
        return 1 if report.broken else 0


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Write indexed tar shards that WebDataset reads too.

    deit-fast data pack /imagenet /packed --max-side 512
    """

    source: Source  # whatever --data of the trainer takes
    folder: Annotated[str, Positional, arg(metavar="DST")]  # a new or empty folder, or one that was begun by
    # this command
    max_side: int = 0  # re-encode images above (default: 0, none)
    quality: int = 90  # of re-encoded JPEG
    shard_images: int = 5000  # images a shard
    threads: int = CORES  # that read and decode

    def run(self) -> None:
        check_limits(vars(self))
        splits = open_unpacked(self.source)
        if left_out := [file for dataset in splits.values() for file in dataset.left_out]:
            print(f"left out: {by_suffix(left_out)}, files that are not read: deit-fast data check names them")
        with progress("packing", sum(map(len, splits.values()))) as update:
            pack(
                splits, Path(self.folder), max_side=self.max_side, quality=self.quality, shard_images=self.shard_images,
                threads=self.threads, advance=lambda images: update(advance=images),
            )  # fmt: skip
        print(f"images were copied without a look: deit-fast data check {self.folder} names broken ones")
        lacking = " and ".join(split for split in SPLITS if split not in splits)
        print(f"packed: {self.folder} without {lacking}" if lacking else f"packed: type --data {self.folder}")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Draw originals and augmented copies, with what was done to them.

    deit-fast data preview --data /imagenet
    """

    data: str = ""  # whatever --data of the trainer takes (default: the recipe's)
    recipe: str = "deit"  # of the trainer
    rand_augment: str | None = None  # another string of timm's than the recipe's, such as 3a (default: the recipe's)
    simple_random_crop: bool = False  # as the trainer's flag (default: the recipe's)
    out: str = "preview.png"  # the picture
    images: int = 6  # originals
    copies: int = 5  # augmented copies of each
    epoch: int = 0  # whose augmentation is shown
    threads: int = CORES  # that read and decode

    def run(self) -> None:
        config = recipe(self.recipe)
        if Path(self.out).is_dir():
            raise ValueError(f"--out {self.out} is a folder: type --out {Path(self.out) / 'preview.png'}")
        if not (source := self.data or config.data.data):
            raise ValueError(f"recipe {self.recipe} needs data: type --data FOLDER")
        train, _ = open_dataset(source)
        numbers = {"epoch": self.epoch, "images": self.images, "copies": self.copies}
        data = config.data
        if self.rand_augment is not None:
            data = replace(data, rand_augment=self.rand_augment)
        if self.simple_random_crop:
            data = replace(data, simple_random_crop=True)
        policy = data.training_policy(IMAGENET_NORMALISATION)
        preview(train, policy, Path(self.out), data_seed=config.optim.data_seed, **numbers)
        print(f"drawn: {self.out}")


COMMANDS: dict[str, type[Check | Pack | Preview]] = {"check": Check, "pack": Pack, "preview": Preview}


@command.entry("data")
def main(arguments: Sequence[str]) -> int | None:
    described = {name: (kind.__doc__ or "").splitlines()[0] for name, kind in COMMANDS.items()}
    program = "deit-fast data"
    if not (name := command.choose(described, arguments, program, f"\n{__doc__}\n")):
        return None
    description = inspect.getdoc(COMMANDS[name]) or ""
    given = command.parse(COMMANDS[name], arguments[1:], program=f"{program} {name}", description=description)
    if given.threads < 1:
        raise ValueError(f"--threads is 1 or more, got {given.threads}")
    return given.run()


if __name__ == "__main__":
    command.leave(main())
