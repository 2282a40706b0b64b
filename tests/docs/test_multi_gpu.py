"""docs/multi-gpu.md: every command is spelled as its parser knows it, and what it names exists."""

import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from deit_fast.ranks import heartbeat
from deit_fast.recipes.named import parse
from deit_fast.run import report

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "multi-gpu.md").read_text()
COMMANDS = [
    line
    for language, code in re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.DOTALL)
    if language == "bash"
    for line in code.splitlines()
    if "deit_fast.train" in line
]


def test_there_are_commands_for_each_way() -> None:
    starts = {shlex.split(command)[0] for command in COMMANDS}
    assert starts == {"python", "torchrun", "srun"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_trainer_knows_every_flag(command: str) -> None:
    arguments = shlex.split(command)
    parse(arguments[arguments.index("deit_fast.train") + 1 :], "").check()


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("torchrun")])
def test_torchrun_knows_every_flag(command: str) -> None:
    arguments = get_args_parser().parse_args(shlex.split(command)[1:])
    assert arguments.module and arguments.training_script == "deit_fast.train"


def test_flags_in_the_text_exist() -> None:
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    theirs = {"--help", "--max-restarts", "--cpus-per-task", "--logdir"}  # torchrun's, Slurm's and tensorboard's
    named = set(re.findall(r"`[^`]*?(--[a-z][a-z-]*)[^`]*`", text)) - theirs
    fields = {"--" + name.replace("_", "-") for name in parse(["--data", "x"], "").flat()}
    assert named and named <= fields


def test_the_lines_it_tells_to_look_at_are_printed() -> None:
    source = "".join(path.read_text() for path in (ROOT / "deit_fast").rglob("*.py"))
    for name in re.findall(r"line `(\w+)`|lines? .*?`(\w+)` prints", PAGE):
        assert f'"{"".join(name)}"' in source, name
    line = re.search(r"^    (step .*)$", PAGE, flags=re.MULTILINE)[1]
    row = {
        "step": 40, "loss": 2.0112, "top1": 33.6, "images_per_second": 1184.2, "data_wait": 0.02, "teacher_share": 0.21,
        "memory": 0.7 * 2**30, "eta": 34.2,
    }  # fmt: skip
    assert report.step_line(row, 660) == line
    assert heartbeat.path(Path("logs"), 0).name == "rank_0.alive"


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if not link.startswith("http")]
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]
