"""The committed order of tuning is what its command prints."""

import json

import pytest
import triton

from benchmarks.compiled.order import CONTENDERS, L2, microseconds, ranked
from benchmarks.compiled.report import BUDGET
from deit_kernels import tune
from deit_kernels.short_attention.configuration import choose
from deit_kernels.short_attention.predicted import _PREDICTED

needs_pinned_triton = pytest.mark.skipif(
    triton.__version__ != json.loads(BUDGET.read_text())["triton"], reason="the predictions are those of one Triton"
)


def test_contenders_are_candidates_and_hold_what_is_shipped() -> None:
    for (direction, length), contenders in CONTENDERS.items():
        assert len(contenders) == len(set(contenders)) > tune.FIRST
        assert set(contenders) <= set(tune.candidates(direction, length))
        for card in L2:
            assert choose(direction, card, length, 64, 1 << 20, 1) in contenders


def test_the_committed_lists_are_sorted_and_hold_the_contenders() -> None:
    assert set(_PREDICTED) == {(direction, card, length) for direction, length in CONTENDERS for card in L2}
    for (direction, _, length), predictions in _PREDICTED.items():
        times = [time for time, _ in predictions]
        assert times == sorted(times)
        assert {config for _, config in predictions} <= set(CONTENDERS[direction, length])
        assert len(predictions) > tune.FIRST


@needs_pinned_triton
@pytest.mark.parametrize("key", [("backward", 80, 198), ("forward", 90, 198)], ids=str)
def test_the_best_prediction_is_the_models(key: tuple) -> None:
    direction, capability, length = key
    time, config = _PREDICTED[key][0]
    assert microseconds(direction, length, config, capability) == pytest.approx(time, rel=0.05)


@pytest.mark.parametrize(
    "key", [key for key in _PREDICTED if key[0] == "forward" or (key[1], key[2]) == (90, 198)], ids=str
)
def test_the_shipped_configurations_time_is_the_budgets(key: tuple) -> None:
    """So the lists are printed anew with the budget. Both come from one model; only the order adds delta and L2."""
    direction, capability, length = key
    shipped = choose(direction, capability, length, 64, 1 << 20, 1)
    kernels = json.loads(BUDGET.read_text())["kernels"][f"sm_{capability}"]
    predicted = kernels[f"attention_{direction}_{shipped.form} n{length} d64"]["predicted_us"]
    assert {config: time for time, config in _PREDICTED[key]}[shipped] == pytest.approx(predicted, rel=0.01)


def test_what_does_not_fit_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    times = dict(zip(CONTENDERS["forward", 578], [30.0, None, 10.0], strict=False))
    monkeypatch.setattr("benchmarks.compiled.order.microseconds", lambda way, n, config, card: times.get(config))
    first, second, third = CONTENDERS["forward", 578][:3]
    assert list(ranked("forward", 578, 90)) == [(10.0, third), (30.0, first)]
    assert second not in [config for _, config in ranked("forward", 578, 90)]
