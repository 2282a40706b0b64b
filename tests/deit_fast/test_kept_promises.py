"""What users and their files rely on, against a list that was written once: flags, config.json, run names, label keys.

python -m tests.deit_fast.test_kept_promises        write the list anew: for a flag that is added on purpose
"""

import contextlib
import hashlib
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deit_fast.__main__ import COMMANDS, module_of
from deit_fast.config import Config, difference
from deit_fast.files import Lock
from deit_fast.model import IMAGENET_NORMALISATION
from deit_fast.recipes.named import RECIPES, recipe
from deit_fast.run import checkpoint, folder
from deit_fast.teacher import labels
from tests.deit_fast.data.memory_dataset import MemoryDataset
from tests.deit_fast.test_config import changed

PROMISED = Path(__file__).with_name("promised.json")
HELPS = [*([name] for name in COMMANDS if name != "data"), *(["data", name] for name in ("check", "pack", "preview"))]
BASE = {
    "data": "/flowers", "rand_augment": "rand-m9-mstd0.5-inc1-n1", "erase": 0.25, "mixup": 0.8, "cutmix": 1.0,
    "mix_prob": 0.5, "distill": "soft", "teacher": "teacher.pth", "teacher_top_k": 3, "alpha": 0.5, "tau": 3.0,
    "kl_normalizer": "batch",
}  # fmt: skip


def promised() -> dict:
    return json.loads(PROMISED.read_text())


def helped(command: list[str]) -> dict[str, dict[str, list[str]]]:
    """Group -> flag -> [its choices if it has some, its default if it is named], as --help shows them."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        module_of(command[0]).main([*command[1:], "--help"])
    groups: dict[str, dict[str, list[str]]] = {}
    entry: list[str] = []
    for line in printed.getvalue().splitlines():
        if heading := re.fullmatch(r"(\w[^:]*):", line):
            entry, group = [], groups.setdefault(heading[1], {})
        elif groups and (flag := re.match(r"  (-[\w-]+|[A-Z_]+)(,.*)?", line)):
            entry = group.setdefault(flag[1], [])
            entry.append(line[2:])
        elif entry and line.startswith("   "):
            entry.append(line.strip())
        elif line:
            entry = []
    groups.pop("options", None)  # -h
    return {
        group: {flag: told(flag, " ".join(lines)) for flag, lines in flags.items()}
        for group, flags in groups.items() if flags
    }  # fmt: skip


def told(flag: str, text: str) -> list[str]:
    default = re.search(r"\(default: ([^()]*)\)$", text)
    choices = re.match(r"--[\w-]+ (\{.*?\})", text)
    of_this_machine = flag == "--threads" and default
    return [found[1] for found in (choices, None if of_this_machine else default) if found]


def key(config: Config, directory: Path) -> dict:
    """The label cache's settings; the teacher's file is one of this test."""
    (directory / config.distill.teacher).write_bytes(b"weights")
    share = SimpleNamespace(world_size=1)
    data = SimpleNamespace(train_set=MemoryDataset(3), share=share, config=config.data, optim=config.optim)
    policy, dtype = (
        config.data.training_policy(IMAGENET_NORMALISATION),
        labels._dtype(config.distill.teacher_precision, torch.device("cpu")),
    )
    return labels.cache_settings(config.distill, str(directory / config.distill.teacher), dtype, data, policy)


def written(config: Config, directory: Path) -> str:
    """config.json of a run."""
    with Lock(directory / "lock") as lock:
        folder.begin(config, directory, {}, lock)
    return (directory / "config.json").read_text()


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def of_field(name: str, value: object, directory: Path) -> dict:
    """What follows from one changed field."""
    base = Config(**BASE)
    other = Config(**BASE | {name: tuple(value) if isinstance(value, list) else value})
    keys = digest(key(base, directory)), digest(key(other, directory))
    return {
        "value": value, "run": str(other.run_folder()), "difference": difference(base, other),
        "label key": "as before" if keys[0] == keys[1] or name == "teacher" else keys[1],
        "state": digest(checkpoint.state_of(other, 2, 3, 4.0) | {"versions": None}),
    }  # fmt: skip


def of_recipe(name: str, directory: Path) -> dict:
    config = recipe(name)
    return {"run": str(config.run_folder()), "config.json": digest(written(config, directory))}


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_flags_groups_defaults_and_choices(command: list[str]) -> None:
    assert helped(command) == promised()["help"][" ".join(command)]


def test_defaults_of_a_recipe_are_shown() -> None:
    assert helped(["train", "--data", "/imagenet"]) == promised()["help"]["train --data /imagenet"]


@pytest.mark.parametrize("name", promised()["fields"] if PROMISED.exists() else ())
def test_a_changed_field_gives_the_run_difference_and_label_key(name: str, tmp_path: Path) -> None:
    known = promised()["fields"][name]
    assert of_field(name, known["value"], tmp_path) == known


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_run_and_writes_its_configuration(name: str, tmp_path: Path) -> None:
    assert of_recipe(name, tmp_path) == promised()["recipes"][name]


def test_a_configuration_is_written_flat(tmp_path: Path) -> None:
    text = written(Config(**BASE), tmp_path)
    assert text == promised()["config.json"]
    assert Config.from_json(tmp_path / "config.json") == Config(**BASE)


def write(directory: Path) -> None:
    base = Config(**BASE)
    fields = json.loads(written(base, directory / "a"))
    values = {name: json.loads(written(changed(base, name), directory / name))[name] for name in fields}
    values["teacher"] = "other.pth"
    parts = {
        "help": {" ".join(command): helped(command) for command in [*HELPS, ["train", "--data", "/imagenet"]]},
        "config.json": written(base, directory / "b"),
        "recipes": {name: of_recipe(name, directory / name) for name in RECIPES},
        "fields": {name: of_field(name, value, directory) for name, value in values.items()},
    }  # fmt: skip
    # A line for each command, recipe and field.
    listed = ",\n".join(
        f"{json.dumps(part)}: " + (json.dumps(of) if isinstance(of, str) else "{\n" + ",\n".join(
            f" {json.dumps(name)}: {json.dumps(value)}" for name, value in of.items()) + "\n}")
        for part, of in parts.items()
    )  # fmt: skip
    PROMISED.write_text("{\n" + listed + "\n}\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary))
