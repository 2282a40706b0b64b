"""Slurm's variables say the same as torchrun's."""

import pytest

from deit_fast.ranks.slurm import adopt_slurm, first_host

# As srun sets them for the sixth of eight tasks on two nodes.
STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}  # fmt: skip


def test_a_task_of_a_step_becomes_a_rank() -> None:
    environment = dict(STEP)
    assert adopt_slurm(environment)
    named = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert [environment[name] for name in named] == ["5", "8", "1", "4", "gpu07"]
    assert 20000 <= int(environment["MASTER_PORT"]) < 30000


def test_every_task_finds_the_same_port_and_another_job_another() -> None:
    first, second, other = dict(STEP), {**STEP, "SLURM_PROCID": "0"}, {**STEP, "SLURM_JOB_ID": "4712"}
    for environment in (first, second, other):
        adopt_slurm(environment)
    assert first["MASTER_PORT"] == second["MASTER_PORT"] != other["MASTER_PORT"]


def test_what_is_set_stays() -> None:
    environment = {**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    adopt_slurm(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**STEP, "RANK": "0"},  # torchrun inside srun
        {name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"},  # the batch script itself
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty
    ],
)
def test_others_are_left_alone(environment: dict) -> None:
    before = dict(environment)
    assert not adopt_slurm(environment)
    assert environment == before


def test_a_number_outside_the_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="SLURM_PROCID is 9 of SLURM_NTASKS 8: start the command by srun"):
        adopt_slurm({**STEP, "SLURM_PROCID": "9"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu07", "gpu07"),
        ("gpu[07-09,12],fat1", "gpu07"),
        ("a,b", "a"),
        ("rack3-gpu[1,5]-ib", "rack3-gpu1-ib"),
    ],
)
def test_the_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_nodes_may_hold_different_numbers_of_tasks() -> None:
    environment = {**STEP, "SLURM_STEP_TASKS_PER_NODE": "6,2", "SLURM_NODEID": "1"}
    adopt_slurm(environment)
    assert environment["LOCAL_WORLD_SIZE"] == "2"
