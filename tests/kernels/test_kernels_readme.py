"""The Python of the kernels' README runs as it stands, and its numbers are the budget's."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.compiled.page import traced_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "kernels" / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "kernels/README.md", "exec"), {})


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
