"""The rules of the house that a reader of one file cannot see."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.draw_rooms import PICTURE, picture
from tests.rooms import FLOORS, Rooms, imported_packages

ROOT = Path(__file__).parents[1]
# Who may import whom: csrc ← deit_kernels ← deit_fast ← benchmarks, tests.
FORBIDDEN = {
    "kernels/deit_kernels": {"deit_fast", "benchmarks", "tests", "timm", "transformers"},
    "deit_fast": {"benchmarks", "tests"},
}
# Integrations know their hosts.
HOSTS = {"kernels/deit_kernels/integrations": {"timm", "transformers"}}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    hosts = {path: HOSTS.get(str(path.parent.relative_to(ROOT)), set()) for path in files}
    broken = {str(path): bad for path in files if (bad := imported_packages(path) & FORBIDDEN[folder] - hosts[path])}
    assert not broken


def test_every_room_imports_from_lower_floors_only_and_is_small_enough() -> None:
    assert Rooms().broken() == []


def test_the_picture_of_the_floors_is_drawn_from_the_code_as_it_is() -> None:
    assert PICTURE.read_text() == picture(Rooms()), "docs/rooms.svg shows other rooms than the code: type make rooms"


def test_the_kernels_folder_is_no_package() -> None:
    # transformers takes an importable `kernels` for Hugging Face's package of that name.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_only_the_files_that_bind_ops_include_torch() -> None:
    csrc = ROOT / "csrc"
    sources = [path for path in csrc.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert sources
    with_torch = {str(path.relative_to(csrc)) for path in sources if "#include <torch/" in path.read_text()}
    assert with_torch == {"ops.cpp", "loss_ops.cpp"}


@pytest.mark.parametrize("module", ("deit_kernels", "deit_kernels.integrations"))
def test_importing_the_ops_imports_neither_triton_nor_a_framework(module: str) -> None:
    # Against what torch alone imports, which is not ours to judge.
    program = "import sys, {}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    alone, ours = (
        set(
            subprocess.run(
                [sys.executable, "-c", program.format(name)], capture_output=True, text=True, check=True
            ).stdout.split()
        )
        for name in ("torch", module)
    )
    assert "deit_kernels" in ours
    assert not (ours - alone) & {"triton", "timm", "transformers", "PIL", "torchvision", "deit_fast"}


# One file a line: its path in a package called `house`, and what it holds.
HOUSE = {
    "__init__.py": "def __getattr__(name): ...\n",
    "__main__.py": "from .attic.loop import train\n",
    "attic/__init__.py": "from .loop import train\n",
    "attic/__main__.py": "from .loop import train\n",
    "attic/loop.py": "import json\nfrom ..cellar import jars\nfrom .. import ground\ntrain = jars\n",
    "study/__init__.py": "",
    "study/desk.py": "import house\nfrom house import ground\nhere = house.__file__\n",
    "tools/__init__.py": "",
    "tools/shed/saw.py": "from ..ladder import step\nfrom ...attic import train\n",
    "tools/shed/nail.py": "",
    "tools/ladder.py": "from ..ground import stone\nstep = stone\n",
    "cellar/__init__.py": "from .shelf import jars\n",
    "cellar/shelf.py": "import house.ground\njars = 3\n",
    "ground.py": "from .earth import stone\n",
    "earth.py": "stone = 1\n",
}
HOUSE_FLOORS = (("tools/shed",), ("tools/ladder.py",), ("attic", "study"), ("cellar",), ("ground.py", "earth.py"))


def broken(folder: Path, planted: dict[str, str]) -> list[str]:
    """What the rule says of the house with other or further files."""
    for file, text in {**HOUSE, **planted}.items():
        path = folder / "house" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Rooms(folder / "house", HOUSE_FLOORS, "attic/loop.py", 20).broken()


def test_the_rule_holds_in_a_house_that_keeps_it(tmp_path: Path) -> None:
    twelve = {f"cellar/bottle_{number}.py": "" for number in range(11)}
    (sentence,) = broken(tmp_path, {"cellar/rack/box.py": "", **twelve})  # a folder in a room counts with it
    assert sentence.startswith("house/cellar has 13 files")
    (tmp_path / "house/cellar/rack/box.py").unlink()
    assert broken(tmp_path, {"study/letter.py": "\n" * 500, **twelve}) == []


DOWN = "move what both need to a room below, or pass it as an argument"
SIDEWAYS = f"a room on the same floor: {DOWN}"
UPWARDS = f"which is on floor 3, above floor 2: {DOWN}"
GONE = "which does not exist: write the module's path of today"
FACE = "the package's face: import the module that defines the name"
COMMAND = "a command: move what both need into a file beside it"
PLANTED = {
    "sideways": (
        "study/desk.py",
        "import json\nfrom house.attic import train\n",
        2,
        "house/attic/__init__.py",
        SIDEWAYS,
    ),
    "upwards": ("cellar/bin.py", "\nimport house.attic.loop\n", 2, "house/attic/loop.py", UPWARDS),
    "in a function": (
        "cellar/bin.py",
        "def f():\n    from house import study\n",
        2,
        "house/study/__init__.py",
        UPWARDS,
    ),
    "relative": ("cellar/bin.py", "from ..study import desk\n", 1, "house/study/desk.py", UPWARDS),
    "for types": (
        "cellar/bin.py",
        "if TYPE_CHECKING:\n    from ..attic import x\n",
        2,
        "house/attic/__init__.py",
        UPWARDS,
    ),
    "importlib": ("cellar/bin.py", "\nimport_module('house.study.desk')\n", 2, "house/study/desk.py", UPWARDS),
    "the face": ("cellar/bin.py", "import house\ntrain = house.train\n", 2, "house/__init__.py", FACE),
    "what is gone": ("cellar/bin.py", "from .gone import x\n", 1, "house.cellar.gone", GONE),
    "a tool, from the core": (
        "cellar/bin.py",
        "def f():\n    from ..tools import ladder\n",
        2,
        "house/tools/ladder.py",
        f"which is on floor 4, above floor 2: {DOWN}",
    ),
    "a tool, from a tool below": (
        "tools/ladder.py",
        "from .shed import nail\n",
        1,
        "house/tools/shed/nail.py",
        f"which is on floor 5, above floor 4: {DOWN}",
    ),
    "a __main__": ("attic/bin.py", "def f():\n    from .__main__ import x\n", 2, "house/attic/__main__.py", COMMAND),
}


@pytest.mark.parametrize("name", PLANTED)
def test_an_import_that_breaks_the_rule_is_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    file, text, line, target, why = PLANTED[name]
    assert broken(tmp_path, {file: text}) == [f"house/{file}:{line} imports {target}, {why}"]


CIRCLES = {
    "two files": (
        {"earth.py": "stone = 1\ndef floor():\n    from . import ground\n"},
        "house/earth.py:3 imports house/ground.py, house/ground.py:1 imports house/earth.py",
    ),
    "three files": (
        {"study/desk.py": "from .lamp import x\n", "study/lamp.py": "\nimport house.study.oil\n"}
        | {"study/oil.py": "\n\nfrom .desk import x\n"},
        "house/study/desk.py:1 imports house/study/lamp.py, house/study/lamp.py:2 imports house/study/oil.py, "
        "house/study/oil.py:3 imports house/study/desk.py",
    ),
    "a room's face": (
        {"study/__init__.py": "from .desk import x\n", "study/desk.py": "x = 1\nfrom . import y\n"},
        "house/study/__init__.py:1 imports house/study/desk.py, house/study/desk.py:2 imports house/study/__init__.py",
    ),
}


@pytest.mark.parametrize("name", CIRCLES)
def test_a_circle_is_named_with_every_line(name: str, tmp_path: Path) -> None:
    planted, chain = CIRCLES[name]
    end = "move what they share into a file that imports none of them"
    assert broken(tmp_path, planted) == [f"a circle: {chain}: {end}"]


TOO_MUCH = {
    "a thirteenth file": (
        {f"cellar/bottle_{number}.py": "" for number in range(12)},
        "house/cellar has 13 files, 12 are the most: merge two that are one idea, or move one into the room whose "
        "sentence it fits",
    ),
    "a file of 501 lines": (
        {"study/letter.py": "\n" * 501},
        "house/study/letter.py:501 is the last line, 500 are the most: split the file where its idea splits",
    ),
    "a room on no floor": (
        {"garage/car.py": ""},
        "house/garage/ is on no floor: move its code into the room whose sentence it fits, or give it a floor in "
        "FLOORS of tests/rooms.py and run `make rooms`",
    ),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_is_too_large_or_on_no_floor_is_named(name: str, tmp_path: Path) -> None:
    planted, sentence = TOO_MUCH[name]
    assert broken(tmp_path, planted) == [sentence]


HEAVY = (
    "house/attic/loop.py imports {} lines, itself too, 20 are the most; most have {}: let it import less, or write less"
)


@pytest.mark.parametrize(
    ("planted", "lines", "rooms"),
    [
        ({"earth.py": "stone = 1\n" * 16}, 26, "earth.py 16, attic 5, cellar 3"),
        (
            {"ground.py": "from .earth import stone\ndef f():\n    from . import sky\n", "sky.py": "\n" * 12},
            25,
            "sky.py 12, attic 5, cellar 3",
        ),
    ],
    ids=["below", "in a function"],
)
def test_what_a_training_imports_is_counted(tmp_path: Path, planted: dict[str, str], lines: int, rooms: str) -> None:
    floors = (*HOUSE_FLOORS[:-1], (*HOUSE_FLOORS[-1], "sky.py")) if "sky.py" in planted else HOUSE_FLOORS
    broken(tmp_path, planted)
    sentences = Rooms(tmp_path / "house", floors, "attic/loop.py", 20).broken()
    assert HEAVY.format(lines, rooms) in sentences


def test_a_floor_without_its_room_is_named(tmp_path: Path) -> None:
    broken(tmp_path, {})
    (sentence,) = Rooms(tmp_path / "house", (*HOUSE_FLOORS, ("well",)), "attic/loop.py").broken()
    assert sentence == "house/well has a floor and does not exist: take it off FLOORS in tests/rooms.py"


def test_the_page_on_the_layout_names_every_room_and_only_code_that_exists() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`((?:deit_fast|deit_kernels)\.[\w.]+)`", text)
    assert len(set(named)) >= 20
    assert not [name for name in named if not exists(name)]
    rooms = [room if room.endswith(".py") else f"{room}/" for floor in FLOORS for room in floor]
    assert not [room for room in rooms if f"`{room}`" not in text]


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    found, parts = None, name.split(".")
    for end, part in enumerate(parts, 1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
    return True
