"""tests/same_bits.py finds a difference, names it, and lets times be times."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import same_bits
from tests.same_bits import compare, differences

STATE = {"step": 4, "config": {"lr": 0.1}, "seconds": 1.5, "versions": {"torch": "2.11"}, "sha256": "ab"}
LINE = {"step": 4, "loss": 2.5, "images_per_second": 99.5, "memory": 7, "eta": 3.0, "teacher_share": 0.1}
SCORES = {"data": [{"scores": {"cls": 91.0}, "seconds": 1.0, "images_per_second": 5.0}], "date": "2026-01-01"}


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n")


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal run folders."""
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "checkpoints").mkdir(parents=True)
    (old / "logs").mkdir()
    save_file({"weight": np.arange(64, dtype=np.float32)}, old / "checkpoints" / "model.safetensors")
    write(old / "checkpoints" / "state.json", STATE)
    write(old / "metrics.jsonl", LINE)
    write(old / "scores.json", SCORES)
    write(old / "summary.json", {"student": 91.0})
    write(old / "logs" / "rank_0.log", "1.5 s")
    shutil.copytree(old, new)
    return old, new


def test_equal_folders_have_no_difference(sides: tuple[Path, Path]) -> None:
    assert differences(*sides) == (5, [])


def test_one_changed_byte_of_the_weights_is_found(sides: tuple[Path, Path]) -> None:
    path = sides[1] / "checkpoints" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    size = len(content)
    assert differences(*sides)[1] == [f"checkpoints/model.safetensors: byte {size - 2} of {size}"]


def test_one_byte_more_is_found(sides: tuple[Path, Path]) -> None:
    with open(sides[1] / "checkpoints" / "model.safetensors", "ab") as file:
        file.write(b"\0")
    assert len(differences(*sides)[1]) == 1


def test_a_changed_summary_is_found_in_its_line(sides: tuple[Path, Path]) -> None:
    write(sides[1] / "summary.json", {"student": 91.5})
    assert differences(*sides)[1] == ['summary.json: {"student": 91.0} -> {"student": 91.5}']


def test_metrics_come_first_and_show_where_a_training_parted(sides: tuple[Path, Path]) -> None:
    for side, loss in zip(sides, (2.25, 2.5), strict=True):
        write(side / "config.json", {"seed": loss})
        (side / "metrics.jsonl").write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, "loss": loss}) + "\n")
    assert differences(*sides)[1] == [
        'metrics.jsonl: "loss": 2.25, -> "loss": 2.5,',
        'config.json: {"seed": 2.25} -> {"seed": 2.5}',
    ]


def test_the_order_of_a_byte_compared_file_counts(sides: tuple[Path, Path]) -> None:
    for side, value in zip(sides, ({"a": 1, "b": 2}, {"b": 2, "a": 1}), strict=True):
        write(side / "config.json", value)
    assert len(differences(*sides)[1]) == 1


@pytest.mark.parametrize("side", [0, 1])
def test_a_missing_file_is_found(sides: tuple[Path, Path], side: int) -> None:
    (sides[side] / "summary.json").unlink()
    assert differences(*sides)[1] == [f"summary.json is missing on the {('old', 'new')[side]} side"]


def test_folders_without_a_file_are_a_difference(tmp_path: Path) -> None:
    assert differences(tmp_path / "old", tmp_path / "new") == (0, ["nothing was written"])


def test_times_memory_versions_and_logs_may_differ(sides: tuple[Path, Path]) -> None:
    new = sides[1]
    other = {"seconds": 9.0, "versions": {"torch": "2.14"}, "sha256": "cd"}
    write(new / "checkpoints" / "state.json", {**STATE, **other})
    write(new / "metrics.jsonl", {**LINE, "images_per_second": 1.0, "memory": 8, "eta": 1.0, "mfu": 0.5})
    write(new / "scores.json", {"data": [{**SCORES["data"][0], "seconds": 2.0, "images_per_second": 9.0}]})
    write(new / "logs" / "rank_0.log", "2.5 s")
    assert differences(*sides)[1] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoints/state.json", {**STATE, "step": 5}),
        ("checkpoints/state.json", {**STATE, "config": {"lr": 0.2}}),
        ("metrics.jsonl", {**LINE, "loss": 2.5000000001}),
        ("metrics.jsonl", {**LINE, "lr": 0.1}),
        ("scores.json", {"data": [{**SCORES["data"][0], "scores": {"cls": 91.1}}]}),
    ],
)
def test_the_other_fields_of_these_files_may_not(sides: tuple[Path, Path], name: str, value: dict) -> None:
    write(sides[1] / name, value)
    (found,) = differences(*sides)[1]
    assert found.startswith(f"{name}: ")


# As much of a trainer as the command needs: 44 steps, a checkpoint after each, metrics with a time.
TRAINER = """
import json, os, pathlib, time
RATE, CONTINUES = 0.5, True
run, images = pathlib.Path("run"), pathlib.Path(os.environ["DEIT_FAST_CACHE"])
images.mkdir(exist_ok=True)
(images / "0.png").write_bytes(b"0")
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
pointer, metrics = run / "checkpoints" / "newest", run / "metrics.jsonl"
start = int(pointer.read_text()[5:]) if CONTINUES and pointer.exists() else 0
lines = metrics.read_text().splitlines()[:start] if start else []
for step in range(start + 1, 45):
    time.sleep(0.01)
    lines.append(json.dumps({"step": step, "loss": 1 / step, "eta": time.time()}))
    metrics.write_text("\\n".join(lines) + "\\n")
    (run / "model.safetensors").write_text(str(RATE * step))
    pointer.with_name("part").write_text(f"step_{step:08d}")
    pointer.with_name("part").replace(pointer)
(run / "summary.json").write_text("{}")
"""
CASES = {"whole": ("-m deit_fast.train",)}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for name, text in {
        "deit_fast/__init__.py": "",
        "deit_fast/train.py": TRAINER,
        "kernels/deit_kernels/__init__.py": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    commit(root)
    return root


def commit(root: Path) -> None:
    for command in ("add .", "-c user.name=a -c user.email=a@b commit -q -m message"):
        subprocess.run(["git", "-C", str(root), *command.split()], check=True)


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(same_bits.tempfile, "tempdir", str(folder))
    return folder


def change(root: Path, old: str, new: str) -> None:
    path = root / "deit_fast" / "train.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def rows(printed: str) -> dict[str, str]:
    """Case → result."""
    lines = [line.split(maxsplit=2) for line in printed.split("result\n")[1].split("\n\n")[0].splitlines()]
    return {case: result for case, _, result in lines}


def test_a_move_that_changes_no_bit(repository: Path, temporary_folder: Path, capsys: pytest.CaptureFixture) -> None:
    (repository / "deit_fast" / "loop.py").write_text(TRAINER)
    (repository / "deit_fast" / "train.py").write_text("import deit_fast.loop\n")
    assert compare(repository, "HEAD", CASES, same_bits.RESTARTS)
    printed = capsys.readouterr().out
    assert "2 files of deit_fast/" in printed
    assert rows(printed) == dict.fromkeys(("whole", "killed", "continued", "images"), "equal")
    assert not any(temporary_folder.iterdir())


def test_a_change_of_a_constant_fails_in_every_case_it_reaches(
    repository: Path, temporary_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    change(repository, "RATE, CONTINUES = 0.5", "RATE, CONTINUES = 0.25")
    assert not compare(repository, "HEAD", CASES, same_bits.RESTARTS)
    printed = capsys.readouterr().out
    assert rows(printed) == {
        **dict.fromkeys(("whole", "killed", "continued"), "run/model.safetensors: 22.0 -> 11.0"), "images": "equal",
    }  # fmt: skip
    assert "differ in whole, killed, continued" in printed
    assert any(temporary_folder.iterdir())  # to be looked at


def test_a_run_that_begins_anew_instead_of_continuing_fails(repository: Path, capsys: pytest.CaptureFixture) -> None:
    change(repository, "CONTINUES = 0.5, True", "CONTINUES = 0.5, False")
    assert not compare(repository, "HEAD", CASES, same_bits.RESTARTS)
    assert rows(capsys.readouterr().out) == {
        "whole": "equal", "killed": "it began anew instead of continuing",
        "continued": "it began anew instead of continuing", "images": "equal",
    }  # fmt: skip


def test_binaries_are_copied_or_built_by_each_side_when_their_sources_differ(repository: Path, tmp_path: Path) -> None:
    source, binary = repository / "csrc" / "op.cpp", Path("kernels", "deit_kernels", "_C.so")
    source.parent.mkdir()
    source.write_text("first")
    (repository / "setup.py").write_text(f"import shutil; shutil.copy('csrc/op.cpp', '{binary}')")
    (repository / ".gitignore").write_text("*.so")
    commit(repository)
    (repository / binary).write_text("made by hand")
    for content, wanted, said in [
        ("first", ("made by hand", "made by hand"), "those of the working tree: _C.so"),
        ("second", ("first", "second"), "built by each side, since csrc/op.cpp differs: _C.so"),
    ]:
        source.write_text(content)
        (tmp_path / content).mkdir()
        sides = same_bits.copies(repository, "HEAD", tmp_path / content)
        assert same_bits.give_binaries(repository, "HEAD", sides) == said
        assert tuple((side.code / binary).read_text() for side in sides) == wanted
        assert (repository / binary).read_text() == "made by hand"


def test_a_command_that_fails_is_no_difference(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    change(repository, "RATE, CONTINUES", "raise SystemExit('no room')\nRATE, CONTINUES")
    monkeypatch.setattr(same_bits, "ROOT", repository)
    assert same_bits.main(["--quick"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the new code ended with 1: python -m deit_fast.train") and "no room" in said


def test_an_unknown_commit_is_said(repository: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(same_bits, "ROOT", repository)
    assert same_bits.main(["--against", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
