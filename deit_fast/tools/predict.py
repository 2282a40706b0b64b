"""What a model sees in images: the likeliest classes of every image, as a table or as JSON.

    deit-fast predict new.jpg --model runs/flowers
    deit-fast predict photos/ --model deit_small_distilled_patch16_224-649709d9.pth --json > answers.jsonl
    deit-fast predict new.jpg --model runs/flowers --attention attention.png

A folder is searched with its sub-folders. Images are resized and cropped as in the model's evaluation. JSON is one line
an image: {"path", "predictions": [{"class", "label", "probability"}, …]} or {"path", "error"}. Exit codes: 0 done, 2 a
mistake in the command, or a path without an image (the others are answered all the same), 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from tyro.conf import Positional, arg

from .. import command, files
from ..data.sources.folder import SUFFIXES, by_suffix, is_image
from ..files import check_writable
from ..progress import track
from ..weights.prediction import Prediction, Trained
from ..weights.trained import load
from .attention_maps import MOST_IMAGES, draw_attention, require_deit


def image_paths(given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(files as given, and all images in the folders, sorted; what is wrong with each other path).

    Raises:
        ValueError: there is nothing but paths that do not exist and folders without images.
    """
    found: list[str] = []
    wrong: dict[str, str] = {}
    for path in given:
        if os.path.isdir(path):
            closed: list[OSError] = []
            inside = sorted(
                os.path.join(folder, name)
                for folder, _, names in os.walk(path, onerror=closed.append)
                for name in names
                if not name.startswith(".")
            )
            wrong |= {str(error.filename): command.sentence(error) for error in closed}
            images = list(filter(is_image, inside))
            if not images and not closed:
                wrong[path] = f"{path} holds no image: files end in {', '.join(SUFFIXES)}"
            found += images
            if left_out := [file for file in inside if not is_image(file)]:
                print(f"left out: {by_suffix(left_out)} in {path}", file=sys.stderr)
        elif os.path.exists(path):
            found.append(path)
        else:
            wrong[path] = f"there is no image or folder {path}: check the path"
    if not found:
        raise ValueError("\n".join(wrong.values()))
    return found, wrong


def answers(trained: Trained, paths: list[str], top: int, batch_size: int) -> Iterator[Any]:
    """`Trained.predict` behind a progress bar on standard error when there are many images and someone looks."""
    rows = trained.predict(paths, top, batch_size)
    return rows if len(paths) <= batch_size else track(rows, "predicting", len(paths))


def table(rows: list[Prediction]) -> Table:
    """An image a row, its classes with their probabilities."""
    drawn = Table(
        Column("image", overflow="fold"), Column("class", overflow="fold"), Column("probability", justify="right")
    )
    for row in rows:
        drawn.add_row(
            escape(files.shown(row.path)),
            escape("\n".join(name for name, _, _ in row.top)),
            "\n".join(f"{100 * probability:.1f} %" for _, _, probability in row.top),
            end_section=True,
        )
    return drawn


@dataclass(frozen=True, kw_only=True)
class Settings:
    # What to look at
    images: Annotated[tuple[str, ...], Positional, arg(metavar="IMAGE_OR_FOLDER")]  # image files, and folders of them

    # The model
    model: str  # a run folder, a file of its checkpoints, an exported folder, a weights file, name or module:function
    architecture: Annotated[str, arg(metavar="NAME")] = ""  # timm's name of what a weights file fits (default: a DeiT)
    heads: int = 0  # of a DeiT of unusual width (default: as the official)

    # The answer
    top: int = 5  # classes for each image (default: 5, as top-5 accuracy)
    json: bool = False  # JSON lines on standard output instead of a table
    attention: Annotated[str, arg(metavar="PNG")] = ""  # draw where both tokens look, for the first 16 images
    # (default: no picture)

    # How
    batch_size: int = 32  # images at a time (default: 32; less needs less memory)
    device: str = ""  # cpu, cuda, cuda:1 … (default: the first GPU if there is one)


@command.entry("predict")
def main(arguments: Sequence[str]) -> int:
    given = command.parse(Settings, arguments, program="deit-fast predict", description=__doc__)
    for name, value in (("--top", given.top), ("--batch-size", given.batch_size)):
        if value < 1:
            raise ValueError(f"{name} is 1 or more, got {value}")
    if given.attention:
        check_writable(Path(given.attention), "type --attention and the path of a PNG in a folder that exists")
    paths, wrong = image_paths(given.images)  # before the model, which takes longer to load
    trained = load(given.model, architecture=given.architecture, **({"heads": given.heads} if given.heads else {}))
    if given.attention:
        require_deit(trained.model)
    print(f"model: {trained.source}", file=sys.stderr)
    trained.model.to(_device(given.device))
    rows: list[Prediction] = []
    broken = len(wrong)
    for path, error in wrong.items():
        print(f"error: {error}", file=sys.stderr)
        if given.json:
            print(_json({"path": path, "error": error}))
    for row in answers(trained, paths, given.top, given.batch_size):
        if isinstance(row, Prediction):
            rows.append(row)
            if given.json:
                named = [{"class": name, "label": label, "probability": value} for name, label, value in row.top]
                print(_json({"path": row.path, "predictions": named}))
            continue
        path, error = row
        broken += 1
        print(f"error: {files.shown(path)} holds no image: {error}", file=sys.stderr)
        if given.json:
            print(_json({"path": path, "error": str(error)}))
    if rows and not given.json:
        Console(highlight=False).print(table(rows))
    if rows and given.attention:
        shown = rows[:MOST_IMAGES]
        captions = [f"{os.path.basename(files.shown(row.path))}\n{row.top[0][0]} {row.top[0][2]:.0%}" for row in shown]
        pixels = [trained.read(row.path) for row in shown]
        draw_attention(trained, list(zip(captions, pixels, strict=True)), Path(given.attention))
        print(f"drawn: {given.attention}", file=sys.stderr)
    return command.USAGE if broken else command.DONE


def _json(value: dict[str, Any]) -> str:
    """A line of JSON, in ASCII where standard output lacks one of its characters or a name is not UTF-8."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return line


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} is not usable here ({reason}): leave it out, or type cpu") from error
    return device


if __name__ == "__main__":
    command.leave(main())
