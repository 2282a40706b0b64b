"""--profile says where a step's time goes, and changes nothing."""

import gzip
import json
from pathlib import Path

from deit_fast.config import Config
from deit_fast.train import train
from tests.deit_fast.train.test_train import assert_same_weights

PARTS = ("teacher", "forward", "loss", "backward", "optimiser")


def test_a_trace_and_a_table(tiny: Config, tmp_path: Path, capsys) -> None:
    plain = tiny.replace(epochs=8, eval_every=8, save_every=100, log_every=100)
    profiled = plain.replace(profile=True, out=str(tmp_path / "profiled"))
    train(plain)
    assert not (Path(plain.run.out) / "profile").exists()
    train(profiled)
    assert_same_weights(plain.run.out, profiled.run.out)
    folder = Path(profiled.run.out) / "profile"
    text = (folder / "breakdown.txt").read_text()
    assert text.strip() in capsys.readouterr().out
    whole, beside, *table = text.splitlines()
    milliseconds, _, of = whole.partition(" ms a step, ")
    assert of == "mean of 10 steps on cpu"
    threads = dict(part.rsplit(" ", 1) for part in beside.partition(": ")[2].split(" · "))
    assert threads.keys() == {"wait", "read", "decode", "copy", "augment"} and float(threads["decode"]) > 0
    calls = {row[0]: int(row[-1]) for row in map(str.split, table) if len(row) > 5 and row[-1].isdigit()}
    assert {calls[part] for part in PARTS} == {10} and "aten::addmm" in calls
    events = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    assert {*PARTS} <= {event.get("name") for event in events}
    steps = sorted(event["dur"] for event in events if str(event.get("name")).startswith("ProfilerStep#1"))
    assert 0.5 < 10 * float(milliseconds) * 1e3 / sum(steps) < 1.5


def test_a_run_too_short_to_profile_says_so(tiny: Config, capsys) -> None:
    train(tiny.replace(profile=True))
    assert "nothing was profiled: the run had fewer than 11 steps" in capsys.readouterr().out


def test_a_run_that_ends_while_it_is_profiled_writes_what_there_is(tiny: Config) -> None:
    run = train(tiny.replace(profile=True, epochs=4)).run
    assert "mean of 2 steps on cpu" in (run / "profile" / "breakdown.txt").read_text()
