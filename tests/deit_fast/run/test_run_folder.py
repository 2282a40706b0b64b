"""What may be written into a run folder: by one process at a time, and by no other version or half a copy."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deit_fast.config import Config
from deit_fast.files import LOCK, Lock, read_json, write_json
from deit_fast.run import checkpoint
from deit_fast.run import folder as run_folder
from deit_fast.tools.evaluate.__main__ import main as evaluate
from deit_fast.tools.export.__main__ import main as export
from deit_fast.tools.predict import main as predict
from deit_fast.train import train
from deit_fast.train.__main__ import main
from deit_fast.train.prepare import Start
from tests.deit_fast.command import command_line
from tests.deit_fast.forbidden import forbid, sentence


def content(folder: Path) -> dict[str, bytes]:
    """Every file, to the byte."""
    return {
        str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"
    }


def refused(config: Config, capsys: pytest.CaptureFixture) -> str:
    """The sentence of a command that ends with code 2 and touches nothing."""
    before = content(Path(config.run.out))
    assert main(command_line(config)) == 2
    assert content(Path(config.run.out)) == before
    return capsys.readouterr().err


@pytest.fixture
def half_way(tiny: Config) -> Config:
    """A run that was killed before its end."""
    config = tiny.replace(save_every=2, keep=5)
    train(config)
    (Path(tiny.run.out) / "summary.json").unlink()
    (Path(tiny.run.out) / "checkpoints" / "newest").write_text("step_00000002\n")
    return config


def test_a_group_may_read_what_the_umask_lets_it_read(tiny: Config) -> None:
    before = os.umask(0o027)
    try:
        train(tiny.replace(teacher_cache=str(Path(tiny.run.out).parent / "labels")))
    finally:
        os.umask(before)
    for folder in (Path(tiny.run.out), Path(tiny.run.out).parent / "labels"):
        found = [folder, *folder.rglob("*")]
        assert {path.suffix for path in found} >= {".safetensors", ".json"}
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in found}
        assert modes == {path: 0o750 if path.is_dir() else 0o640 for path in found}


def test_weights_that_may_not_be_read_are_not_called_damaged(half_way: Config, capsys, monkeypatch) -> None:
    """A colleague's file: nobody is told to discard the run."""
    run = Path(half_way.run.out)
    file = run / "checkpoints" / "step_00000002" / "model.safetensors"
    image = str(next(Path(half_way.data.data).rglob("*.png")))
    forbid(monkeypatch, file)
    for command in (
        lambda: main(command_line(half_way)),
        lambda: predict([image, "--model", str(run)]),
        lambda: evaluate([str(run)]),
        lambda: export([str(run), "--to", "timm", "--out", f"{run}-timm"]),
    ):
        assert command() == 2
        assert capsys.readouterr().err.endswith(f"error: {sentence(file)}\n")


@pytest.mark.parametrize("folder", ["", "checkpoints"])
def test_a_run_that_may_not_be_listed_is_not_called_empty(folder: str, half_way: Config, capsys, monkeypatch) -> None:
    path = Path(half_way.run.out) / folder
    image = str(next(Path(half_way.data.data).rglob("*.png")))
    forbid(monkeypatch, path)
    assert predict([image, "--model", half_way.run.out]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: permission denied for {path}") and "--fresh" not in said


def test_a_second_process_is_refused_at_once_and_the_first_is_named(half_way: Config, capsys) -> None:
    program = (
        "import sys; from pathlib import Path; from deit_fast.files import Lock\n"
        f"with Lock(Path({half_way.run.out!r}) / 'lock') as lock:\n"
        "    lock.acquire(); print('held', flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            assert f"is being trained by process {other.pid} on " in refused(half_way, capsys)
            assert "is being trained by" in refused(half_way.replace(fresh=True), capsys)
        finally:
            other.kill()
    assert train(half_way).scores  # the kernel has taken the lock back, however the holder ended


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_that_is_killed_while_it_begins_begins_again(
    tiny: Config, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    config = tiny.replace(fresh=fresh)
    if fresh:
        train(tiny)
        (Path(tiny.run.out) / "notes.txt").write_text("mine")

    class Killed(BaseException):
        pass

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "config.json":
            raise Killed
        rename(source, target)

    def remove(path: Path, missing_ok: bool = False) -> None:
        if path.suffix != ".part":  # which a killed process leaves
            unlink(path, missing_ok)

    rename, unlink = os.replace, Path.unlink
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", replace)
        patch.setattr(Path, "unlink", remove)
        train(config)
    left = {path.name for path in Path(tiny.run.out).iterdir() if path.name.endswith(".part")}
    assert len(left) == 1 and next(iter(left)).startswith(".config.json.")
    assert train(config).scores
    assert not list(Path(tiny.run.out).glob(".*.part"))
    assert (Path(tiny.run.out) / "notes.txt").exists() == fresh


def test_a_folder_that_appears_while_a_run_sets_up_is_locked_before_it_is_written_to(tmp_path) -> None:
    with Lock(tmp_path / LOCK) as first, Lock(tmp_path / LOCK) as second:
        first.acquire()
        first.acquire()  # has it already
        with pytest.raises(ValueError, match=f"is being trained by process {os.getpid()}"):
            second.acquire()
    with Lock(tmp_path / LOCK) as third:
        third.acquire()


def test_a_refused_command_leaves_a_folder_that_the_next_one_takes(tiny: Config, capsys) -> None:
    Path(tiny.run.out).mkdir()
    wrong = tiny.replace(teacher="regnety_16")
    assert main(command_line(wrong)) == 2
    assert main(command_line(tiny)) == 0


def test_another_version_of_the_checkpoint(half_way: Config, capsys) -> None:
    state = Path(half_way.run.out) / "checkpoints" / "step_00000002" / "state.json"
    state.write_text(state.read_text().replace(checkpoint.FORMAT, "deit_fast checkpoint 99"))
    assert "written by another version of deit_fast (deit_fast checkpoint 99; this one reads" in refused(
        half_way, capsys
    )


def test_a_configuration_of_another_version(half_way: Config, capsys) -> None:
    (Path(half_way.run.out) / "config.json").write_text('{"recipe": "deit", "a_flag_of_the_future": 1}')
    assert "is not a configuration of this version of deit_fast" in refused(half_way, capsys)


@pytest.mark.parametrize("name", ["data.json", "metrics.jsonl"])
def test_half_a_copy(half_way: Config, capsys, name: str) -> None:
    (Path(half_way.run.out) / name).unlink()
    assert f"holds checkpoints but no {name}, so it was copied in part" in refused(half_way, capsys)


def test_a_copy_whose_checkpoints_are_all_cut_off(half_way: Config, capsys) -> None:
    for file in (Path(half_way.run.out) / "checkpoints").rglob("optimizer.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert "holds no whole checkpoint of this version" in refused(half_way, capsys)


def test_a_configuration_that_changed_since(half_way: Config, capsys) -> None:
    assert "--lr 0.02 -> 0.5" in refused(half_way.replace(lr=0.5), capsys)


def test_temporary_files_of_killed_writers_are_taken_away(half_way: Config) -> None:
    run = Path(half_way.run.out)
    for stray in (run / ".summary.json.123.part", run / "checkpoints" / ".newest.123.part"):
        stray.write_text("half")
    shutil.copytree(run / "checkpoints" / "step_00000002", run / "checkpoints" / ".step_00000006.part")
    train(half_way)
    assert not list(run.rglob(".*.part"))


def test_a_kill_between_an_evaluations_line_and_the_best_weights_loses_neither(half_way: Config) -> None:
    run = Path(half_way.run.out)
    (run / "checkpoints" / "newest").write_text("step_00000006\n")
    best = checkpoint.best(run)[1]
    for file in (run / "checkpoints").glob("best*"):
        file.unlink()
    train(half_way)
    again = checkpoint.best(run)[1]
    assert again["step"] == 6 and again["top1"] <= best["top1"]


def test_the_weights_chosen_are_those_that_score_better_in_the_runs_own_prediction(tiny: Config) -> None:
    run = Path(tiny.run.out)
    train(tiny)
    summary = read_json(run / "summary.json")
    for head, last, average in (("fused", 60.0, 50.0), ("softmax", 50.0, 60.0)):
        summary["student"][head]["top1"], summary["ema"][head]["top1"] = last, average
    write_json(run / "summary.json", summary)
    for fusion, name in (("logits", "model.safetensors"), ("softmax", "ema.safetensors")):
        write_json(run / "config.json", {**read_json(run / "config.json"), "fusion": fusion})
        assert run_folder.chosen_weights(run).name == name


def test_the_official_order_keeps_its_number_of_processes(half_way: Config, capsys, monkeypatch) -> None:
    config = half_way.replace(order="official", out=half_way.run.out + "-official")
    train(config)
    (Path(config.run.out) / "summary.json").unlink()
    by_two = Start(step=2, folder=Path(config.run.out) / "checkpoints" / "step_00000002", world_size=2)
    monkeypatch.setattr("deit_fast.train.prepare._newest", lambda *_: by_two)
    assert "start 2 again, or type --order grouped in a new --out" in refused(config, capsys)
