"""The README's Python runs as it stands, its files exist, its commands parse, its numbers are in results files."""

import json
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


def published(file: Path, row: str) -> set[float]:
    """The numbers that a results file states in a row: rates, ratios, shares."""
    rows = json.loads(file.read_text())["rows"]
    (info,) = (entry["extra_info"] for entry in rows if entry["name"] == f"test_{row}")
    stated = {value for key, value in info.items() if key.startswith(("ratio_to_", "processor_ratio_to_", "percent"))}
    return stated | set(info["rate"].values())


def test_every_measured_number_is_in_the_results_file_it_links_to() -> None:
    cells = re.findall(r"\[([\d.,]+)(?: [×%])?\]\((benchmarks/results/[^)#]+\.json)#([^)]+)\)", README)
    assert len(cells) >= 20
    for text, file, row in cells:
        digits = len(text.partition(".")[2])
        stated = {f"{value:,.{digits}f}" for value in published(ROOT / file, row)}
        assert text in stated, f"{text} is not in row {row} of {file}, which states {sorted(stated)}"


def test_no_other_number_claims_a_measurement() -> None:
    prose = re.sub(r"```.*?```|\[[^]]*\]\([^)]*\)|`[^`]*`", "", README, flags=re.DOTALL)
    assert not re.findall(r"\d[\d.,]* ?(?:%|×|images/s|µs|ms|seconds|minutes|hours)", prose)


def test_links_lead_somewhere() -> None:
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
