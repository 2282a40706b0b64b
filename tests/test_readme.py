"""The README's Python runs as it stands, its files exist, its commands parse, its numbers are in results files."""

import json
import re
import shlex
from pathlib import Path

import pytest

from deit_fast.recipes.named import parse

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


LINK = r"\[([\d.,]+)(?: [×%])?\]\((benchmarks/results/[^)#]+\.json)#([^)]+)\)"


def row_of(file: str, row: str) -> dict:
    """What a results file says of a row."""
    rows = json.loads((ROOT / file).read_text())["rows"]
    (info,) = (entry["extra_info"] for entry in rows if entry["name"] == f"test_{row}")
    return info


def published(file: str, row: str) -> set[float]:
    """The numbers that a results file states in a row: rates, ratios, shares."""
    info = row_of(file, row)
    stated = {value for key, value in info.items() if key.startswith(("ratio_to_", "processor_ratio_to_", "percent"))}
    return stated | set(info["rate"].values())


def test_every_measured_number_is_in_the_results_file_it_links_to() -> None:
    cells = re.findall(LINK, README)
    assert len(cells) >= 20
    for text, file, row in cells:
        digits = len(text.partition(".")[2])
        stated = {f"{value:,.{digits}f}" for value in published(file, row)}
        assert text in stated, f"{text} is not in row {row} of {file}, which states {sorted(stated)}"


def test_every_cell_of_the_comparison_is_the_number_of_its_column() -> None:
    table = README[README.index("| on two cores") : README.index("One run of `make bench`")].strip().splitlines()
    assert [cell.split()[0] for cell in table[0].split("|")[2:6]] == ["ours", "timm", "facebookresearch/deit", "ours"]
    for line in table[2:]:
        ours, theirs, official, ratio = line.split("|")[2:6]
        (_, file, row) = re.search(LINK, ours).groups()
        info = row_of(file, row)
        peer = next((name for name in ("torch", "timm's host share") if f"{name}:" in theirs), "timm")
        expected = [
            info["rate"][info["ours"]],
            info["rate"][peer],
            info["rate"].get("official"),
            info[f"ratio_to_{peer}"],
        ]
        for cell, value in zip((ours, theirs, official, ratio), expected, strict=True):
            for text, of_file, of_row in re.findall(LINK, cell):
                assert (of_file, of_row) == (file, row)
                assert text == f"{value:,.{len(text.partition('.')[2])}f}"
            assert not re.search(r"\d", re.sub(LINK, "", cell)), f"a number without its file: {cell}"
        assert len(re.findall(LINK, line)) in (3, 4)


def test_the_run_behind_the_comparison_is_the_one_that_is_named() -> None:
    (named,) = re.findall(
        r"One run of `make bench` on two cores of an ([\w ]+?) of a cloud\s+machine, torch ([\d.]+), ([\d-]{10})\.",
        README,
    )
    files = {file for _, file, _ in re.findall(LINK, README[: README.index("One run of `make bench`")])}
    (file,) = files
    content = json.loads((ROOT / file).read_text())
    machine = content["machine"].replace("-", " ")
    assert (machine, content["versions"]["torch"], content["date"]) == (f"2 core {named[0].lower()}", *named[1:])


def test_no_other_number_claims_a_measurement() -> None:
    prose = re.sub(r"```.*?```|\[[^]]*\]\([^)]*\)|`[^`]*`", "", README, flags=re.DOTALL)
    assert not re.findall(r"\d[\d.,]* ?(?:%|×|images/s|µs|ms|seconds|minutes|hours)", prose)


def test_links_lead_somewhere() -> None:
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
