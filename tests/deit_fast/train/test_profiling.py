"""--profile says where a step's time goes, and changes nothing."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from deit_fast.config import Config
from deit_fast.train import train
from deit_fast.train.profiling import BESIDE, IN_STEP, Part, breakdown, table
from tests.deit_fast.train.test_train import assert_same_weights


def test_a_trace_a_table_and_a_picture(tiny: Config, tmp_path: Path, capsys) -> None:
    plain = tiny.replace(epochs=8, eval_every=8, save_every=100, log_every=100)
    profiled = plain.replace(profile=True, out=str(tmp_path / "profiled"))
    train(plain)
    assert not (Path(plain.run.out) / "profile").exists()
    train(profiled)
    assert_same_weights(plain.run.out, profiled.run.out)
    folder = Path(profiled.run.out) / "profile"
    text = (folder / "breakdown.txt").read_text()
    assert text.strip() in capsys.readouterr().out and "mean of 10 steps on cpu" in text
    values = {line[2:13].strip(): float(line[13:22]) for line in text.splitlines() if " ms " in line and line[0] == " "}
    assert values.keys() == {*IN_STEP, *BESIDE}
    for name in ("teacher", "forward", "loss", "backward", "optimiser", "read", "decode", "augment"):
        assert values[name] > 0, name
    assert sum(values[name] for name in IN_STEP) == pytest.approx(float(text.split(" ms a step")[0]), rel=0.05)
    assert (folder / "breakdown.png").read_bytes().startswith(b"\x89PNG")
    names = {
        event.get("name")
        for event in json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    }
    assert {"teacher", "forward", "loss", "backward", "optimiser"} <= names


def test_a_run_too_short_to_profile_says_so(tiny: Config, capsys) -> None:
    train(tiny.replace(profile=True))
    assert "nothing was profiled: the run had fewer than 11 steps" in capsys.readouterr().out


class Event:
    """An average of the profiler, in microseconds."""

    def __init__(self, key: str, cpu: float = 0.0, device: float = 0.0, kernel: bool = False) -> None:
        kinds = torch.autograd.DeviceType
        self.key, self.cpu_time_total, self.device_time_total = key, cpu, device
        self.self_device_time_total, self.device_type = device, kinds.CUDA if kernel else kinds.CPU


def test_on_a_gpu_the_backward_is_what_nobody_else_launched() -> None:
    events = [
        Event("teacher", cpu=10, device=4000), Event("teacher", device=4100, kernel=True), Event("forward", 10, 3000),
        Event("loss", 5, 100), Event("backward", 900), Event("optimiser", 10, 500), Event("gemm", 0, 13000, True),
        Event("ncclDevKernel_AllReduce", 0, 600, True),
    ]  # fmt: skip
    loader = {"read": 0.002, "decode": 0.004, "copy": 0.0002, "augment": 0.0004, "wait": 0.001}
    parts = breakdown(events, loader, seconds=0.016, steps=2, device=torch.device("cuda"))
    values = {part.name: part.milliseconds for part in parts}
    assert values["backward"] == pytest.approx((13000 + 600 - 600 - 4000 - 3000 - 100 - 500) / 2000)
    assert (values["wait"], values["teacher"], values["all-reduce"]) == pytest.approx((0.5, 2.0, 0.3))
    assert values["the rest"] == pytest.approx(8 - sum(values[name] for name in IN_STEP[:-1]))
    assert {part.where for part in parts if part.name in ("copy", "augment")} == {"GPU", "loader's threads"}


def test_the_table_gives_shares_of_the_step_alone() -> None:
    text = table(
        [Part("forward", 3.0, "main thread"), Part("backward", 1.0, "main thread"), Part("read", 9.0, "x")], "4 ms"
    )
    assert "75%" in text and "25%" in text and text.count("%") == 2 and "beside them" in text
