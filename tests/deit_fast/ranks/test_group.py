"""Several ranks: the same result for every number of them, and one end for all."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import deit_fast.data.training
from deit_fast.command import LOST, PREEMPTED
from deit_fast.config import Config
from deit_fast.ranks import group, heartbeat, launch, meeting
from deit_fast.run import checkpoint
from deit_fast.run import folder as run_folder
from deit_fast.train.__main__ import main
from deit_fast.train.step import TrainingStep
from tests.deit_fast.command import command_line
from tests.deit_fast.conftest import write_images
from tests.deit_fast.world import free_port, world

BATCH = 48  # rows of a step: 1, 2, 3, 4 and 8 ranks share them, in whole pairs to mix


def commanded(rank: int, config: Config, *others: Config) -> int:
    """Each rank's own command: those of `others` from rank 1 on."""
    return main(command_line((config, *others)[min(rank, len(others))]))


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
    Path(config.out, f"seen_{rank}.json").write_text(json.dumps(lines))
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
    config = dataclasses.replace(config, out=str(folder / f"run{ranks}"))
    with world(ranks, folder / f"printed{ranks}", recorded, config) as running:
        codes = running.wait()
        printed = [running.printed(rank) for rank in range(ranks)]
    assert codes == [0] * ranks, printed
    run = Path(config.out)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = sorted(row for rank in range(ranks) for row in json.loads((run / f"seen_{rank}.json").read_text()))
    return Run(rows, seen, json.loads((run / "summary.json").read_text()), saved(config.out), printed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def config(folder: Path, teachers: Path) -> Iterator[Config]:
    """Two epochs of two steps over 96 images, of which three are unreadable; all stages of augmentation."""
    data = write_images(folder / "data", train=32)
    for name in ("class0/3.png", "class0/11.png", "class2/5.png"):
        (data / "train" / name).write_bytes(b"no image")
    (data / "val" / "class1" / "2.png").write_bytes(b"no image")
    sys.path.insert(0, str(teachers))  # the ranks get this path
    yield Config(
        recipe="deit", data=str(data), precision="fp32", image_size=16, model="deit_tiny_distilled_patch16_224",
        patch_size=8, width=32,
        depth=2, heads=2, drop_path=0.3, rand_augment="rand-m9-mstd0.5-inc1", erase=0.5, mixup=0.8, cutmix=1.0,
        distill="soft", alpha=0.5, tau=2.0, kl_normalizer="batch", teacher="tiny_teachers:three_classes",
        epochs=2, warmup_epochs=0.5, batch_size=BATCH, lr=0.02, ema_decay=0.9, log_every=1, threads=1,
    )  # fmt: skip
    sys.path.remove(str(teachers))


@pytest.fixture(scope="module")
def runs(config: Config, folder: Path) -> Callable[[int], Run]:
    """The run of so many ranks, made once."""
    done: dict[int, Run] = {}

    def run(ranks: int) -> Run:
        if ranks not in done:
            done[ranks] = train_with(ranks, config, folder)
        return done[ranks]

    return run


WORLDS = [2, 3, 4, 8]


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


@pytest.fixture
def endless(config: Config, tmp_path: Path) -> Config:
    """A run that lasts until something ends it."""
    return dataclasses.replace(config, epochs=4000, eval_every=4000, save_every=10, out=str(tmp_path / "run"))


def seen(run: str, rank: int, step: int, ranks: int) -> heartbeat.Sign:
    """The rank's sign of life once it has come to `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for sign in heartbeat.read(Path(run) / "logs", ranks):
            if sign.rank == rank and sign.step >= step:
                return sign
        time.sleep(0.05)
    raise AssertionError(f"rank {rank} never came to step {step}")


@pytest.mark.parametrize("victim", [0, 1])
def test_killing_a_rank_ends_all_with_one_code_and_names_it(endless: Config, tmp_path: Path, victim: int) -> None:
    with world(3, tmp_path / "printed", commanded, endless) as running:
        sign = seen(endless.out, victim, 2, 3)
        os.kill(sign.pid, signal.SIGKILL)
        codes = running.wait(30)
        printed = [running.printed(rank) for rank in range(3)]
    assert codes == [-signal.SIGKILL if rank == victim else LOST for rank in range(3)], printed
    (said,) = [line for text in printed for line in text.splitlines() if line.startswith("error:")]
    assert said.startswith(f"error: rank {victim} (process {sign.pid} on {socket.gethostname()}) is gone")
    assert re.search(r"in the stage (data|step|checkpoint) of step \d+. The same command continues", said)
    assert said in printed[1 if victim == 0 else 0]
    assert "Traceback" in (Path(endless.out) / "logs" / "rank_2.log").read_text()


def test_what_one_rank_alone_meets_ends_all_with_its_code(config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, bad_images="fail", out=str(tmp_path / "run"))
    with world(4, tmp_path / "printed", commanded, config) as running:
        assert running.wait(30) == [2] * 4
        printed = "".join(running.printed(rank) for rank in range(4))
    said = [line for line in printed.splitlines() if "error:" in line]
    assert said and all("repair or remove it, or type --bad-images skip" in line for line in said)
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.5}, "rank 1 on {host} has --lr 0.5, rank 0 0.02: type the same command on all machines"),
        ({"flip": 3.0}, "--flip lies between 0 and 1, got 3.0 (rank 1 on {host})"),
        ({"data": "{other}"}, "rank 1 on {host} has --data '{other}', rank 0 '{data}': type the same command"),
    ],
)
def test_ranks_with_different_commands_do_not_begin(config: Config, tmp_path: Path, changes: dict, says: str) -> None:
    names = {"host": socket.gethostname(), "other": str(tmp_path / "other"), "data": config.data}
    changes = {name: value.format(**names) if isinstance(value, str) else value for name, value in changes.items()}
    config = dataclasses.replace(config, out=str(tmp_path / "run"))
    with world(2, tmp_path / "printed", commanded, config, dataclasses.replace(config, **changes)) as running:
        assert running.wait(60) == [2, 2]
        assert "error: " + says.format(**names) in running.printed(0)
        assert running.printed(1) == ""
    assert not Path(config.out).exists()


def with_other_data(rank: int, config: Config) -> int:
    """Rank 1's machine has fewer images under the same path."""
    if rank == 1:
        opened = deit_fast.data.training.open_dataset

        def shorter(name: str):
            train, val = opened(name)
            train.labels = train.labels[:-1]
            return train, val

        deit_fast.data.training.open_dataset = shorter
    return main(command_line(config))


def elsewhere(rank: int, config: Config, folder: Path) -> int:
    """Rank 1's machine has another disk under the path of --out."""
    (folder / str(rank)).mkdir()
    os.chdir(folder / str(rank))
    run_folder.wait_for.__defaults__ = (1.0,)
    return main(command_line(config))


def impatient(rank: int, config: Config) -> int:
    meeting._MEETING = timedelta(seconds=2)
    return main(command_line(config))


def test_ranks_with_different_data_do_not_begin(config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, out=str(tmp_path / "run"))
    with world(2, tmp_path / "printed", with_other_data, config) as running:
        assert running.wait(60) == [2, 2]
        assert "has data" in running.printed(0) and "give every machine the same files" in running.printed(0)
        assert running.printed(1) == ""
    assert not Path(config.out).exists()


def test_a_run_folder_that_not_all_see_is_refused(config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, out="run")
    with world(2, tmp_path / "printed", elsewhere, config, tmp_path) as running:
        assert running.wait(60) == [2, 2]
        said = "error: run of rank 0 does not exist here: type an --out on storage that all machines share (rank 1 on"
        assert said in running.printed(0)
        assert running.printed(1) == ""


def test_a_rank_that_does_not_come_is_no_hang(config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, out=str(tmp_path / "run"))
    with world(1, tmp_path / "printed", impatient, config, WORLD_SIZE="2") as running:
        assert running.wait(60) == [2]
        assert "error: not all of the 2 ranks came to localhost:" in running.printed(0)
        assert "within 2 s: see what the others printed, or start fewer processes" in running.printed(0)


def test_a_port_in_use_is_named(config: Config, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with world(1, tmp_path / "printed", impatient, config, WORLD_SIZE="2", MASTER_PORT=str(port)) as running:
            assert running.wait(60) == [2]
            expected = f"error: the port of localhost:{port} is in use on this machine: set MASTER_PORT to another"
            assert expected in running.printed(0)


def test_a_rank_without_its_gpu_and_a_torch_without_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    assert group._device() == (torch.device("cuda", 1), None)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert "process 2 of this machine has no GPU of its own, 2 are visible" in group._device()[1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "type --nproc-per-node 1" in group._device()[1]
    monkeypatch.setenv("SLURM_STEP_ID", "0")  # --gpus-per-task=1
    assert group._device() == (torch.device("cuda", 0), None)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert "has no NCCL" in group._device()[1]


def together(rank: int, bodies: dict[str, Callable[[], object]]) -> int:
    """Print what every rank gets from bodies that rank 0 runs, until one ends by an error that is nobody's mistake."""
    with group.join(Config(data="none")) as ranks:
        for name, body in bodies.items():
            try:
                print(name, ranks.on_main(body))
            except ValueError as error:
                print(name, "refused:", error)
    return 0


def of_rank_0() -> tuple[str, Path]:
    return os.environ["RANK"], Path("runs/a")


def a_mistake() -> None:
    raise ValueError(f"type another --out, says rank {os.environ['RANK']}")


def a_full_disk() -> None:
    raise OSError(28, "No space left on device", "runs/a")


def a_defect() -> None:
    raise KeyError("top1")


def test_what_rank_0_does_alone_every_rank_gets_its_mistakes_as_well(tmp_path: Path) -> None:
    bodies = {"result": of_rank_0, "mistake": a_mistake, "disk": a_full_disk, "again": of_rank_0}
    with world(2, tmp_path / "printed", together, bodies) as running:
        codes = running.wait(60)
        printed = [running.printed(rank) for rank in range(2)]
    assert codes == [0, 0], printed
    expected = "('0', PosixPath('runs/a'))"
    for said in printed:
        assert said.splitlines()[-4:] == [
            f"result {expected}",
            "mistake refused: type another --out, says rank 0",
            "disk refused: [Errno 28] No space left on device: 'runs/a'",
            f"again {expected}",
        ]


def test_a_defect_on_rank_0_ends_all(tmp_path: Path) -> None:
    with world(2, tmp_path / "printed", together, {"defect": a_defect, "after": of_rank_0}) as running:
        codes = running.wait(60)
        printed = [running.printed(rank) for rank in range(2)]
    assert codes == [1, 1], printed
    assert "KeyError: 'top1'" in printed[0] and "after" not in printed[0]
    assert "RuntimeError: rank 0 has ended by KeyError: 'top1'" in printed[1] and "after" not in printed[1]


def test_alone_an_error_keeps_its_type() -> None:
    ranks = group.Ranks(0, 1, torch.device("cpu"))
    assert ranks.on_main(lambda: 3) == 3
    with pytest.raises(FileNotFoundError):
        ranks.on_main(lambda: Path("/nowhere/at/all").read_text())


def test_auto_compiles_and_takes_bf16_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert [group.compiles(choice, gpu) for choice in ("on", "auto", "off")] == [True, True, False]
    assert [group.compiles(choice, cpu) for choice in ("on", "auto", "off")] == [True, False, False]
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert group.has_bf16(gpu) == has and not group.has_bf16(cpu)


def torchrun(config: Config, *options: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "deit_fast.train", *command_line(config)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def assert_same_weights(mine: dict, theirs: dict) -> None:
    for which, tensors in theirs.items():
        assert mine[which].keys() == tensors.keys()
        for name, value in tensors.items():
            assert torch.equal(mine[which][name], value), (which, name)


def test_two_machines_with_one_process_are_one_with_two(runs, config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, out=str(tmp_path / "run"))
    where = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "deit")
    agents = [
        torchrun(config, "--nnodes", "2", "--nproc-per-node", "1", *where, "--local-addr", "localhost")
        for _ in range(2)
    ]
    printed = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert_same_weights(saved(config.out), runs(2).weights)


def test_what_an_earlier_start_left_in_the_store_is_nobodys(tmp_path: Path) -> None:
    """A restarted rank that reads the address of a process that is gone would wait for it."""
    store = dist.FileStore(str(tmp_path / "store"), 2)
    store.set("deit_fast/number/1", "drawn by a process that is gone")
    store.set("deit_fast/start", json.dumps(["old", {"1": "drawn by a process that is gone"}]))
    dist.PrefixStore("old", store).set("address", "of a process that is gone")
    found: dict[int, dist.Store] = {}

    def start(rank: int) -> None:
        found[rank] = meeting.fresh_part(dist.FileStore(str(tmp_path / "store"), 2), rank, 2)

    late = threading.Timer(0.2, start, (1,))
    late.start()
    start(0)
    late.join()
    found[1].set("key", "value")
    assert found[0].get("key") == b"value"
    assert not found[0].check(["address"])


def test_torchrun_restarts_and_the_run_continues_by_itself(config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, epochs=50, eval_every=50, save_every=10, out=str(tmp_path / "run"))
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    with world(2, tmp_path / "printed", commanded, whole) as running:
        assert running.wait() == [0, 0]
    agent = torchrun(config, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    os.kill(seen(config.out, 1, 20, 2).pid, signal.SIGKILL)
    printed, _ = agent.communicate(timeout=240)
    assert agent.returncode == 0, printed
    assert "continue   from step" in printed
    assert_same_weights(saved(config.out), saved(whole.out))


def failed(codes: dict[int, int], folder: Path, capsys) -> tuple[int, str]:
    code = launch._exit_code(codes, folder, 3)
    return code, capsys.readouterr().err


def test_the_launcher_names_what_was_killed_and_gives_an_error_s_own_code(tmp_path: Path, capsys) -> None:
    terminated = -signal.SIGTERM
    assert failed({1: 2, 0: LOST, 2: terminated}, tmp_path, capsys) == (2, "")
    assert failed({0: PREEMPTED, 1: 3, 2: PREEMPTED}, tmp_path, capsys) == (3, "")
    assert failed({0: PREEMPTED, 1: PREEMPTED, 2: terminated}, tmp_path, capsys) == (PREEMPTED, "")
    sign = heartbeat.Sign(1, "here", 7, "step", 57)
    heartbeat.path(tmp_path, 1).write_text(json.dumps(dataclasses.asdict(sign)))
    code, said = failed({0: LOST, 1: -signal.SIGKILL, 2: PREEMPTED}, tmp_path, capsys)
    assert code == LOST
    assert said.startswith("error: rank 1 was killed by SIGKILL in the stage step of step 57: out of memory?; the same")
    _, said = failed({2: -signal.SIGSEGV}, tmp_path, capsys)
    assert said.startswith("error: rank 2 was killed by SIGSEGV while setting up; the same command continues")


@pytest.mark.slow
def test_our_own_launcher_ends_all_when_one_is_killed(endless: Config, monkeypatch, capfd) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    logs = Path(endless.out) / "logs"
    killer = threading.Thread(target=lambda: os.kill(seen(endless.out, 1, 2, 2).pid, signal.SIGKILL))
    killer.start()
    assert launch.launch(command_line(endless), 2, logs) == LOST
    killer.join()
    assert time.time() - heartbeat.read(logs, 2)[1].written < 30
    err = capfd.readouterr().err
    assert "error: rank 1 was killed by SIGKILL in the stage" in err and err.count("error: rank") == 1
