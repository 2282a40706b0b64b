"""Phrases that were rewritten once do not come back: a reader had to decode them, and the field has a word for each."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = ("*.py", "*.md", "*.cpp", "*.h", "*.cu", "*.cuh", "*.toml", "*.sh", "Makefile")
PLAIN = {
    "is no number": "is NaN or infinite",
    "was no number": "was NaN or infinite",
    "are no number": "are NaN or infinite",
    "no numbers": "NaN, or what is missing",
    "a weight is none": "a weight is NaN or infinite",
    "numbers are none": "NaN or infinite",
    "none of ours": "not a model of deit_fast",
    "forms of ours": "our own variants",
    "are no peers": "are not counted as peers",
    "has to say": "prints, or reports",
    "have to say": "print, or report",
    "says itself": "already stores",
    "said itself": "already stores",
    "taken down": "recorded",
    "take down": "record",
    "takes down": "records",
    "for whoever asks": "the purpose in a clause of its own",
    "the largest but one": "the second largest",
    "tells of itself": "reports",
    "a loss that is none": "a loss that is NaN or infinite",
}
# What may stand between two words of a sentence: a line's end, with the sign of a comment or the quotes of a string.
BETWEEN = r"""(?:\s|["'#/*]|\bf(?="))+"""


def found(text: str) -> Iterator[tuple[int, str]]:
    """(line, phrase) of every phrase in a text, also where it goes over the end of a line."""
    for phrase in PLAIN:
        first, *words = phrase.split()
        pattern = BETWEEN.join([rf"\b[{first[0].upper()}{first[0]}]{first[1:]}", *words]) + r"\b"
        for match in re.finditer(pattern, text):
            yield text.count("\n", 0, match.start()) + 1, phrase


def test_no_file_holds_a_phrase_that_was_rewritten() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *TEXTS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    files = [name for name in listed if name and (ROOT / name).is_file() and ROOT / name != Path(__file__)]
    assert len(files) > 200
    sentences = [
        f'{name}:{line} says "{phrase}": write {PLAIN[phrase]}'
        for name in files
        for line, phrase in found((ROOT / name).read_text())
    ]
    assert not sentences, "\n".join(sentences)


@pytest.mark.parametrize("phrase", PLAIN)
def test_a_phrase_is_found_in_a_comment_in_a_string_and_over_the_end_of_a_line(phrase: str) -> None:
    head, _, tail = phrase.partition(" ")
    for text in (
        f"\nx = 1  # where it {phrase}.\n",
        f"\n    # … {head}\n    # {tail}\n",
        f'\nprint(\n    f"a {head} "\n    f"{tail}"\n)\n',
        f"\n{phrase[0].upper()}{phrase[1:]} of the file.\n",
    ):
        assert [name for _, name in found(text)] == [phrase]
    assert list(found(f"\n\n{phrase}")) == [(3, phrase)]
