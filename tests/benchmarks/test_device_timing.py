"""The timing of a card without one: who is timed when, and who is left out. Clock and graphs are stand-ins."""

from contextlib import nullcontext

import pytest

from benchmarks.measure import device_timing
from benchmarks.measure.device_timing import time_calls


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was timed, in order."""
    timed: list[str] = []

    def prepare(calls: list, capture: bool) -> tuple:
        name = calls[0]()
        if name == "cannot be captured":
            raise RuntimeError("operation not permitted when stream is capturing")

        def run() -> None:
            timed.append(name)
            device_timing.CLOCK.add(0.5)

        return run, capture

    for name, stand_in in {"ON_CARD": True, "on_stream": nullcontext, "prepare": prepare}.items():
        monkeypatch.setattr(device_timing, name, stand_in)
    return timed


def providers(*names: str) -> dict:
    return {name: lambda name=name: [lambda: name] for name in names}


def test_ours_is_timed_before_and_after_its_peers(on_a_card: list[str]) -> None:
    seconds, left_out = time_calls(providers("ours", "peer"), rounds=5)
    warm_up = 2
    assert on_a_card == ["ours"] * (2 + warm_up) + ["peer"] * (5 + warm_up) + ["ours"] * (3 + warm_up)
    assert seconds == {"ours": [0.5] * 5, "peer": [0.5] * 5} and left_out == {}


def test_a_peer_that_cannot_be_captured_or_made_loses_its_own_numbers_only(on_a_card: list[str]) -> None:
    def missing() -> list:
        raise ImportError("no module")

    everyone = providers("ours", "cannot be captured", "peer") | {"missing": missing}
    seconds, left_out = time_calls(everyone, rounds=4)
    assert list(seconds) == ["ours", "peer"] and set(left_out) == {"cannot be captured", "missing"}
    with pytest.raises(RuntimeError, match="stream is capturing"):
        time_calls(providers("cannot be captured"), rounds=4)
