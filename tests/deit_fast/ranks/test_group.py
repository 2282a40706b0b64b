"""Several ranks: the same result for every number of them, however they were started."""

import dataclasses
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from deit_fast.command import LOST, PREEMPTED
from deit_fast.config import Config
from deit_fast.ranks import group, heartbeat, launch, meeting
from deit_fast.run import checkpoint
from deit_fast.train.__main__ import main
from deit_fast.train.step import TrainingStep
from tests.deit_fast.command import command_line
from tests.deit_fast.ranks.conftest import BATCH
from tests.deit_fast.world import NO_RANK, free_port, seen, torchrun, world


def recorded(rank: int, config: Config) -> int:
    """Train, and write down what every step was given: step, place, and digests of the pixels and the labels."""
    call, lines = TrainingStep.__call__, []

    def observe(self: TrainingStep, batch, lr):
        for row, place in enumerate(batch.positions.tolist()):
            pixels = hashlib.sha256(batch.images[row].numpy().tobytes()).hexdigest()
            lines.append([batch.step, place, int(batch.samples[row]), int(batch.labels[row]), pixels])
        return call(self, batch, lr)

    TrainingStep.__call__ = observe
    code = main(command_line(config))
    Path(config.run.out, f"seen_{rank}.json").write_text(json.dumps(lines))
    return code


@dataclasses.dataclass
class Run:
    """What a run of some ranks left."""

    rows: list[dict]
    seen: list
    summary: dict
    weights: dict[str, dict[str, torch.Tensor]]
    printed: list[str]


def saved(run: str) -> dict[str, dict[str, torch.Tensor]]:
    newest = checkpoint.newest(Path(run))
    return {which: load_file(newest / f"{which}.safetensors") for which in ("model", "ema")}


def train_with(ranks: int, config: Config, folder: Path) -> Run:
    config = config.replace(out=str(folder / f"run{ranks}"))
    with world(ranks, folder / f"printed{ranks}", recorded, config) as running:
        codes = running.wait()
        printed = [running.printed(rank) for rank in range(ranks)]
    assert codes == [0] * ranks, printed
    run = Path(config.run.out)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = sorted(row for rank in range(ranks) for row in json.loads((run / f"seen_{rank}.json").read_text()))
    return Run(rows, seen, json.loads((run / "summary.json").read_text()), saved(config.run.out), printed)


@pytest.fixture(scope="module")
def runs(config: Config, folder: Path) -> Callable[[int], Run]:
    """The run of so many ranks, made once."""
    done: dict[int, Run] = {}

    def run(ranks: int) -> Run:
        if ranks not in done:
            done[ranks] = train_with(ranks, config, folder)
        return done[ranks]

    return run


WORLDS = [2, 3, pytest.param(4, marks=pytest.mark.slow), 8]


@pytest.mark.parametrize("ranks", WORLDS)
def test_the_global_batch_is_the_same_to_the_bit(runs, ranks: int) -> None:
    alone = runs(1)
    assert len(alone.seen) == 4 * BATCH
    assert len({line[4] for line in alone.seen}) > 150  # different pixels, or equal digests would show nothing
    assert runs(ranks).seen == alone.seen


@pytest.mark.parametrize("ranks", WORLDS)
def test_losses_and_weights_are_the_same_within_rounding(runs, ranks: int) -> None:
    # The ranks do not have equally many unreadable images: a mean of the ranks' means would be off by per cents.
    alone, several = runs(1), runs(ranks)
    ignored = [(step, place * ranks // BATCH) for step, place, _, label, _ in alone.seen if label < 0]
    assert len(ignored) == 12 and len({ignored.count((0, rank)) for rank in range(ranks)}) > 1
    for key in ("loss", "label", "distillation"):
        assert [row[key] for row in several.rows if key in row] == pytest.approx(
            [row[key] for row in alone.rows if key in row], rel=2e-4
        )
    for which, tensors in alone.weights.items():
        for name, value in tensors.items():
            torch.testing.assert_close(several.weights[which][name], value, rtol=2e-3, atol=2e-4)


def test_class_weights_train_the_same_with_any_number_of_ranks_and_any_micro_batch(
    config: Config, folder: Path, runs
) -> None:
    (folder / "weights.txt").write_text("class0 0.1\nclass1 5\nclass2 1\n")
    weighted = config.replace(class_weights=str(folder / "weights.txt"), epochs=1)
    alone, several = train_with(1, weighted, folder / "a"), train_with(2, weighted.replace(micro_batch=8), folder / "b")
    for key in ("loss", "label", "distillation"):
        one, two, plain = ([row[key] for row in run.rows if key in row] for run in (alone, several, runs(1)))
        assert two == pytest.approx(one, rel=2e-4) and one != pytest.approx(plain[:2], rel=1e-3)
    for name, value in alone.weights["model"].items():
        torch.testing.assert_close(several.weights["model"][name], value, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("ranks", WORLDS)
def test_evaluation_counts_every_image_once(runs, ranks: int) -> None:
    alone, several = runs(1).summary, runs(ranks).summary
    for which in ("student", "ema"):
        for head, scores in several[which].items():
            assert scores["n"] == alone[which][head]["n"] == 14
            assert scores["loss"] == pytest.approx(alone[which][head]["loss"], rel=1e-3)


def test_rank_0_prints_and_each_bad_image_is_named_by_who_met_it(runs) -> None:
    printed = runs(3).printed
    assert "top-1 on 14 validation images" in printed[0]
    assert "4 unreadable images were skipped" in printed[0]
    for others in printed[1:]:
        assert not [line for line in others.splitlines() if not line.startswith("warning: skipped an unreadable image")]
    named = [line for text in printed for line in text.splitlines() if line.startswith("warning: skipped")]
    # A training image that two ranks show in different epochs is named by both.
    assert {line.rpartition("/")[2].partition(":")[0] for line in named} == {"3.png", "11.png", "5.png", "2.png"}


def test_auto_compiles_and_takes_bf16_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert [group.compiles(choice, gpu) for choice in ("on", "auto", "off")] == [True, True, False]
    assert [group.compiles(choice, cpu) for choice in ("on", "auto", "off")] == [True, False, False]
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert group.has_bf16(gpu) == has and not group.has_bf16(cpu)


# `three_classes`, but the first process of rank 1 is killed as soon as a step has been saved, which it waits for.
KILLED = """
import os, signal, time
from pathlib import Path
from torch import nn
from tiny_teachers import three_classes

class Killed(nn.Module):
    def forward(self, images):
        until = time.monotonic() + 1
        first_of_rank_1 = (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0")
        while first_of_rank_1 and len(images) == 24 and time.monotonic() < until:
            if Path("newest").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
        return images

def build():
    return nn.Sequential(Killed(), three_classes())
"""


def test_two_machines_one_killed_restart_and_are_one_with_two(
    runs, config: Config, tmp_path: Path, monkeypatch
) -> None:
    """torchrun starts a process on each, and both again when one is killed; the run continues by itself."""
    newest = tmp_path / "run" / "checkpoints" / "newest"
    (tmp_path / "killed_teacher.py").write_text(KILLED.replace("newest", str(newest)))
    monkeypatch.syspath_prepend(tmp_path)
    config = config.replace(teacher="killed_teacher:build", save_every=2, out=str(tmp_path / "run"))
    where = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "deit")
    where += ("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1", "--local-addr", "localhost")
    arguments = (*where, "-m", "deit_fast.train", *command_line(config))
    with world(2, tmp_path / "printed", torchrun, *arguments, **NO_RANK) as machines:
        codes = machines.wait()
        printed = [machines.printed(number) for number in range(2)]
    assert codes == [0, 0], printed
    assert "continue   from step 2" in "".join(printed)
    expected = runs(2).weights
    for which, tensors in saved(config.run.out).items():
        assert tensors.keys() == expected[which].keys()
        for name, value in tensors.items():
            assert torch.equal(expected[which][name], value), (which, name)


def test_what_an_earlier_start_left_in_the_store_is_nobodys(tmp_path: Path) -> None:
    """A restarted rank that reads the address of a process that is gone would wait for it."""
    store = dist.FileStore(str(tmp_path / "store"), 2)
    store.set("deit_fast/1", "drawn by a process that is gone")
    store.set("deit_fast/start", json.dumps(["old", {"1": "drawn by a process that is gone"}]))
    dist.PrefixStore("old", store).set("address", "of a process that is gone")
    own = meeting.introduce({}, lambda: None, torch.device("cpu"), None)
    found: dict[int, tuple[list[meeting.Introduction], dist.Store]] = {}

    def start(rank: int) -> None:
        host = dataclasses.replace(own, host=f"node{rank}")
        found[rank] = meeting.meet(dist.FileStore(str(tmp_path / "store"), 2), rank, 2, host)

    for _ in range(2):  # a process may train twice in a group of its caller
        late = threading.Timer(0.2, start, (1,))
        late.start()
        start(0)
        late.join()
        (everyone, mine), (same, theirs) = found[0], found[1]
        assert [one.host for one in everyone] == [one.host for one in same] == ["node0", "node1"]
        assert not theirs.check(["address"])
        theirs.set("address", "value")
        assert mine.get("address") == b"value"


def failed(codes: dict[int, int], folder: Path, capsys) -> tuple[int, str]:
    code = launch._exit_code(codes, folder, 3)
    return code, capsys.readouterr().err


def test_the_launcher_names_what_was_killed_and_gives_an_error_s_own_code(tmp_path: Path, capsys) -> None:
    terminated = -signal.SIGTERM
    assert failed({1: 2, 0: LOST, 2: terminated}, tmp_path, capsys) == (2, "")
    assert failed({0: PREEMPTED, 1: 3, 2: PREEMPTED}, tmp_path, capsys) == (3, "")
    assert failed({0: PREEMPTED, 1: PREEMPTED, 2: terminated}, tmp_path, capsys) == (PREEMPTED, "")
    status = heartbeat.Status(1, "here", 7, "step", 57)
    heartbeat.path(tmp_path, 1).write_text(json.dumps(dataclasses.asdict(status)))
    code, said = failed({0: LOST, 1: -signal.SIGKILL, 2: PREEMPTED}, tmp_path, capsys)
    assert code == LOST
    assert said.startswith("error: rank 1 was killed by SIGKILL in the stage step of step 57: out of memory?; the same")
    _, said = failed({2: -signal.SIGSEGV}, tmp_path, capsys)
    assert said.startswith("error: rank 2 was killed by SIGSEGV while setting up; the same command continues")


@pytest.mark.slow
def test_our_own_launcher_ends_all_when_one_is_killed(endless: Config, monkeypatch, capfd) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    logs = Path(endless.run.out) / "logs"
    killer = threading.Thread(target=lambda: os.kill(seen(endless.run.out, 1, 2, 2).pid, signal.SIGKILL))
    killer.start()
    assert launch.launch(command_line(endless), 2, logs) == LOST
    killer.join()
    assert time.time() - heartbeat.read(logs, 2)[1].written < 30
    err = capfd.readouterr().err
    assert "error: rank 1 was killed by SIGKILL in the stage" in err and err.count("error: rank") == 1
