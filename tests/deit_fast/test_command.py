"""How a process ends: a rank that has failed at once, with its own code whatever is left to tidy up."""

import os
import subprocess
import sys

import pytest

from deit_fast import command
from deit_fast.evaluate import __main__ as evaluate
from deit_fast.teacher import __main__ as fill_cache
from deit_fast.train import __main__ as train

PROGRAM = "import atexit; from deit_fast.command import leave; atexit.register(print, 'tidied up'); leave({})"


@pytest.mark.parametrize(
    ("rank", "code", "tidied"), [("1", 2, False), ("1", 0, True), (None, 2, True)], ids=["failed", "done", "alone"]
)
def test_a_rank_that_has_failed_does_not_tidy_up(rank: str | None, code: int, tidied: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    environment |= {} if rank is None else {"RANK": rank}
    run = subprocess.run([sys.executable, "-c", PROGRAM.format(code)], env=environment, capture_output=True, text=True)
    assert run.returncode == code and ("tidied up" in run.stdout) == tidied


@pytest.mark.parametrize(
    ("module", "work", "arguments"),
    [
        (train, "train", ["--data", "digits"]),
        (fill_cache, "fill", ["--data", "digits", "--teacher-cache", "x"]),
        (evaluate, "evaluate_all", ["model"]),
    ],
    ids=["train", "teacher", "evaluate"],
)
@pytest.mark.parametrize("error", [command.OfOneRank("no memory here"), ValueError("all see this")], ids=str)
def test_what_one_rank_alone_met_is_said_by_that_rank(monkeypatch, capsys, module, work, arguments, error) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(module, work, fail)
    assert module.main(arguments) == 2
    assert (str(error) in capsys.readouterr().err) == isinstance(error, command.OfOneRank)
