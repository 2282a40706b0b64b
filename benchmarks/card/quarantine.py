"""Which ops a failed test makes worthless to time, and what stands on an op.

    failed = failures(Path("results.parts/tests.jsonl"))       # what journal.py wrote
    blocked(uses("attention", "attention[B256-N198-H6-bfloat16-forward]"), {failure.op for failure in failed})

An op is "attention", "loss", "augmentation" or "training". A test of attention's error at one size makes an op of that
size, "attention N198 D64 bfloat16", or "attention backward N198 D64 bfloat16" where the output was right and a gradient
was not; every other test of attention stands for all sizes. Needs the standard library alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

OP_OF_FILE = {
    "test_attention_on_a_card": "attention",
    "test_loss_on_a_card": "loss",
    "test_augment_gpu": "augmentation",
}
SIZE = re.compile(r"test_error_is_at_most\w*\[(\d+)-(\d+)-torch\.(\w+)-")
_MODEL = r"attention( N198 D64 bfloat16)?"  # of DeiT at 224 pixels
_TRAINED = r"attention( backward)?( N198 D64 bfloat16)?|loss|training"
# What the rows of a group, or a step of run_gpu.sh, stand on: a regular expression of ops.
USES = {
    "first_rows": r"attention( backward)?( N198 D64 bfloat16)?",
    "attention": "attention",
    "loss": "loss",
    "step": _TRAINED,
    "train": _TRAINED,
    "augment": "augmentation",
    "inference": _MODEL,
    "tune": r"attention.*|loss",
    "overhead": r"attention.*|loss|augmentation",
    "compiled_peers": "attention",
}


class Failure(NamedTuple):
    """A test that failed, or that ended or hung the process."""

    test: str
    message: str

    @property
    def op(self) -> str:
        file = Path(self.test.partition("::")[0]).stem
        op = OP_OF_FILE.get(file, "training")
        if not (size := SIZE.search(self.test)):
            return op
        direction = " backward" if "gradient of" in self.message else ""
        return f"{op}{direction} N{size[1]} D{size[2]} {size[3]}"


def entries(journal: Path) -> list[dict[str, str]]:
    """Lines of a journal; a last line that was cut off is none."""
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return [json.loads(line) for line in lines]


def failures(journal: Path) -> list[Failure]:
    failed = [entry for entry in entries(journal) if entry["outcome"] == "failed"]
    return [Failure(*each) for each in {entry["test"]: entry["message"] for entry in failed}.items()]


def unfinished(journal: Path) -> list[str]:
    """Tests that have begun and have no outcome."""
    outcomes = {entry["test"]: entry["outcome"] for entry in entries(journal)}
    return [test for test, outcome in outcomes.items() if outcome == "began"]


def uses(group: str, name: str) -> str:
    """What a row of a results file stands on, by its group and its name without "test_"; "" for nothing."""
    if row := re.match(r"attention\w*\[B\d+-N(\d+)-H\d+-(\w+)-(\w+)\]", name):
        direction = "" if row[3] == "forward" else "( backward)?"
        return rf"attention{direction}( N{row[1]} D64 {row[2]})?"
    if group == "augment" and "on_a_card" not in name:
        return ""  # of the CPU
    return USES.get(group, "")


def blocked(used: str, ops: Iterable[str]) -> list[str]:
    """The `ops` that match `used`, sorted: a row or step that uses one of them is not timed."""
    return sorted(op for op in ops if re.fullmatch(used, op))
