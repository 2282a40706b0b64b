"""What one rank meets, all end by: a kill, a mistake, different commands, a rank that does not come."""

import os
import re
import signal
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import deit_fast.data.training
from deit_fast.command import LOST
from deit_fast.config import Config
from deit_fast.ranks import group, meeting
from deit_fast.run import folder as run_folder
from deit_fast.train.__main__ import main
from tests.deit_fast.command import command_line
from tests.deit_fast.world import commanded, seen, world


@pytest.mark.parametrize("victim", [0, 1])
def test_killing_a_rank_ends_all_with_one_code_and_names_it(endless: Config, tmp_path: Path, victim: int) -> None:
    with world(3, tmp_path / "printed", commanded, endless) as running:
        status = seen(endless.run.out, victim, 2, 3)
        os.kill(status.pid, signal.SIGKILL)
        codes = running.wait(30)
        printed = [running.printed(rank) for rank in range(3)]
    assert codes == [-signal.SIGKILL if rank == victim else LOST for rank in range(3)], printed
    (said,) = [line for text in printed for line in text.splitlines() if line.startswith("error:")]
    assert said.startswith(f"error: rank {victim} (process {status.pid} on {socket.gethostname()}) is gone")
    assert re.search(r"in the stage (data|step|checkpoint) of step \d+. The same command continues", said)
    assert said in printed[1 if victim == 0 else 0]
    assert "Traceback" in (Path(endless.run.out) / "logs" / "rank_2.log").read_text()


def test_what_one_rank_alone_meets_ends_all_with_its_code(config: Config, tmp_path: Path) -> None:
    config = config.replace(bad_images="fail", out=str(tmp_path / "run"))
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
    names = {"host": socket.gethostname(), "other": str(tmp_path / "other"), "data": config.data.data}
    changes = {name: value.format(**names) if isinstance(value, str) else value for name, value in changes.items()}
    config = config.replace(out=str(tmp_path / "run"))
    with world(2, tmp_path / "printed", commanded, config, config.replace(**changes)) as running:
        assert running.wait(60) == [2, 2]
        assert "error: " + says.format(**names) in running.printed(0)
        assert running.printed(1) == ""
    assert not Path(config.run.out).exists()


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
    config = config.replace(out=str(tmp_path / "run"))
    with world(2, tmp_path / "printed", with_other_data, config) as running:
        assert running.wait(60) == [2, 2]
        assert "has data" in running.printed(0) and "give every machine the same files" in running.printed(0)
        assert running.printed(1) == ""
    assert not Path(config.run.out).exists()


def test_a_run_folder_that_not_all_see_is_refused(config: Config, tmp_path: Path) -> None:
    config = config.replace(out="run")
    with world(2, tmp_path / "printed", elsewhere, config, tmp_path) as running:
        assert running.wait(60) == [2, 2]
        said = "error: run of rank 0 does not exist here: type an --out on storage that all machines share (rank 1 on"
        assert said in running.printed(0)
        assert running.printed(1) == ""


def test_a_rank_that_does_not_come_is_no_hang(config: Config, tmp_path: Path) -> None:
    config = config.replace(out=str(tmp_path / "run"))
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
