"""CONTRIBUTING.md's lists of files: each holds exactly the files that name its example.

A list is a section "### A flag: `layer_decay`": its numbered lines hold files and folders in backticks. A folder stands
for the files below it.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
KINDS = ("A flag", "A recipe", "A data source", "An augmentation op", "A loss option", "A command")
# What names an example without being a place for the next one of its kind.
ELSEWHERE = {
    "CHANGELOG.md": "what a user notices gets a line anyway",
    "CONTRIBUTING.md": "the list itself",
    "benchmarks/results/": "measurements",
    "tests/test_first_day.py": "the test of the lists",
}
OF_EXAMPLE = {
    "A data source": {
        "deit_fast/recipes/paper.py": "the paper trains on CIFAR",
        "docs/recipes.md": "the paper trains on CIFAR",
        "tests/deit_fast/recipes/recipe_table.json": "the paper trains on CIFAR",
        "docs/from-deit.md": "a data set of the official code",
    },
    "A command": {"tests/deit_fast/data/test_order.py": "the parity of a number"},
}


def sections(page: str) -> dict[str, tuple[str, str]]:
    """Kind of thing → (its example, the text of its list)."""
    found = re.findall(r"^### (An? [\w ]+): `([\w-]+)`\n(.*?)(?=^#|\Z)", page, flags=re.MULTILINE | re.DOTALL)
    return {kind: (example, text) for kind, example, text in found}


def listed(text: str) -> set[str]:
    """Files and folders of the numbered lines, which may go on in indented ones."""
    items = re.findall(r"^\d+\. .*(?:\n {3}.*)*", text, flags=re.MULTILINE)
    return {path for item in items for path in re.findall(r"`([\w-]+/[\w./-]*|README\.md)`", item)}


def naming(example: str) -> set[str]:
    """The files under version control whose text holds an example as a word, or whose path has it as a name."""
    word = re.sub("[-_]", "[-_]", example)
    git = ["git", "grep", "-liwE", "-z", word]
    found = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    by_path = [file for file in files.split("\0") if re.search(rf"(^|/){word}(/|\.|$)", file)]
    return {file for file in (*found.split("\0"), *by_path) if file and (ROOT / file).exists()}


def wrong(kind: str, page: str) -> list[str]:
    """A sentence for each file that a list misses or names in vain."""
    example, text = sections(page)[kind]
    entries, elsewhere = listed(text), (*ELSEWHERE, *OF_EXAMPLE.get(kind, {}))
    files = {file for file in naming(example) if not file.startswith(elsewhere)}
    missed = {file for file in files if not any(file == entry or is_below(file, entry) for entry in entries)}
    idle = {entry for entry in entries if not any(file == entry or is_below(file, entry) for file in files)}
    return [
        *(f"{file} names {example}, and CONTRIBUTING.md's list of {kind.lower()} lacks it" for file in sorted(missed)),
        *(f"CONTRIBUTING.md's list of {kind.lower()} has {entry}, where no {example} is" for entry in sorted(idle)),
    ]


def is_below(file: str, entry: str) -> bool:
    return entry.endswith("/") and file.startswith(entry)


def test_there_is_a_list_for_each_kind() -> None:
    assert tuple(sections(PAGE)) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_holds_exactly_the_files_that_name_its_example(kind: str) -> None:
    assert not wrong(kind, PAGE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_that_misses_a_file_or_holds_another_is_wrong(kind: str) -> None:
    for entry in listed(sections(PAGE)[kind][1]):
        head, title, tail = PAGE.partition(f"### {kind}: ")
        less = head + title + tail.replace(f"`{entry}`", "`–`", 1)
        assert f"list of {kind.lower()} lacks it" in "\n".join(wrong(kind, less)), entry
    more = PAGE.replace("\n1. ", "\n1. `csrc/none.h`, ")
    assert wrong(kind, more) == [
        f"CONTRIBUTING.md's list of {kind.lower()} has csrc/none.h, where no {sections(PAGE)[kind][0]} is"
    ]


def test_what_names_an_example_elsewhere_does() -> None:
    for kind, files in OF_EXAMPLE.items():
        assert set(files) <= naming(sections(PAGE)[kind][0])
