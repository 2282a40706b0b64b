"""Tuning without a card: what is tried, what is written, and that the ops read it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deit_kernels import tune
from deit_kernels.attention.configuration import Config


def test_without_a_card_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    run = subprocess.run([sys.executable, "-m", "deit_kernels.tune"], capture_output=True, text=True)
    assert run.returncode != 0 and "measures on a CUDA card" in run.stderr


def test_the_resident_form_is_tried_where_it_can_be() -> None:
    assert {config.form for config in tune.candidates("backward", 256)} == {"resident", "tiled"}
    assert {config.form for config in tune.candidates("backward", 257)} == {"tiled"}
    assert {config.form for config in tune.candidates("forward", 272)} == {"resident", "tiled"}


def test_the_fastest_that_agrees_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    OutOfResources = pytest.importorskip("triton.runtime.errors").OutOfResources
    slow, fast, wrong, idle = (Config("tiled", size, 64, 4, 2) for size in (16, 32, 64, 128))
    broken, refused = Config("tiled", 16, 64, 8, 2), Config("tiled", 32, 64, 8, 2)
    times = {slow: 2.0, fast: 1.0}
    last: list[Config] = []

    def call(config: Config | None) -> torch.Tensor:
        if config == broken:
            raise RuntimeError("an illegal memory access")
        if config == refused:
            raise OutOfResources(300_000, 232_448, "shared memory")
        if config is not None:
            last.append(config)
        result = torch.empty(1000)
        return result if config == idle else result.fill_(5.0 if config == wrong else 1.0)

    def measure(run) -> float:
        run()
        return times[last[-1]]

    assert tune.fastest(call, [slow, fast, wrong, broken, refused, idle], measure) == (fast, 1.0)
    printed = capsys.readouterr().out
    assert f"left out {broken}: an illegal memory access" in printed
    assert f"left out {refused}: out of resource: shared memory" in printed
    assert all(f"left out {config}" in printed for config in (wrong, idle)), "what stores nothing agrees with nothing"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_table_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    tune.write_table(path, [{"direction": "forward"}], {"device": "a card"})
    assert json.loads(path.read_text()) == {"measured": {"device": "a card"}, "attention": [{"direction": "forward"}]}
    assert list(tmp_path.iterdir()) == [path]


def test_rows_come_one_by_one_and_those_that_are_there_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(tune, "make_call", lambda direction, qkv, scale: lambda config: qkv[:, 0, 0])
    monkeypatch.setattr(tune, "candidates", lambda direction, length: [Config("tiled", 64, 64, 4, 2)])
    monkeypatch.setattr(tune, "failures", lambda: (RuntimeError,))
    sizes = {"batch": 1, "heads": 1, "features": 8, "lengths": {208: 198, 640: 578}}

    def measured(known: list[dict]) -> list[dict]:
        found = tune.tune(
            90, torch.device("cpu"), lambda run: 0.5, known=known, ahead=lambda *a: compiled.append(a[:2]), **sizes
        )
        return list(found)

    rows = measured([])
    assert [(row["direction"], row["min_length"], row["max_length"]) for row in rows] == [
        ("forward", 129, 208), ("backward", 129, 208), ("forward", 273, 640), ("backward", 273, 640),
    ]  # fmt: skip
    assert compiled == [("forward", 198), ("backward", 198), ("forward", 578), ("backward", 578)]
    assert measured(rows[:3]) == rows[3:]
    assert measured(rows) == []


def test_a_table_of_another_card_or_version_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.json"
    assert tune.rows_of(path, {"device": "a card"}) == []
    tune.write_table(path, [{"direction": "forward"}], {"device": "a card"})
    assert tune.rows_of(path, {"device": "a card"}) == [{"direction": "forward"}]
    assert tune.rows_of(path, {"device": "another"}) == [] and "it is overwritten" in capsys.readouterr().out
