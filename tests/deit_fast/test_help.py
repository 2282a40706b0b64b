"""Every --help: an example, groups, and for every flag its default and a reason, for each command of the script."""

import re
import sys

import pytest

from deit_fast.__main__ import COMMANDS, CORE, module_of
from deit_fast.__main__ import main as script
from deit_fast.command import reasons
from deit_fast.config import PARTS, Config, Flags
from deit_fast.recipes.named import RECIPES, recipe
from deit_fast.tools.attention_maps import MOST_IMAGES

DATA_COMMANDS = ["check", "pack", "preview"]


def shown(name: str, *arguments: str, capsys: pytest.CaptureFixture) -> str:
    try:
        code = module_of(name).main([*arguments, "--help"])
    except SystemExit as exit:  # the parser's own way out
        code = exit.code
    assert code == 0
    return capsys.readouterr().out


def flags(text: str) -> dict[str, str]:
    """Flag -> its explanation."""
    parts = re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]
    return {part.split()[0]: " ".join(part.split()) for part in parts}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_says_why(name: str, capsys) -> None:
    text = shown(name, capsys=capsys)
    typed = f"python -m deit_fast.{name}" if name in CORE else f"deit-fast {name}"
    assert f"{typed} " in text.split("\n\n", 2)[2], "an example below the usage"
    if name != "data":  # which has sub-commands
        assert len(re.findall(r"^\w[^\n]*:$", text, flags=re.MULTILINE)) >= 3, "groups"
    for flag, explanation in flags(text).items():
        if flag != "-h,":
            assert re.search(r"default|required|instead of", explanation), f"{name} {explanation}"
            assert len(explanation.split()) > 4, f"a reason for {explanation}"


@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_sub_commands_have_an_example_and_defaults(command: str, capsys) -> None:
    text = shown("data", command, capsys=capsys)
    assert f"deit-fast data {command} " in text
    assert all("default" in explanation for flag, explanation in flags(text).items() if flag != "-h,")


def test_every_field_of_the_configuration_is_in_a_group_with_its_reason() -> None:
    groups = [group for part in PARTS.values() for group in reasons(part).items()]
    known = reasons(Flags)["Recipe"] | {name: reason for _, group in groups for name, reason in group.items()}
    assert {name for name, reason in known.items() if reason} == Config().flat().keys()
    assert "Arguments" not in dict(groups)


def test_defaults_are_those_of_the_recipe(capsys) -> None:
    text = shown("train", "--recipe", "digits", capsys=capsys)
    explained = flags(text)
    assert f"(default: {recipe('digits').optim.epochs})" in explained["--epochs"]
    assert "(default: 0.85 1.0)" in explained["--crop-scale"]
    assert all(re.search(rf"^  {name} ", text, flags=re.MULTILINE) for name in RECIPES)


@pytest.mark.parametrize("name", ["train", "teacher"])
def test_whose_defaults_are_shown_is_said_before_them(name: str, capsys) -> None:
    said = {}
    for arguments in ((), ("--data", "/mine"), ("--recipe", "deit-base")):
        said[arguments] = " ".join(shown(name, *arguments, capsys=capsys).partition("--recipe TEXT")[0].split())
    others = "; with your own --data others count, which --data FOLDER --help shows"
    assert f"The defaults below are those of the recipe demo{others}" in said[()]
    assert "The defaults below are those of the recipe own; the folder decides" in said["--data", "/mine"]
    assert "The defaults below are those of the recipe deit-base " in said["--recipe", "deit-base"]
    assert all(others not in text for arguments, text in said.items() if arguments)


def test_predict_says_how_many_images_it_draws(capsys) -> None:
    assert f"for the first {MOST_IMAGES} images" in flags(shown("predict", capsys=capsys))["--attention"]


def test_the_console_script_lists_its_commands(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["deit-fast", "--help"])
    assert script() == 0
    assert all(f"  {name} " in capsys.readouterr().out for name in list(COMMANDS)[:1])


def test_the_console_script_says_its_version(capsys) -> None:
    assert script(["--version"]) == 0
    assert re.fullmatch(r"deit-fast \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(("typed", "meant"), [("predct", "predict"), ("check", "data"), ("score", "evaluate")])
def test_an_unknown_command_names_the_nearest_or_the_one_that_does_it(typed, meant, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["deit-fast", typed])
    assert script() == 2
    assert capsys.readouterr().err.startswith(f"error: unknown command {typed!r}, did you mean {meant}?\nusage: ")
