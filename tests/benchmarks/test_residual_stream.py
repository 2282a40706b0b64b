"""What docs/speed-report.md says of a bfloat16 residual stream follows from the ten trainings in its results file."""

import json
import re
import statistics
from pathlib import Path

from deit_fast.tools.replicate.trials import compare

ROOT = Path(__file__).parents[2]


def test_page_states_what_the_trainings_gave() -> None:
    runs = json.loads((ROOT / "benchmarks/results/residual-digits.json").read_text())["runs"]
    page = (ROOT / "docs/speed-report.md").read_text()
    page = page[page.index("**Result**") :]
    rows = {}
    for precision, of_seeds in runs.items():
        assert [run["seed"] for run in of_seeds] == [1, 2, 3, 4, 5]
        top1, loss = ([run[key] for run in of_seeds] for key in ("top1", "loss"))
        rows[precision] = top1, loss
        means = f"{statistics.mean(top1):.2f} % | {min(top1):.2f} %, {max(top1):.2f} % | {statistics.mean(loss):.3f} |"
        assert f"| `{precision}` | {means}" in page
    (top1, loss) = (compare(of_residual, of_bf16) for of_bf16, of_residual in zip(*rows.values(), strict=True))
    assert f"| {top1['difference']:+.2f} ± {top1['half_interval']:.2f} |" in page
    assert f"| {loss['difference']:+.3f} ± {loss['half_interval']:.3f} |".replace("-", "−") in page
    assert top1["verdict"] == loss["verdict"] == "undecided"
    assert re.search(r"neither difference is distinguishable\s+from zero", page)
