"""The Python of the kernels' README runs as it stands, its tables of calls hold, and its numbers are the budget's."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.loss
import torch
import torch.nn.functional as F

import deit_kernels
from benchmarks.compiled.page import traced_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "kernels" / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "kernels/README.md", "exec"), {})


def rows_below(head: str) -> list[list[str]]:
    """The cells of the table whose first line begins with `head`."""
    table = README.split(f"\n| {head}", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]


def test_a_loss_may_be_replaced_as_the_table_says() -> None:
    labels, logits, target = torch.tensor([1, 0, 4, 4]), torch.randn(4, 5), torch.rand(4, 5)
    mixed = deit_kernels.MixedTarget(labels, labels.flip(0), lam := torch.tensor([0.7, 0.7, 1.0, 0.2]))
    one_hot = [F.one_hot(part, 5) for part in mixed[:2]]
    mixup_target = lam[:, None] * one_hot[0] + (1 - lam[:, None]) * one_hot[1]
    known = {**vars(F), **vars(timm.loss), **vars(deit_kernels), **locals(), "F": F}
    known |= {"student": logits, "teacher": torch.randn(4, 5), "tau": 2.0, "weight": torch.rand(5)}
    replaced = 0
    for old, new in rows_below("instead of |"):
        theirs, ours = (re.search(r"`(.*?)`", cell).group(1) for cell in (old, new))
        if "(" in theirs and "(" in ours:
            torch.testing.assert_close(eval(ours, known), eval(theirs, known))
            replaced += 1
    assert replaced == 6


@pytest.mark.parametrize(
    ("function", "head"),
    [
        (deit_kernels.distillation_loss, "argument of `distillation_loss`"),
        (deit_kernels.augment.apply, "argument of `augment.apply`"),
    ],
)
def test_the_table_of_arguments_is_the_signature(function: Callable[..., Any], head: str) -> None:
    listed = {}
    for names, _, defaults in rows_below(head):
        arguments = re.findall(r"`(\w+)`", names)
        values = [value.split(":")[-1].strip(" `").replace("−", "-") for value in re.split(r"[,;] ", defaults)]
        values = values if len(values) == len(arguments) else [""] * len(arguments)  # a sentence, or no default
        listed |= dict(zip(arguments, values, strict=True))
    parameters = inspect.signature(function).parameters
    assert list(listed) and sorted(listed) == sorted(parameters)
    for name, value in listed.items():
        default = parameters[name].default
        if value:
            shown = str(default).removeprefix("torch.") if not isinstance(default, str) else f'"{default}"'
            assert value == shown, name


@pytest.mark.parametrize("length", (198, 578))
@pytest.mark.parametrize("direction", ("forward", "backward"))
def test_the_table_is_the_budget(direction: str, length: int) -> None:
    budget = json.loads((ROOT / "benchmarks" / "compiled" / "budget.json").read_text())
    (name,) = (
        name for name in budget["kernels"]["sm_90"] if re.match(rf"attention_{direction}_\w+ n{length} d64", name)
    )
    numbers, traced = budget["kernels"]["sm_90"][name], traced_of(budget)["sm_90"][name]
    row = re.search(rf"^\| {direction}, N = {length} \|(.*)\|$", README, flags=re.MULTILINE).group(1).split("|")
    seen = [float(re.search(r"[\d.]+", cell).group()) for cell in row]
    expected = [numbers[key] for key in ("registers", "spills")] + [round(numbers["shared_bytes"] / 1024)]
    expected += [numbers["warps"], numbers["matrix"]["HGMMA"], traced["traffic"], traced["products"]]
    assert seen == pytest.approx(expected, abs=5e-3)
