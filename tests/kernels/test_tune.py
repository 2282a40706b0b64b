"""Tuning without a card: what is tried, what is written, and that the ops read it."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deit_kernels import tune
from deit_kernels.short_attention import configuration
from deit_kernels.short_attention.configuration import Config


def test_without_a_card_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    run = subprocess.run([sys.executable, "-m", "deit_kernels.tune"], capture_output=True, text=True)
    assert run.returncode != 0 and "measures on a CUDA card" in run.stderr


def test_every_form_is_tried_where_it_can_be() -> None:
    assert {config.form for config in tune.candidates("backward", 256)} == {"resident", "two_phase", "tiled"}
    assert {config.form for config in tune.candidates("backward", 65)} == {"resident", "two_phase", "tiled"}
    assert {config.form for config in tune.candidates("backward", 257)} == {"tiled"}
    assert {config.form for config in tune.candidates("forward", 272)} == {"resident", "tiled"}
    assert all(config.num_warps <= 8 for config in tune.candidates("backward", 198))


def test_a_tuned_table_keeps_the_exact_zeros_of_short_sequences() -> None:
    """One key's gradient of the logits is exactly 0 in the resident form only, which sums P ∘ dP up to SUMMED keys."""
    kernels = pytest.importorskip("deit_kernels.short_attention.backward_kernels")
    assert tune.EXACT_ZERO == kernels.SUMMED.value
    for length in (1, 50, 64):
        assert {config.form for config in tune.candidates("backward", length)} == {"resident"}
    assert len(tune.candidates("backward", 64)) > tune.FIRST


def test_the_digest_is_of_the_candidates_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    before, tiles = tune.candidates_digest(90), list(TILES)
    assert before == tune.candidates_digest(90) and len({tune.candidates_digest(card) for card in (80, 90)}) == 2
    monkeypatch.setattr(tune, "best_first", lambda direction, card, length: tiles)
    fewer = tune.candidates_digest(90)
    tiles.append(Config("tiled", 64, 64, 4, 5))
    more = tune.candidates_digest(90)
    tiles.reverse()
    assert len({before, fewer, more, tune.candidates_digest(90)}) == 4


def test_a_table_of_other_candidates_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = pytest.importorskip("deit_kernels.short_attention.launch")
    for name, result in (("is_available", True), ("current_device", 0), ("get_device_name", "a card")):
        monkeypatch.setattr(torch.cuda, name, lambda *_, result=result: result)
    monkeypatch.setattr(launch, "card_of", lambda device: (90, 132))
    monkeypatch.setattr(tune, "compiling_ahead", lambda: contextlib.nullcontext())
    row = {"direction": "forward", "max_length": 208, "tried": 8}
    given_rows: list[list[dict]] = []
    monkeypatch.setattr(tune, "tune", lambda *_, **given: (given_rows.append(given["known"]), iter([row]))[1])
    table = tmp_path / "table.json"
    monkeypatch.setattr("sys.argv", ["tune", "--out", str(table)])

    def run() -> list[dict]:
        with pytest.raises(SystemExit, match="rows have untried candidates"):
            tune.main()
        return given_rows[-1]

    assert run() == [] and run() == [row]
    first = tune.candidates("forward", 198)[0]
    monkeypatch.setattr(tune, "candidates", lambda direction, length: [first])
    assert run() == [] and f"{table} was measured on" in capsys.readouterr().out


class CrashesItsReader:
    """Ends the process that takes it out of the pool's queue, as a compiler that crashes does."""

    def __reduce__(self) -> tuple:
        return os._exit, (1,)


def test_a_compiler_that_crashes_does_not_end_compiling_ahead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "_compile", len)  # a function that another process finds by its name
    with tune.compiling_ahead() as ahead:
        ahead("forward", 198, 6, 64, [CrashesItsReader()])
        assert "compiling ahead failed" in capsys.readouterr().out
        ahead("forward", 578, 6, 64, TILES)
        assert capsys.readouterr().out == ""
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("length", sorted(tune.LENGTHS.values()))
@pytest.mark.parametrize("card", (80, 89, 90, 100))
@pytest.mark.parametrize("direction", ("forward", "backward"))
def test_the_order_holds_every_candidate_once(direction: str, card: int, length: int) -> None:
    ordered, every = tune.best_first(direction, card, length), tune.candidates(direction, length)
    assert len(ordered) == len(every) == len(set(every)) and set(ordered) == set(every)


@pytest.mark.parametrize("length", sorted(tune.LENGTHS.values()))
@pytest.mark.parametrize("card", (80, 89, 90, 100))
@pytest.mark.parametrize("direction", ("forward", "backward"))
def test_the_first_pass_begins_with_the_shipped_configuration_and_tries_every_form(
    direction: str, card: int, length: int
) -> None:
    first = tune.best_first(direction, card, length)[: tune.FIRST]
    assert first[0] == configuration.choose(direction, card, length, 64, 1 << 20, 1)
    assert {config.form for config in first} == {config.form for config in tune.candidates(direction, length)}


def test_the_fastest_that_agrees_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    OutOfResources = pytest.importorskip("triton.runtime.errors").OutOfResources
    slow, fast, wrong, idle = (Config("tiled", size, 64, 4, 2) for size in (16, 32, 64, 128))
    broken, refused = Config("tiled", 16, 64, 8, 2), Config("tiled", 32, 64, 8, 2)
    times = {slow: 2.0, fast: 1.0}
    last: list[Config] = []

    def call(config: Config | None) -> torch.Tensor:
        if config == broken:
            raise RuntimeError("an illegal memory access")
        if config == refused:
            raise OutOfResources(300_000, 232_448, "shared memory")
        if config is not None:
            last.append(config)
        result = torch.empty(1000)
        return result if config == idle else result.fill_(5.0 if config == wrong else 1.0)

    def measure(run) -> float:
        run()
        return times[last[-1]]

    assert tune.fastest(call, [slow, fast, wrong, broken, refused, idle], measure) == (fast, 1.0)
    printed = capsys.readouterr().out
    assert f"left out {broken}: an illegal memory access" in printed
    assert f"left out {refused}: out of resource: shared memory" in printed
    assert all(f"left out {config}" in printed for config in (wrong, idle)), "what stores nothing agrees with nothing"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_table_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    tune.write_table(path, [{"direction": "forward"}], {"device": "a card"})
    assert json.loads(path.read_text()) == {"measured": {"device": "a card"}, "attention": [{"direction": "forward"}]}
    assert list(tmp_path.iterdir()) == [path]


TILES = [Config("tiled", 64, 64, 4, stages) for stages in (2, 3, 4)]


def measured(monkeypatch: pytest.MonkeyPatch, known: list[dict], compiled: list[tuple]) -> Iterator[dict]:
    """Rows of two lengths and three candidates, of which the first pass takes two and the last one is the fastest."""
    monkeypatch.setattr(tune, "make_call", lambda direction, qkv, scale: lambda config: qkv[:, 0, 0])
    monkeypatch.setattr(tune, "best_first", lambda direction, card, length: TILES)
    monkeypatch.setattr(tune, "failures", lambda: (RuntimeError,))
    monkeypatch.setattr(tune, "FIRST", 2)
    times = {TILES[0]: 0.5, TILES[1]: 0.6, TILES[2]: 0.4}
    monkeypatch.setattr(
        tune,
        "fastest",
        lambda call, configs, measure: min(((config, times[config]) for config in configs), key=lambda each: each[1]),
    )
    sizes = {"batch": 1, "heads": 1, "features": 8, "lengths": {208: 198, 640: 578}}
    return tune.tune(
        90,
        torch.device("cpu"),
        lambda run: 0.5,
        known=known,
        ahead=lambda *given: compiled.append((*given[:2], len(given[-1]))),
        **sizes,
    )


def test_the_first_pass_takes_a_few_candidates_of_every_row_and_the_second_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple] = []
    rows = list(measured(monkeypatch, [], compiled))
    ranges = [("forward", 129, 208), ("backward", 129, 208), ("forward", 273, 640), ("backward", 273, 640)]
    assert [(row["direction"], row["min_length"], row["max_length"]) for row in rows] == 2 * ranges
    assert [row["tried"] for row in rows] == 4 * [2] + 4 * [3]
    assert [row["microseconds"] for row in rows] == 4 * [500.0] + 4 * [400.0]
    assert compiled == [
        (direction, length, count) for count in (2, 1) for length in (198, 578) for direction in ("forward", "backward")
    ]


def test_candidates_that_a_table_has_seen_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(measured(monkeypatch, [], []))
    compiled: list[tuple] = []
    again = list(measured(monkeypatch, rows[:3], compiled))
    assert again == rows[3:], "where it was stopped, it goes on"
    assert compiled[0] == ("backward", 578, 2) and len(compiled) == 5
    assert list(measured(monkeypatch, rows[4:], compiled)) == [] and len(compiled) == 5


def test_a_slower_second_pass_leaves_the_first_ones_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(measured(monkeypatch, [], [])) | {"microseconds": 100.0}
    last = [
        row for row in measured(monkeypatch, [first], []) if row["max_length"] == 208 and row["direction"] == "forward"
    ]
    assert [(row["microseconds"], row["config"], row["tried"]) for row in last] == [(100.0, first["config"], 3)]


def test_rows_are_unfinished_until_all_candidates_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "LENGTHS", {208: 198})
    assert tune.unfinished([]) == 2
    row = {"direction": "forward", "max_length": 208, "tried": len(tune.candidates("forward", 198))}
    assert tune.unfinished([row]) == 1
    assert tune.unfinished([row, {"direction": "backward", "max_length": 208, "tried": 8}]) == 1
    whole = {"direction": "backward", "max_length": 208, "tried": len(tune.candidates("backward", 198))}
    assert tune.unfinished([row, whole]) == 0


def test_a_table_of_another_card_or_version_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.json"
    assert tune.rows_of(path, {"device": "a card"}) == []
    tune.write_table(path, [{"direction": "forward"}], {"device": "a card"})
    assert tune.rows_of(path, {"device": "a card"}) == [{"direction": "forward"}]
    assert tune.rows_of(path, {"device": "another"}) == [] and "it is overwritten" in capsys.readouterr().out
    assert tune.rows_of(path, {"device": "a card", "candidates": "0123"}) == [], "as of a version that had no digest"
    assert f"{path} was measured on {{'device': 'a card'}}, and this is " in capsys.readouterr().out
