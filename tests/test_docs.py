"""Every code block of docs/ is executed, on a folder of 3 × 20 photographs.

Training commands are read as they stand and run with small sizes: `<!-- own sizes -->` keeps those of the page, and
`<!-- own epochs -->` the number of epochs. What needs ImageNet, a network or minutes, `<!-- parsed only: … -->`, is
read by the parsers. Python runs as it is.
"""

import re
import shlex
from pathlib import Path

import pytest

from deit_fast import command
from deit_fast.__main__ import COMMANDS, module_of
from deit_fast.config import Config
from deit_fast.model import CONFIGS
from deit_fast.recipes.named import parse
from deit_fast.train import train
from tests.deit_fast.command import command_line
from tests.small_data import write_flowers

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
BLOCK = re.compile(r"(?:<!-- ([^>]*) -->\n)?```(\w+)\n(.*?)```", flags=re.DOTALL)
FIRST = "your-own-teacher.md"  # whose runs other pages use


def small(config: Config, epochs: int = 1) -> Config:
    """The same command for seconds: one epoch, 32 pixels, a model of one block."""
    if config.model.model in CONFIGS:
        model = {"patch_size": 8, "width": 48, "depth": 1, "heads": 3}
    else:
        model = {"model": "test_efficientnet", "weights": ""}
    return config.replace(image_size=32, epochs=epochs, warmup_epochs=0.1, batch_size=16, repeats=1, threads=1, **model)


def read(name: str, arguments: list[str]) -> None:
    """Let the parser of a command judge its arguments."""
    if name in ("train", "teacher"):
        parse(arguments, "").check()
        return
    module = module_of(name)
    kind, flags = (module.COMMANDS[arguments[0]], arguments[1:]) if name == "data" else (module.Settings, arguments)
    command.parse(kind, flags, program="", description="")


def execute(line: str, mark: str) -> None:
    words = shlex.split(line)
    module = next((index + 1 for index, word in enumerate(words[:-1]) if word == "-m"), 0)
    ours = next((index for index, word in enumerate(words) if "=" not in word), 0)  # behind variables
    if module and re.match(r"deit_fast(\.|$)", words[module]):
        ours = module  # of python, torchrun, srun …
    if words[ours].startswith(("deit-fast", "deit_fast")):
        words = ["deit-fast", *filter(None, [words[ours].partition(".")[2]]), *words[ours + 1 :]]
    if words[0] == "deit-fast":
        name, arguments = words[1], words[2:]
        assert name in COMMANDS
        read(name, arguments)
        if mark.startswith("parsed only"):
            return
        if name == "train":
            config = parse(arguments, "")
            epochs = config.optim.epochs if mark == "own epochs" else 1
            train(config if mark == "own sizes" else small(config, epochs))
            return
        if name == "teacher":
            arguments = command_line(small(parse(arguments, "")))
        assert module_of(name).main(arguments) == 0, line
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"{line}: see test_examples.py"
    else:
        assert mark.startswith("parsed only"), f"{line} would not be executed"


def run_page(name: str) -> None:
    namespace: dict[str, object] = {}
    for mark, language, code in BLOCK.findall((DOCS / name).read_text()):
        if language == "python":
            exec(compile(code, name, "exec"), namespace)
        else:
            assert language == "bash", f"{name}: {language} would not be executed"
            for line in code.strip().splitlines():
                for command in line.split(" && "):
                    execute(command, mark)


@pytest.mark.parametrize("name", PAGES)
def test_commands_within_the_text_parse(name: str) -> None:
    for line in re.findall(r"`deit-fast ([a-z]+ [^`…]+)`", (DOCS / name).read_text()):
        command_name, *arguments = shlex.split(line)
        if (command_name, len(arguments)) != ("data", 1):  # `deit-fast data pack` is a name
            read(command_name, arguments)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images, in which the first page has been followed."""
    folder = tmp_path_factory.mktemp("docs")
    write_flowers(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        run_page(FIRST)
    return folder


@pytest.mark.parametrize("name", [name for name in PAGES if name != FIRST])
def test_every_block_of_a_page_runs(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    run_page(name)


def test_the_first_page_left_what_the_others_use(workplace: Path) -> None:
    for name in ("flowers-teacher", "flowers-deit", "flowers-own", "flowers-soft", "flowers-seed1"):
        assert (workplace / "runs" / name / "summary.json").is_file()


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_are_there_and_every_page_is_listed(name: str) -> None:
    text = (DOCS / name).read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert not [link for link in links if not (DOCS / link).exists()]
    assert name == "README.md" or f"({name})" in (DOCS / "README.md").read_text()


@pytest.mark.parametrize("name", ["from-deit.md", "from-timm.md"])
def test_the_tables_name_flags_that_exist(name: str) -> None:
    rows = re.findall(r"^\| `[^|]*\| ([^|]*) \|", (DOCS / name).read_text(), flags=re.MULTILINE)
    named = {flag for cell in rows for flag in re.findall(r"`--([a-z-]+)", cell)}
    assert len(rows) > 20 and len(named) > 20
    assert not {flag for flag in named if flag.replace("-", "_") not in Config().flat()}
