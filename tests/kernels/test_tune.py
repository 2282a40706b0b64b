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
    pytest.importorskip("triton")
    slow, fast, wrong, broken = (Config("tiled", size, 64, 4, 2) for size in (16, 32, 64, 128))
    times = {slow: 2.0, fast: 1.0}
    last: list[Config] = []

    def call(config: Config | None) -> torch.Tensor:
        if config == broken:
            raise RuntimeError("out of resource: shared memory")
        if config is not None:
            last.append(config)
        return torch.full((2,), 5.0 if config == wrong else 1.0)

    def measure(run) -> float:
        run()
        return times[last[-1]]

    assert tune.fastest(call, [slow, fast, wrong, broken], measure) == (fast, 1.0)
    printed = capsys.readouterr().out
    assert f"left out {wrong}" in printed and f"left out {broken}: out of resource" in printed


def test_a_table_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    tune.write_table(path, [{"direction": "forward"}], {"device": "a card"})
    assert json.loads(path.read_text()) == {"measured": {"device": "a card"}, "attention": [{"direction": "forward"}]}
    assert list(tmp_path.iterdir()) == [path]
