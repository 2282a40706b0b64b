"""How a command begins and ends: its command line, its sentence and its exit code, the same way in all commands."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import torch
from tyro.conf import Positional, arg

import deit_fast.__main__
from deit_fast import command
from deit_fast.__main__ import COMMANDS, module_of
from deit_fast.data import BadImage
from deit_fast.ranks.heartbeat import RankLost, Status
from deit_fast.ranks.preemption import Preempted
from deit_fast.tools.export.formats import Disagreement
from deit_fast.train import Diverged

ROOT = Path(__file__).parents[2]
PROGRAM = "import atexit; from deit_fast.command import leave; atexit.register(print, 'tidied up'); leave({})"


@pytest.mark.parametrize(
    ("rank", "code", "tidied"), [("1", 2, False), ("1", 0, True), (None, 2, True)], ids=["failed", "done", "alone"]
)
def test_a_rank_that_has_failed_does_not_tidy_up(rank: str | None, code: int, tidied: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    environment |= {} if rank is None else {"RANK": rank}
    run = subprocess.run([sys.executable, "-c", PROGRAM.format(code)], env=environment, capture_output=True, text=True)
    assert run.returncode == code and ("tidied up" in run.stdout) == tidied


# What each command does first, and arguments that bring it there.
WORK = {
    "train": ("train.__main__.train", ["--data", "digits"]),
    "teacher": ("teacher.__main__.fill", ["--data", "digits", "--teacher-cache", "labels"]),
    "evaluate": ("tools.evaluate.__main__.evaluate_all", ["model"]),
    "demo": ("tools.demo.demo", []),
    "replicate": ("tools.replicate.__main__.replicate", []),
    "report": ("tools.report.__main__.report", ["run"]),
    "predict": ("tools.predict.image_paths", ["image.png", "--model", "model"]),
    "export": ("tools.export.__main__.require", ["model", "--to", "timm", "--out", "folder"]),
    "parity": ("tools.parity.__main__.image_paths", ["model", "export", "--data", "files"]),
    "benchmark": ("tools.benchmark.__main__.forms_of", ["model"]),
    "data": ("tools.data.__main__.open_parts", ["check", "photos"]),
}
INTERRUPTED = {
    "train": "interrupted: the same command continues from the last checkpoint, if there is one",
    "teacher": "interrupted: nothing was begun",
    "evaluate": "interrupted: nothing was written",
    "demo": "interrupted: the same command continues from the last checkpoint, if there is one",
    "replicate": "interrupted: the same command continues from the last checkpoint, if there is one",
}
# An error, its exit code, and which of two ranks says it.
ENDS = [
    (ValueError("a mistake"), 2, [True, False]),
    (OSError("a full disk"), 2, [True, False]),
    (command.OfOneRank("no memory here"), 2, [True, True]),
    (BadImage("an image of this rank's share"), 2, [True, True]),
    (Diverged("NaN"), 3, [True, False]),
    (Disagreement("other logits"), 1, [True, False]),
    (RankLost(Status(0, "node1", 7)), 4, [False, True]),
    (RankLost(Status(1, "node1", 7)), 4, [True, False]),
    (RankLost(Status(0, "node1", 7, code=2)), 2, [False, False]),
    (Preempted(signal.SIGTERM, 7), 75, [True, False]),
    (Preempted(signal.SIGINT, 7), 130, [True, False]),
]


def end(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> int:
    """The exit code of a command whose work ends by an error."""

    def fail(*_: object) -> None:
        raise error

    work, arguments = WORK[name]
    monkeypatch.setattr(f"deit_fast.{work}", fail)
    return module_of(name).main(arguments)


def test_the_table_has_every_command() -> None:
    assert WORK.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize(("error", "code", "says"), ENDS, ids=lambda value: type(value).__name__)
def test_an_error_is_one_sentence_and_an_exit_code(monkeypatch, capsys, name, error, code, says) -> None:
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert end(monkeypatch, name, error) == code
        sentence = f"{error}\n" if isinstance(error, Preempted) else f"error: {error}\n"
        assert capsys.readouterr().err == (sentence if says[rank] else "")


@pytest.mark.parametrize("name", WORK)
def test_ctrl_c_says_what_is_left(monkeypatch, capsys, name: str) -> None:
    monkeypatch.setenv("RANK", "0")
    assert end(monkeypatch, name, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == INTERRUPTED.get(name, "interrupted") + "\n"


# Every command once as either rank, and once in either form.
@pytest.mark.parametrize(
    ("name", "module", "script", "rank"),
    [
        (name, module, script, (number + script) % 2)
        for number, (name, module) in enumerate([*((name, "torch") for name in WORK), ("train", "timm")])
        for script in (False, True)
    ],
)
def test_ctrl_c_while_a_command_is_imported_says_the_same(
    tmp_path: Path, script: bool, name: str, module: str, rank: int
) -> None:
    """In the first seconds, which torch and others take to be imported: one of them is replaced by a Ctrl-C."""
    (tmp_path / f"{module}.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('it went on')"
    )
    (tmp_path / "deit-fast").write_text("from deit_fast.__main__ import script\nscript()")
    start = [str(tmp_path / "deit-fast"), name] if script else ["-m", "deit_fast", name]
    paths = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "kernels")])
    run = subprocess.run(
        [sys.executable, *start, "--help"], env={**os.environ, "PYTHONPATH": paths, "RANK": str(rank)},
        capture_output=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job has it ignored
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr == ("" if rank else INTERRUPTED.get(name, "interrupted") + "\n")


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_traceback_is_shown_on_request(monkeypatch, capsys, name: str, rank: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("DEIT_FAST_TRACEBACK", "1")
    for error, code in ((ValueError("a mistake"), 2), (Diverged("NaN"), 3)):
        assert end(monkeypatch, name, error) == code
        said = capsys.readouterr().err
        assert said.startswith("Traceback (most recent call last)") and "in fail" in said and str(error) in said


@pytest.mark.parametrize("name", WORK)
def test_a_defect_of_the_program_is_not_hidden(monkeypatch, name: str) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(KeyError):
        end(monkeypatch, name, KeyError("a defect"))


def test_what_our_launcher_started_is_named_by_it(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("DEIT_FAST_LAUNCHED", "1")
    assert end(monkeypatch, "train", RankLost(Status(0, "node1", 7))) == 4
    assert capsys.readouterr().err == ""


def test_a_teacher_without_memory_says_what_to_type(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    assert end(monkeypatch, "teacher", torch.OutOfMemoryError("CUDA")) == 2
    says = "up to 64 images at once: type --micro-batch 32, here and in the training"
    assert capsys.readouterr().err == f"error: the teacher ran out of memory with {says}\n"


def test_every_entry_point_leaves_alike() -> None:
    for module in (deit_fast.__main__, *map(module_of, COMMANDS)):
        assert Path(module.__file__).read_text().endswith("    command.leave(main())\n"), module
    assert '[project.scripts]\ndeit-fast = "deit_fast.__main__:script"\n' in (ROOT / "pyproject.toml").read_text()


@dataclass(frozen=True, kw_only=True)
class Example:
    # What it takes
    files: Annotated[tuple[str, ...], Positional, arg(metavar="FILE")]  # to be read
    target: str  # where to
    # How
    names: tuple[str, ...] = ()  # of both, one for
    # each file (default: their own)
    batch_size: int = 3  # at a time
    loud: bool = False  # say more
    share: float | None = 0.5  # 100 % at most


def parsed(*arguments: str) -> Example:
    return command.parse(Example, arguments, program="python -m example", description="An example.")


def test_positionals_required_flags_and_lists() -> None:
    short = parsed("a", "b", "--target", "t")
    assert short == Example(files=("a", "b"), target="t") == parsed("--target=t", "a", "b")
    long = parsed("a", "--target", "t", "--names", "x", "y", "--batch-size", "1", "--loud", "--share", "None")
    assert long == Example(files=("a",), target="t", names=("x", "y"), batch_size=1, loud=True, share=None)


def test_a_flag_may_be_typed_by_its_first_letters() -> None:
    assert parsed("a", "--ta=t", "--batch", "2") == Example(files=("a",), target="t", batch_size=2)
    with pytest.raises(SystemExit):  # a command whose defaults depend on a flag knows whole ones only
        command.parse(Example, ["--batch", "2"], program="", description="", defaults=Example(files=("a",), target="t"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--target", "t"], "files: at least"), (["a", "--target", "t", "--names"], "names: at least")],
)
def test_an_empty_list_is_refused(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says} one is needed, see python -m example --help$"):
        parsed(*arguments)


@pytest.mark.parametrize(
    "arguments", [["a"], ["a", "--target"], ["a", "--target", "t", "--batch-size", "x"], ["--bogus"]]
)
def test_a_mistake_in_the_command_line_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parsed(*arguments)
    assert exit.value.code == 2


def test_the_help_of_a_dataclass() -> None:
    text = command.help_text(Example, "python -m example", "An example.", epilog="The end.")
    assert text.startswith("usage: python -m example FILE… --target TEXT [--FLAG VALUE]…\n\nAn example.\n")
    assert [line for line in text.splitlines() if line.endswith(":")] == ["options:", "What it takes:", "How:"]
    flags = [" ".join(line.split()) for line in text.split("What it takes:")[1].splitlines() if line]
    assert flags == [
        "FILE to be read", "--target TEXT where to; required", "How:", "--names TEXT [TEXT ...]",
        "of both, one for each file (default: their own)", "--batch-size N at a time (default: 3)",
        "--loud, --no-loud say more (default: False)", "--share X 100 % at most (default: 0.5)",
        "The end.", "DEIT_FAST_TRACEBACK=1 in the environment shows the traceback of an error.",
    ]  # fmt: skip
