"""benchmarks.compare catches a change of a fifth in one row, and says nothing about a repeat of the same commit."""

import copy
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.compare.changes import compare
from tests.benchmarks.results import measured

ROOT = Path(__file__).parents[2]


def verdicts(before: dict, after: dict) -> dict[str, str]:
    return {change.name: change.verdict for change in compare(before, after)[0]}


def test_a_repeat_of_the_same_commit_is_quiet_nine_times_of_ten() -> None:
    loud = sum("slower" in verdicts(measured(2 * i), measured(2 * i + 1)).values() for i in range(100))
    assert loud <= 10, f"{loud} of 100 repeats of 40 rows named one slower"


def test_a_row_that_became_a_fifth_slower_is_caught() -> None:
    missed = 0
    for i in range(100):
        before, after = measured(2 * i), measured(2 * i + 1)
        own = after["rows"][7]["extra_info"]["seconds"]["ours"]
        own[:] = [seconds * 1.2 for seconds in own]
        missed += verdicts(before, after)["made up: 7"] != "slower"
    assert missed <= 5, f"{missed} of 100 injected regressions were missed"


def test_a_row_counts_only_when_it_is_slower_in_every_later_file(tmp_path: Path) -> None:
    before, quiet = measured(0), measured(2)
    slow, slow_again = measured(1, factor=1.3), measured(3, factor=1.25)
    slow_again["rows"] = slow_again["rows"][:5]
    assert "slower" not in [change.verdict for change in compare(before, slow, quiet)[0]]
    both = {change.name: change for change in compare(before, slow, slow_again)[0]}
    assert {change.verdict for change in both.values()} == {"slower"}
    assert 0.76 < both["made up: 3"].factor < 0.84  # the smaller change of the two
    faster = measured(4, factor=0.7)
    assert {change.verdict for change in compare(before, slow, faster)[0]} == {"same"}


def test_a_row_without_a_peer_is_shown_and_never_counts(tmp_path: Path) -> None:
    files = []
    for name, content in (("before", measured(0, rows=2)), ("after", measured(1, rows=2, factor=3.0))):
        for row in content["rows"]:
            del row["extra_info"]["ratio_to_peer"]
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(content))
    command = [sys.executable, "-m", "benchmarks.compare", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.count("no peer: the code or the machine") == 2
    assert done.stdout.endswith("2 rows, 0 slower, 0 faster\n")


def test_what_became_faster_is_told_apart() -> None:
    assert set(verdicts(measured(0), measured(1, factor=0.7)).values()) == {"faster"}


def test_a_slower_machine_is_no_regression() -> None:
    before, after = measured(0), measured(0)
    for row in after["rows"]:
        row["extra_info"]["seconds"] = {
            name: [3 * seconds for seconds in times] for name, times in row["extra_info"]["seconds"].items()
        }
    assert set(verdicts(before, after).values()) == {"same"}


def test_rows_of_one_file_only_are_named() -> None:
    before, after = measured(0, rows=3), measured(1, rows=3)
    after["rows"][0]["name"] = "test_new"
    _, only = compare(before, after)
    assert only == ["made up: 0 is only in the first file", "made up: new is only in the second file"]


def test_a_peer_of_another_version_is_named() -> None:
    before = measured(0, rows=1)
    before["rows"][0]["extra_info"]["versions"] = {"peer": "1.0"}
    after = copy.deepcopy(before)
    after["rows"][0]["extra_info"]["versions"] = {"peer": "2.0"}
    assert compare(before, after)[0][0].note == "peer 1.0 → 2.0"


def test_the_command_prints_what_is_slower_and_fails(tmp_path: Path) -> None:
    for name, content in (("before", measured(0)), ("after", measured(1, factor=1.3)), ("again", measured(2))):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))

    def run(*files: str) -> subprocess.CompletedProcess:
        paths = [str(tmp_path / f"{name}.json") for name in files]
        command = [sys.executable, "-m", "benchmarks.compare", *paths]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    slower = run("before", "after")
    assert slower.returncode == 1 and slower.stdout.count("slower ") >= 38
    assert "python -m benchmarks 'made up' -k " in slower.stdout and "--out again.json && " in slower.stdout
    quiet = run("before", "again")
    assert quiet.returncode == 0 and quiet.stdout == "40 rows, 0 slower, 0 faster\n"
