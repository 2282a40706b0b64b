"""What a run leaves beside its metrics: a log for every rank, and TensorBoard's curves."""

import importlib.util
import json
import logging
from pathlib import Path

import pytest

from deit_fast.config import Config
from deit_fast.ranks.log import rank_log
from deit_fast.run import report
from deit_fast.run.metrics import numbers
from deit_fast.train import train


def test_what_was_said_before_the_folder_stood_is_in_the_file_too(tmp_path: Path, capsys) -> None:
    with rank_log(3) as begin:
        reporter = report.Reporter(False)
        reporter.decide("cores", 4, "all there are")
        assert not list(tmp_path.iterdir())
        begin(tmp_path / "logs")
        logging.getLogger("deit_fast.anything").warning("an image is black")
        begin(tmp_path / "other")
        reporter.say("goes on")
    logging.getLogger("deit_fast").warning("afterwards")
    first = (tmp_path / "logs" / "rank_3.log").read_text()
    assert [line.split(" ", 2)[2].strip() for line in first.splitlines()] == [
        "cores      4  (all there are)", "an image is black",
    ]  # fmt: skip
    assert (tmp_path / "other" / "rank_3.log").read_text().splitlines()[0].endswith("goes on")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("warning: an image is black\n")


@pytest.mark.parametrize("room", ["weights.trained", "data.loader", "train.loop", "ranks.meeting"])
def test_every_room_is_logged(tmp_path: Path, room: str, capsys) -> None:
    with rank_log(0) as begin:
        begin(tmp_path)
        logging.getLogger(f"deit_fast.{room}").warning("a file is damaged")
    assert "a file is damaged" in (tmp_path / "rank_0.log").read_text()
    assert capsys.readouterr().err == "warning: a file is damaged\n"


def test_an_error_leaves_its_traceback_there_alone(tmp_path: Path, capsys) -> None:
    with pytest.raises(ZeroDivisionError), rank_log(0) as begin:
        begin(tmp_path)
        _ = 1 / 0
    text = (tmp_path / "rank_0.log").read_text()
    assert "Traceback" in text and "ZeroDivisionError" in text
    assert capsys.readouterr().err == ""


def test_a_disk_that_refuses_does_not_end_the_run(tmp_path: Path, capsys) -> None:
    with rank_log(0) as begin:
        (tmp_path / "rank_0.log").symlink_to("/dev/full")
        begin(tmp_path)
        report.Reporter(False).say("nobody can write this")
    assert capsys.readouterr().err == ""


def test_the_numbers_of_a_line() -> None:
    line = {"step": 3, "loss": 1.5, "ema": None, "student": {"cls": {"top1": 20.0, "n": 5}}, "done": True}
    assert dict(numbers(line)) == {"step": 3, "loss": 1.5, "student/cls/top1": 20.0, "student/cls/n": 5}


@pytest.fixture(scope="module")
def curves():
    return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator


def test_tensorboard_shows_what_metrics_has_and_a_run_that_is_continued_once(tiny: Config, curves) -> None:
    config = tiny.replace(save_every=2, keep=9)
    train(config)
    run = Path(config.run.out)
    (run / "summary.json").unlink()
    (run / "checkpoints" / "newest").write_text("step_00000004\n")
    train(config)
    events = curves(str(run / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert {event.step: pytest.approx(event.value) for event in events.Scalars("train/loss")} == losses
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    top1 = {row["step"]: row["student"]["fused"]["top1"] for row in rows if "student" in row}
    assert {event.step: pytest.approx(event.value) for event in events.Scalars("val/student/fused/top1")} == top1


def test_without_tensorboard_there_is_a_word_instead(tiny: Config, monkeypatch, capsys) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name, *rest)
    )
    train(tiny)
    assert "tensorboard off  (pip install tensorboard, and there are curves)" in capsys.readouterr().out
    assert not (Path(tiny.run.out) / "tensorboard").exists()
    assert "step 6/6 100.0% · loss" in (Path(tiny.run.out) / "logs" / "rank_0.log").read_text()
