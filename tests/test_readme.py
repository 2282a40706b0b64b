"""README, CONTRIBUTING, docs/measured.md: Python runs, commands parse, links and numbers lead to what they say."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.test_docs import read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
PAGES = ["README.md", "CONTRIBUTING.md", "docs/measured.md"]
COMPARED = ["README.md", "docs/measured.md"]


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_commands_parse() -> None:
    lines = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]
    commands = [shlex.split(line.replace("python -m deit_fast.", "deit-fast ")) for line in lines]
    ours = [words[1:] for words in commands if words[0] == "deit-fast"]
    assert [name for name, *_ in ours] == ["train", "evaluate", "predict", "export"]
    for name, *arguments in ours:
        read(name, arguments)


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(), flags=re.MULTILINE))
    assert named or page != "README.md"
    assert page != "README.md" or {"train", "test", "test-all", "wheel"} <= named
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in named)


@pytest.mark.parametrize("page", ["README.md", "docs/quick-start.md", "docs/your-own-teacher.md"])
def test_whoever_may_wait_for_hours_reads_of_the_dry_run(page: str) -> None:
    assert "`--dry-run`" in (ROOT / page).read_text()


def test_the_readme_is_short_and_its_map_shows_what_is_there() -> None:
    assert len(README.splitlines()) < 150
    (drawn,) = (code for language, code in BLOCKS if language == "")
    assert len(drawn.splitlines()) <= 15
    folder = ""
    for line in drawn.splitlines():
        paths = re.findall(r"(?:^|  )([\w/]+(?:/|\.py))", line)
        folder = folder if line.startswith(" ") else paths[0]
        assert paths and all((ROOT / (folder if line.startswith(" ") else "") / path).exists() for path in paths), line


LINK = r"\[([\d.,]+)(?: [×%])?\]\((?:\.\./)?(benchmarks/results/[^)#]+\.json)#([^)]+)\)"


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


@pytest.mark.parametrize(("page", "least"), [("README.md", 15), ("docs/measured.md", 50)])
def test_every_measured_number_is_in_the_results_file_it_links_to(page: str, least: int) -> None:
    cells = re.findall(LINK, (ROOT / page).read_text())
    assert len(cells) >= least
    for text, file, row in cells:
        digits = len(text.partition(".")[2])
        stated = {f"{value:,.{digits}f}" for value in published(file, row)}
        assert text in stated, f"{text} is not in row {row} of {file}, which states {sorted(stated)}"


@pytest.mark.parametrize(("page", "rows"), [("README.md", 4), ("docs/measured.md", 18)])
def test_every_cell_of_the_comparison_is_the_number_of_its_column(page: str, rows: int) -> None:
    text = (ROOT / page).read_text()
    table = text[text.index("| on two cores") : text.index("One run of `make bench`")].strip().splitlines()
    assert [cell.split()[0] for cell in table[0].split("|")[2:6]] == ["ours", "timm", "facebookresearch/deit", "ours"]
    assert len(table[2:]) == rows
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
            for number, of_file, of_row in re.findall(LINK, cell):
                assert (of_file, of_row) == (file, row)
                assert number == f"{value:,.{len(number.partition('.')[2])}f}"
            assert not re.search(r"\d", re.sub(LINK, "", cell)), f"a number without its file: {cell}"
        assert len(re.findall(LINK, line)) in (3, 4)


@pytest.mark.parametrize("page", COMPARED)
def test_the_run_behind_the_comparison_is_the_one_that_is_named(page: str) -> None:
    text = (ROOT / page).read_text()
    (named,) = re.findall(
        r"One run of `make bench` on two cores of an ([\w ]+?) of a cloud\s+machine, torch ([\d.]+), ([\d-]{10})\.",
        text,
    )
    files = {file for _, file, _ in re.findall(LINK, text[: text.index("One run of `make bench`")])}
    (file,) = files
    content = json.loads((ROOT / file).read_text())
    machine = content["machine"].replace("-", " ")
    assert (machine, content["versions"]["torch"], content["date"]) == (f"2 core {named[0].lower()}", *named[1:])


@pytest.mark.parametrize("page", COMPARED)
def test_no_other_number_claims_a_measurement(page: str) -> None:
    prose = re.sub(r"```.*?```|\[[^]]*\]\([^)]*\)|`[^`]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    assert not re.findall(r"\d[\d.,]* ?(?:%|×|images/s|µs|ms|seconds|minutes|hours)", prose)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
)
def test_named_test_files_exist(page: str) -> None:
    named = set(re.findall(r"\btests/[\w/]+\.py|(?<![\w/])test_\w+\.py", (ROOT / page).read_text()))
    assert not [name for name in named if not ((ROOT / name).exists() or [*ROOT.glob(f"tests/**/{name}")])]
