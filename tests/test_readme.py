"""The README's Python runs as it stands, its files exist, and its commands are spelled as the parser knows them."""

import re
import shlex
from pathlib import Path

import pytest

from deit_fast.recipes import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_training_commands_parse() -> None:
    commands = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]
    trainings = [shlex.split(line)[3:] for line in commands if line.startswith("python -m deit_fast.train")]
    assert len(trainings) == 2
    for arguments in trainings:
        parse(arguments, "").check()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"`?make ([a-z-]+)`?", README))
    assert {"train", "test", "test-all", "wheel"} <= named
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in named)


def test_every_number_is_filled_in() -> None:
    assert "DEMO_" not in README


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
