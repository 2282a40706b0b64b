"""The same image files through `predict` and through every export: whether they are the same model, as numbers.

    deit-fast parity runs/flowers flowers-onnx flowers-timm flowers-hf --data flowers/val
    deit-fast parity deit_tiny.pth deit-tiny-hf --data photos/ --json parity.json

An ONNX file answers by onnxruntime, a folder for timm by the code on its card and by timm's own transform, a folder for
Hugging Face by the code on its card, by its image processor and by transformers' pipeline. For each way the table says
of how many files it shows the model other pixels, the share of bytes that differ and by up to how many levels, the
largest difference of a logit, the share of files of the same likeliest class, and the median time of a file from the
disk to the logits, one image at a time; below it stands where a way parts from `predict`. ONNX files and the code on
cards promise the same bytes, in float32 also the same answers. Exit codes: 0 done, 1 one of these promises is broken, 2
a mistake in the command, or a path without an image (the others are compared all the same), 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from ... import command
from ...files import check_writable, shown, write_json
from ...progress import track
from ...run.provenance import provenance
from ...run.report import table_of
from ...weights.trained import load
from ..predict import image_paths
from .compare import Comparison, compare
from .ways import ways_of

BROKEN = 1  # exit code


@dataclass(frozen=True, kw_only=True)
class Settings:
    # What is compared
    model: Annotated[str, Positional, arg(metavar="RUN_OR_FILE")]  # what was exported: a run folder, a file of its
    # checkpoints, an exported folder, a weights file, a name, or module:function
    exports: Annotated[tuple[str, ...], Positional, arg(metavar="EXPORT")]  # folders that deit-fast export wrote of it

    # On which images
    data: Annotated[tuple[str, ...], arg(metavar="FOLDER")]  # image files, and folders of them
    limit: int = 0  # files at most, spread evenly over all (default: all)

    # The model
    architecture: Annotated[str, arg(metavar="NAME")] = ""  # timm's name of what a weights file fits (default: a DeiT)
    heads: int = 0  # of a DeiT of unusual width (default: as the official)

    # The answer
    json: Annotated[str, arg(metavar="FILE")] = ""  # write every number there (default: no file)


@command.entry("parity")
def main(arguments: Sequence[str]) -> int:
    given = command.parse(Settings, arguments, program="deit-fast parity", description=__doc__)
    if given.limit < 0:
        raise ValueError(f"--limit is 1 or more, or 0 for all files, got {given.limit}")
    if given.json:
        check_writable(Path(given.json), "type --json and the path of a file in a folder that exists")
    files, wrong = image_paths(given.data)
    if given.limit:
        files = files[:: -(-len(files) // given.limit)]
    reference = load(given.model, architecture=given.architecture, **({"heads": given.heads} if given.heads else {}))
    ways = [way for spec in given.exports for way in ways_of(spec, reference)]
    console = Console(highlight=False)
    rows, unreadable = compare(reference, ways, track(files, "comparing", len(files)))
    for error in [*wrong.values(), *(f"{shown(path)} holds no image: {why}" for path, why in unreadable.items())]:
        print(f"error: {error}", file=sys.stderr)
    if not rows[0].files:
        raise ValueError("none of the files holds an image: type --data and a folder of images")
    show(rows, reference.source, console)
    if given.json:
        results = {
            "model": reference.source,
            "files": rows[0].files,
            "unreadable": unreadable,
            "ways": [row.as_json() for row in rows],
            **provenance("deit-fast parity", arguments),
        }
        write_json(Path(given.json), results)
    if broken := [row for row in rows if not row.kept]:
        print(f"not the same: {'; '.join(row.name for row in broken)}", file=sys.stderr)
        return BROKEN
    return command.USAGE if wrong or unreadable else command.DONE


def show(rows: list[Comparison], source: str, console: Console) -> None:
    """A table, and a line for every way that parts from `predict`."""
    title = f"{escape(shown(source))}: {rows[0].files:,} files"
    table = table_of(title, "", "files", "bytes, %", "levels", "logits", "top-1, %", "ms")
    table.caption = (
        "files with other pixels; bytes that differ, by up to so many levels; largest difference of a logit; files of "
        "the same likeliest class; ms a file"
    )
    export = ""
    for row in rows:
        if row.way is None:
            table.add_row("predict", *[""] * 5, f"{row.milliseconds:.1f}")
            continue
        if row.way.export != export:
            export = row.way.export
            table.add_row(escape(shown(export)))
        share = f"{100 * row.bytes / row.total:.2g}" if row.bytes else "0"
        cells = [
            f"{row.other:,}",
            share,
            f"{row.level}",
            f"{row.logit:.1e}",
            f"{100 * row.agreed / max(1, row.files):.4g}",
        ]
        table.add_row(f"  {row.way.how}", *(cells if row.files else [""] * 5), f"{row.milliseconds:.1f}")
    console.print(table)
    for row in rows:
        parts = [f"{count:,} files: {part}" for part, count in row.parts.most_common()]
        if row.refused:
            file, why = next(iter(row.refused.items()))
            parts.append(f"{len(row.refused):,} files without an answer, the first {shown(file)} ({why})")
        if row.way is not None and row.way.stale:
            parts.insert(0, "it holds other weights than the model, export it again")
        if parts:
            console.print(f"{escape(shown(row.name))}: {escape('; '.join(parts))}")


if __name__ == "__main__":
    command.leave(main())
