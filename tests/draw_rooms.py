"""Draw the floors of deit_fast from what its files import: docs/rooms.svg.

    python -m tests.draw_rooms        or: make rooms

A room has the first line of its docstring, its files, and the rooms that it imports. Nothing in the picture is typed by
hand except the sentence of csrc/, so it is redrawn after a move and a test compares it with the code.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from tests.rooms import PACKAGE, Rooms, imported_packages, room_of

ROOT = PACKAGE.parent
OPS = ROOT / "kernels" / "deit_kernels"
PICTURE = ROOT / "docs" / "rooms.svg"
CSRC = "C++20 and CUDA: the augmentation, bit for bit its NumPy twin; the losses on a CPU; parts of JPEG files."

WIDTH, MARGIN, GUTTER, GAP, PAD = 940, 18, 44, 8, 8
TITLE, TEXT, SMALL = 15.0, 13.0, 11.5
# Widths of characters in units of the font's size: Arial's, rounded up, and those of a monospaced font.
MONO, SANS = 0.61, 0.57
NARROW, WIDE, CAPITAL = dict.fromkeys("ijl.,:;'|!ftr ()-/I", 0.34), dict.fromkeys("mwMWG@%", 0.86), 0.73
COLOURS = ("#7c5cc4", "#5667cf", "#3b7fd0", "#2a91b8", "#239a8f", "#3f9d63", "#7d9a3a", "#b38a2c", "#b96a35")
STYLE = """
    text { font-family: Helvetica, Arial, "Liberation Sans", sans-serif; fill: #1f2430 }
    .mono { font-family: Menlo, Consolas, "Liberation Mono", monospace }
    .title { font-size: 15px; font-weight: 600 }
    .text { font-size: 13px }
    .number { fill: #ffffff !important }
    .small { font-size: 11.5px; fill: #5b6472 }
    .head { font-size: 17px; font-weight: 600 }
    .card { fill: #ffffff; stroke: #d5dae1 }
    .band { fill: #f1f3f6 }
    .room { fill: #ffffff; stroke: #d5dae1 }
    .line { stroke: #8a93a1 }
    .tip { fill: #8a93a1 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e4e8ee }
      .small { fill: #9fa9b8 }
      .card { fill: #12161d; stroke: #303844 }
      .band { fill: #1a2029 }
      .room { fill: #222a35; stroke: #38424f }
    }
"""


class Box(NamedTuple):
    """A room as it is drawn."""

    title: str
    count: str
    texts: list[tuple[str, str]]  # (class, text), from top to bottom, not yet wrapped


def first_line(path: Path) -> str:
    """The first line of the docstring of a file, or of a folder's `__init__.py`."""
    file = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return text.partition("\n")[0].replace("`", "")


def width_of(text: str, kind: str) -> float:
    """How wide a text of a class is at most."""
    size = TITLE if "title" in kind else SMALL if "small" in kind else TEXT
    if "mono" in kind:
        return size * MONO * len(text)
    return size * sum({**NARROW, **WIDE}.get(letter, CAPITAL if letter.isupper() else SANS) for letter in text)


def wrapped(text: str, kind: str, width: float) -> list[str]:
    """Lines of whole words."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and width_of(longer, kind) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def box_of(rooms: Rooms, room: str) -> Box:
    """A room's title, sentence, files and imports."""
    members = rooms.members(room)
    texts = [("text", first_line(PACKAGE / room))]
    if not room.endswith(".py"):
        folders: dict[str, list[str]] = {}
        for file in members:
            folder, _, name = file.removeprefix(f"{room}/").rpartition("/")
            folders.setdefault(folder, []).append(name.removesuffix(".py"))
        texts += [
            ("small mono", (f"{folder}/: " if folder else "") + "\u00a0· ".join(sorted(names, key=_commands_first)))
            for folder, names in sorted(folders.items())
        ]
    used = [name.removesuffix(".py") for name in rooms.used_by(room)]
    if any("deit_kernels" in imported_packages(PACKAGE / file) for file in rooms.files if room_of(file) == room):
        used.append("deit_kernels")
    if used:
        texts.append(("small", "imports " + ", ".join(used)))
    inner = [file for file in members if file.count("/") > 1]
    count = "" if room.endswith(".py") else f"{len(members) - len(inner)} files" + (f" + {len(inner)}" if inner else "")
    return Box(room if room.endswith(".py") else f"{room}/", count, texts)


def _columns(boxes: list[Box]) -> int:
    return {1: 1, 2: 2, 4: 2}.get(len(boxes), 3)


def _commands_first(name: str) -> tuple[bool, str]:
    return name != "__main__", name


def lay_out(boxes: list[Box], columns: int, x: float, y: float, colour: str) -> tuple[list[str], float]:
    """Boxes in rows, equally high in a row; their SVG and where they end."""
    drawn: list[str] = []
    width = (WIDTH - MARGIN - PAD - x - GAP * (columns - 1)) / columns
    for first in range(0, len(boxes), columns):
        row = boxes[first : first + columns]
        inner = width - 2 * PAD - 3
        contents = [[(kind, line) for kind, text in box.texts for line in wrapped(text, kind, inner)] for box in row]
        beside = columns == 1 and width_of(row[0].texts[0][1], "text") < inner - 200  # the sentence beside the title
        height = max(34 + sum(_leading(kind) for kind, _ in content[beside:]) for content in contents)
        for column, (box, content) in enumerate(zip(row, contents, strict=True)):
            left = x + column * (width + GAP)
            drawn += [
                f'<rect class="room" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5"/>',
                f'<rect x="{left:.1f}" y="{y:.1f}" width="4" height="{height:.1f}" rx="2" fill="{colour}"/>',
                _text("title mono", left + PAD + 3, y + 21, box.title),
                _text("small", left + width - PAD, y + 20, box.count, "end"),
            ]
            if beside:
                after = left + PAD + 3 + width_of(f"{box.title}  ", "title mono")
                drawn.append(_text("text", after, y + 21, content[0][1]))
            baseline = y + 23.0
            for kind, line in content[beside:]:
                baseline += _leading(kind)
                drawn.append(_text(kind, left + PAD + 3, baseline, line))
        y += height + GAP
    return drawn, y - GAP


def _leading(kind: str) -> float:
    return 17.0 if "small" in kind else 18.0


def _text(kind: str, x: float, y: float, text: str, anchor: str = "") -> str:
    end = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{end}>{escape(text)}</text>' if text else ""


def _band(x: float, top: float, bottom: float) -> str:
    size = f'width="{WIDTH - MARGIN - x}" height="{bottom - top:.1f}"'
    return f'<rect class="band" x="{x}" y="{top:.1f}" {size} rx="8"/>'


def picture(rooms: Rooms) -> str:
    """The SVG."""
    body: list[str] = []
    y, axis = 62.0, MARGIN + 17
    floors = [[box_of(rooms, room) for room in floor] for floor in rooms.floors]
    folders = sorted(path for path in OPS.iterdir() if (path / "__init__.py").exists())
    ops = [Box(f"{path.name}/", "", [("text", first_line(path))]) for path in folders]
    left = MARGIN + GUTTER
    middles: list[float] = []
    for index, boxes in enumerate(floors):
        number, colour = len(floors) - index, COLOURS[index % len(COLOURS)]
        drawn, end = lay_out(boxes, _columns(boxes), left + PAD, y + PAD, colour)
        middles.append((y + end + PAD) / 2)
        body += [
            _band(left, y, end + PAD),
            f'<circle cx="{axis}" cy="{middles[-1]:.1f}" r="13" fill="{colour}"/>',
            _text("title number", axis, middles[-1] + 5, str(number), "middle"),
            *drawn,
        ]
        y = end + PAD + 8
    y += 26
    body.append(_text("title", left, y - 10, "Below the house, a package of its own: kernels/deit_kernels/"))
    arrow = y + 14
    for boxes in (ops, [Box("csrc/", "", [("text", CSRC)])]):
        drawn, end = lay_out(boxes, _columns(boxes), left + PAD, y + PAD, "#8a93a1")
        body += [_band(left, y, end + PAD), *drawn]
        y = end + PAD + 8
    height = y + MARGIN - 8
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="The rooms of deit_fast, floor by floor">',
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.1f}" rx="10"/>',
        _text("head mono", left, 32, "deit_fast/"),
        _text(
            "text",
            left + 112,
            31,
            "A room imports from the floors below it only; the files of deit_fast/ itself are one room a floor.",
        ),
        _text("small", left, 51, "drawn from the imports, by make rooms"),
        f'<line class="line" x1="{axis}" y1="{middles[0]:.1f}" x2="{axis}" y2="{arrow:.1f}" stroke-width="1.5"/>',
        f'<path class="tip" d="M {axis - 5} {arrow - 2:.1f} h 10 l -5 9 z"/>',
    ]
    return "\n".join(line for line in [*head, *body, "</svg>"] if line) + "\n"


def main() -> int:
    PICTURE.write_text(picture(Rooms()))
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
