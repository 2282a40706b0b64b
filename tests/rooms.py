"""The rooms of deit_fast: the floor of each, what its files import, and the rule that keeps the drawing true.

    python -m tests.rooms         every line that breaks the rule, in a sentence; exit code 1 if there is one

A room is a folder of deit_fast/ or of deit_fast/tools/; files that lie there directly and share a floor are one room. A
room imports from lower floors only, wherever in a file the import stands. The tools stand on the core, so the core
never imports one; what a training imports is counted. No files import each other in a circle, nothing imports a
`__main__`, and nothing inside takes a name from the package's face, `deit_fast/__init__.py`.
`python -m tests.draw_rooms` draws the floors as docs/rooms.svg.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "deit_fast"
WING = "tools"  # the folder of the package whose folders are rooms of their own
# From the top floor to the ground floor.
TOOLS = (
    ("tools/demo.py",),
    ("tools/replicate",),
    ("tools/evaluate", "tools/parity", "tools/benchmark"),
    ("tools/report",),
    ("tools/predict.py", "tools/attention_maps.py", "tools/export", "tools/data"),
    ("tools/pixels.py",),
)
CORE = (
    ("train",),
    ("teacher",),
    ("scores.py",),
    ("weights",),
    ("run",),
    ("data",),
    ("ranks", "recipes"),
    tuple("model.py config.py files.py command.py names.py picture.py progress.py criterion.py timm_task.py".split()),
)
FLOORS = (*TOOLS, *CORE)
# Above all floors: the faces of the package and its wing, the console script, and the command that reports what it has
# trained.
OUTSIDE = {"__init__.py", "__main__.py", f"{WING}/__init__.py", "train/__main__.py"}
ENTRY = "train/loop.py"  # what it imports is the core of a training
COUNTED_APART = {"data/sources"}  # one room with data/ for imports, a folder of its own for its number of files
MOST_FILES, MOST_LINES, MOST_CORE_LINES = 12, 500, 11_500


class Import(NamedTuple):
    """One import of one file: `file`, `line`, and the imported file; both as paths in the package."""

    file: str
    line: int
    target: str


class Rooms:
    """A package's files, floors and imports.

    Args:
        package: its folder, whose name is the package's.
        floors: from the top floor to the ground floor, folders and files of `package`.
        entry: the file whose imports, all in all, have at most `most_core_lines` lines.

    Attributes:
        files: path in the package → number of lines.
        imports: within the package, in the order of files and lines.
        missing: imports of modules that do not exist, as (file, line, module).
    """

    def __init__(
        self,
        package: Path = PACKAGE,
        floors: tuple[tuple[str, ...], ...] = FLOORS,
        entry: str = ENTRY,
        most_core_lines: int = MOST_CORE_LINES,
    ) -> None:
        self._package, self.floors, self._entry, self._most_core_lines = package, floors, entry, most_core_lines
        self.files = {
            str(path.relative_to(package)): len(path.read_text().splitlines()) for path in sorted(package.rglob("*.py"))
        }
        self.imports: list[Import] = []
        self.missing: list[tuple[str, int, str]] = []
        for file in self.files:
            for line, module in sorted(set(self._modules(file))):
                target = self._file(module)
                if target is None:
                    self.missing.append((file, line, module))
                elif target != file:
                    self.imports.append(Import(file, line, target))

    def floor(self, room: str) -> int | None:
        """1 is the ground floor; None: on no floor."""
        return next((len(self.floors) - above for above, rooms in enumerate(self.floors) if room in rooms), None)

    def members(self, room: str) -> list[str]:
        """The files of a room, its face left out."""
        return [file for file in self.files if room_of(file) == room and not file.endswith("__init__.py")]

    def used_by(self, room: str) -> list[str]:
        """The rooms that a room imports, from the highest floor to the lowest."""
        inside = [one for one in self.imports if one.file not in OUTSIDE]
        targets = {room_of(target) for file, _, target in inside if room_of(file) == room} - {room}
        return [name for rooms in self.floors for name in rooms if name in targets]

    def imported_by(self, entry: str) -> set[str]:
        """The files that importing `entry` may import, itself and the faces of folders too, in functions too."""
        found: set[str] = set()
        waiting = [entry]
        while waiting:
            file = waiting.pop()
            if file not in found:
                found.add(file)
                waiting += [target for importer, _, target in self.imports if importer == file]
                faces = (f"{folder}/__init__.py".removeprefix("./") for folder in Path(file).parents)
                waiting += [face for face in faces if face in self.files]
        return found

    def broken(self) -> list[str]:
        """A sentence for everything that breaks the rule; [] when it holds."""
        return [*self._unplaced(), *self._imports_upwards(), *self._circles(), *self._too_large(), *self._heavy_core()]

    def _modules(self, file: str) -> Iterator[tuple[int, str]]:
        """(line, module of this package) of every import in a file, in functions and under TYPE_CHECKING too."""
        package = self._package.name
        here = [package, *Path(file).parent.parts]
        for node in ast.walk(ast.parse((self._package / file).read_text())):
            modules = []
            if isinstance(node, ast.Import):  # the package's own name alone takes nothing from it yet
                modules = [alias.name for alias in node.names if alias.name != package]
            elif isinstance(node, ast.ImportFrom):
                above = here[: len(here) - node.level + 1] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                modules = [self._submodule(base, alias.name) for alias in node.names]
            elif isinstance(node, ast.Attribute) and _name(node.value) == package and not node.attr.startswith("__"):
                modules = [self._submodule(package, node.attr)]
            elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__", "run_module"):
                named = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
                modules = [".".join(here) + named if named.startswith(".") else named]
            yield from ((node.lineno, name) for name in modules if f"{name}.".startswith(f"{package}."))

    def _submodule(self, module: str, name: str) -> str:
        """What `from module import name` imports: the module of that name where there is one."""
        return f"{module}.{name}" if self._file(f"{module}.{name}") else module

    def _file(self, module: str) -> str | None:
        path = "/".join(module.split(".")[1:])
        candidates = (f"{path}.py", f"{path}/__init__.py") if path else ("__init__.py",)
        return next((name for name in candidates if name in self.files), None)

    def _path(self, file: str, line: int | None = None) -> str:
        return f"{self._package.name}/{file}" + (f":{line}" if line else "")

    def _unplaced(self) -> Iterator[str]:
        rooms = {room_of(file): None for file in self.files if file not in OUTSIDE}
        for room in rooms:
            if self.floor(room) is None:
                where = room if room.endswith(".py") else f"{room}/"
                yield (
                    f"{self._path(where)} is on no floor: move its code into the room whose sentence it fits, or give "
                    f"it a floor in FLOORS of tests/rooms.py and run `make rooms`"
                )
        for room in (room for floor in self.floors for room in floor if room not in rooms):
            yield f"{self._path(room)} has a floor and does not exist: take it off FLOORS in tests/rooms.py"

    def _imports_upwards(self) -> Iterator[str]:
        for file, line, module in self.missing:
            yield f"{self._path(file, line)} imports {module}, which does not exist: write the module's path of today"
        for file, line, target in self.imports:
            begin = f"{self._path(file, line)} imports {self._path(target)}"
            if target == "__main__.py" or target.endswith("/__main__.py"):
                yield f"{begin}, a command: move what both need into a file beside it"
                continue
            if file in OUTSIDE:
                continue
            if target == "__init__.py":
                yield f"{begin}, the package's face: import the module that defines the name"
                continue
            mine, its = room_of(file), room_of(target)
            floor, above = self.floor(mine), self.floor(its)
            one_room = mine == its or (mine.endswith(".py") and its.endswith(".py") and floor == above)
            if not one_room and floor is not None and above is not None and above >= floor:
                what = (
                    "a room on the same floor" if above == floor else f"which is on floor {above}, above floor {floor}"
                )
                yield f"{begin}, {what}: move what both need to a room below, or pass it as an argument"

    def _circles(self) -> Iterator[str]:
        """The shortest circle through each file that is in one, each circle once."""
        edges: dict[str, dict[str, int]] = {}
        for file, line, target in self.imports:
            edges.setdefault(file, {}).setdefault(target, line)
        told: set[frozenset[str]] = set()
        for file in edges:
            circle = _way_back(file, edges)
            if circle and frozenset(circle) not in told:
                told.add(frozenset(circle))
                steps = zip(circle, [*circle[1:], file], strict=True)
                chain = ", ".join(
                    f"{self._path(here, edges[here][there])} imports {self._path(there)}" for here, there in steps
                )
                yield f"a circle: {chain}: move what they share into a file that imports none of them"

    def _too_large(self) -> Iterator[str]:
        folders: dict[str, int] = {}
        for file in self.files:
            room = room_of(file)
            folder = next((name for name in COUNTED_APART if file.startswith(f"{name}/")), room)
            folder = str(Path(file).parent) if room.endswith(".py") else folder
            folders[folder] = folders.get(folder, 0) + (not file.endswith("__init__.py"))
        for folder, count in folders.items():
            if count > MOST_FILES:
                yield (
                    f"{self._path(folder)} has {count} files, {MOST_FILES} are the most: merge two that are one idea, "
                    f"or move one into the room whose sentence it fits"
                )
        for file, lines in self.files.items():
            if lines > MOST_LINES:
                yield (
                    f"{self._path(file, lines)} is the last line, {MOST_LINES} are the most: split the file where its "
                    f"idea splits"
                )

    def _heavy_core(self) -> Iterator[str]:
        if self._entry not in self.files:
            yield f"{self._path(self._entry)} does not exist: name the training's file as ENTRY in tests/rooms.py"
            return
        lines = Counter({room: 0 for floor in self.floors for room in floor})
        for file in self.imported_by(self._entry):
            lines[room_of(file)] += self.files[file]
        if lines.total() > self._most_core_lines:
            largest = ", ".join(f"{room} {count:,}" for room, count in lines.most_common(3))
            yield (
                f"{self._path(self._entry)} imports {lines.total():,} lines, itself too, {self._most_core_lines:,} are "
                f"the most; most have {largest}: let it import less, or write less"
            )


def room_of(file: str) -> str:
    """The folder in the package or in its wing, or the file itself where it lies in none."""
    return "/".join(file.split("/")[: 2 if file.startswith(f"{WING}/") else 1])


def imported_packages(path: Path) -> set[str]:
    """The packages that a file imports by their full name."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages.add(node.module.split(".")[0])
    return packages


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _way_back(start: str, edges: dict[str, dict[str, int]]) -> list[str]:
    """The files of the shortest way from `start` to itself; [] where there is none."""
    before: dict[str, str] = {}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        for there in edges.get(here, {}):
            if there == start:
                way = [here]
                while way[-1] != start:
                    way.append(before[way[-1]])
                return way[::-1]
            if there not in before:
                before[there] = here
                waiting.append(there)
    return []


def main() -> int:
    broken = Rooms().broken()
    print(*broken, sep="\n", end="\n" if broken else "")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
