"""--profile says where a step's time goes, and changes nothing."""

import dataclasses
import gzip
import json
from pathlib import Path

from deit_fast.config import Config
from deit_fast.train import train
from deit_fast.train.profiling import PARTS
from tests.deit_fast.train.test_train import assert_same_weights


def test_a_trace_and_a_table(tiny: Config, tmp_path: Path, capsys) -> None:
    plain = dataclasses.replace(tiny, epochs=8, eval_every=8, save_every=100, log_every=100)
    profiled = dataclasses.replace(plain, profile=True, out=str(tmp_path / "profiled"))
    train(plain)
    assert not (Path(plain.out) / "profile").exists()
    train(profiled)
    assert_same_weights(plain.out, profiled.out)
    folder = Path(profiled.out) / "profile"
    text = (folder / "breakdown.txt").read_text()
    assert text.strip() in capsys.readouterr().out and "mean of 10 steps on cpu" in text
    whole, in_step, beside, *table = text.splitlines()
    parts, threads = (
        dict(part.rsplit(" ", 1) for part in line.partition(": ")[2].split(" · ")) for line in (in_step, beside)
    )
    assert parts.keys() == {"wait", *PARTS} and {"read", "decode", "augment"} <= threads.keys()
    assert all(float(value) > 0 for name, value in {**parts, **threads}.items() if name not in ("wait", "copy"))
    assert sum(map(float, parts.values())) <= float(whole.split(" ms a step")[0]) * 1.05
    assert any("Self CPU" in line for line in table) and any("aten::addmm" in line for line in table)
    names = {
        event.get("name")
        for event in json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    }
    assert {"teacher", "forward", "loss", "backward", "optimiser"} <= names


def test_a_run_too_short_to_profile_says_so(tiny: Config, capsys) -> None:
    train(dataclasses.replace(tiny, profile=True))
    assert "nothing was profiled: the run had fewer than 11 steps" in capsys.readouterr().out
