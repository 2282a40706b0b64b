"""metrics.jsonl: cut back to where a run continues, and no line lost to a full disk."""

import json
import resource
from pathlib import Path

import pytest

from deit_fast.run.metrics import Metrics


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_and_one_cut_off_by_a_kill_are_removed(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2, "lo')
    metrics = Metrics(path, start=2)
    metrics.append({"step": 3, "loss": 0.5})
    assert lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]
    assert metrics.find("student", 2) is None and metrics.find("loss", 3) == {"step": 3, "loss": 0.5}
    assert metrics.last("loss")["step"] == 3


@pytest.mark.parametrize("line", ['"text"', "[1]", '{"step": "x"}', "\\x00\\xff", '{"loss": 1}'])
def test_a_line_that_is_none_of_ours_is_removed(tmp_path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    Metrics(path, start=9)
    assert lines(path) == [{"step": 1}]


def test_a_full_disk_keeps_lines_waiting_and_whole(tmp_path, caplog) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, start=0)
    metrics.append({"step": 1, "text": "x" * 50})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        metrics.append({"step": 2, "text": "y" * 50})  # half of it fits
        metrics.append({"step": 3, "text": "z" * 50})
        with pytest.raises(OSError):
            metrics.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text.count("cannot be written") == 1, "said once"
    metrics.append({"step": 4})
    metrics.sync()
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4]


def test_a_folder_that_vanished_does_not_end_the_run(tmp_path, caplog) -> None:
    (tmp_path / "run").mkdir()
    metrics = Metrics(tmp_path / "run" / "metrics.jsonl", start=0)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    metrics.append({"step": 1})
    assert "its lines wait in memory" in caplog.text
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    metrics.append({"step": 2})
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
