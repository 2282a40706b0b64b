"""What a run leaves behind while it trains."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deit_fast.config import Config
from deit_fast.model import FUSIONS
from deit_fast.names import SCORE_NAMES
from deit_fast.ranks.group import Ranks
from deit_fast.run import checkpoint
from deit_fast.run.report import Reporter
from deit_fast.train.prepare import Start
from deit_fast.train.record import Record

# Each score is highest after another step.
TOP1 = {
    "fused": (9.0, 5.0, 6.0, 7.0),
    "softmax": (1.0, 9.0, 3.0, 4.0),
    "cls": (1.0, 2.0, 9.0, 4.0),
    "dist": (1, 2, 3, 9),
}


def best(config: Config, run: Path, average: bool, names: list[str]) -> tuple[int, float, str]:
    """Step, score and kind of the weights kept; with `average` it has the scores of TOP1, and the weights are worse."""
    step = SimpleNamespace(model=nn.Linear(2, 2), ema=SimpleNamespace(module=nn.Linear(2, 2)))
    data = SimpleNamespace(share=SimpleNamespace(steps_per_epoch=1))
    ranks = Ranks(0, 1, torch.device("cpu"))
    prepared = SimpleNamespace(config=config, ranks=ranks, step=step, start=Start(), data=data)
    run.mkdir()
    with Record(run, prepared, None, Reporter(False)) as record:
        for done in range(1, 5):
            scores = {name: {"top1": TOP1[name][done - 1]} for name in names}
            worse = {name: {"top1": TOP1[name][done - 1] - 0.5} for name in names}
            record._keep_if_best(done, *((worse, scores) if average else (scores, worse)))
    found = checkpoint.best(run)
    assert found is not None
    return found[1]["step"], found[1]["top1"], found[1]["weights"]


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_better_of_weights_and_average_is_kept_by_the_runs_own_fusion(
    tiny: Config, tmp_path: Path, fusion: str, average: bool
) -> None:
    config = tiny.replace(fusion=fusion)
    expected = TOP1[SCORE_NAMES[fusion]].index(9) + 1
    kind = "moving average" if average else "weights"
    assert best(config, tmp_path / "distilled", average, list(TOP1)) == (expected, 9, kind)
    assert best(config, tmp_path / "plain", average, ["cls"]) == (3, 9, kind), "a plain model has one score"
