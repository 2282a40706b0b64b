"""The configuration table: what it must hold for every shape on every card, and how a written table replaces it."""

import json
from pathlib import Path

import pytest

from deit_kernels.short_attention import configuration
from deit_kernels.short_attention.configuration import Config, choose, family, key_pieces, splits

FAMILIES = (80, 89, 90, 100)


@pytest.mark.parametrize("card", FAMILIES)
@pytest.mark.parametrize("direction", ("forward", "backward"))
def test_every_shape_has_a_row_that_can_hold_it(direction: str, card: int) -> None:
    for features in range(8, 129, 8):
        for length in range(1, 1041):
            config = choose(direction, card, length, features, 1536, 132)
            if config.form == "resident" and direction == "forward":
                assert sum(key_pieces(length)) >= length


def test_only_the_last_piece_of_keys_passes_the_end() -> None:
    for length in range(1, 273):
        pieces = [piece for piece in key_pieces(length) if piece]
        assert sum(pieces[:-1]) < length <= sum(pieces)
        assert all(piece >= 16 and piece & (piece - 1) == 0 for piece in pieces)


def test_198_tokens_are_not_padded_to_256() -> None:
    assert key_pieces(198) == (128, 64, 16)


@pytest.mark.parametrize(
    ("capability", "shared_kilobytes", "expected"),
    [((8, 0), 163, 80), ((8, 6), 99, 89), ((8, 9), 99, 89), ((9, 0), 227, 90), ((10, 0), 227, 100), ((12, 0), 99, 89)],
)
def test_cards_of_99_kilobytes_are_one_family(capability, shared_kilobytes: int, expected: int) -> None:
    assert family(capability, shared_kilobytes * 1024) == expected


def test_few_heads_are_split_over_the_card() -> None:
    resident = choose("forward", 90, 198, 64, 3, 132)
    assert splits(resident, 198, 3, 132) == 4  # every block of 64 queries is a program
    assert splits(resident, 198, 1536, 132) == 1
    assert choose("backward", 90, 198, 64, 3, 132).form == "tiled"
    assert choose("backward", 90, 198, 64, 1536, 132).form == "resident"


@pytest.mark.parametrize("length", (65, 198, 256))
def test_a_backward_of_one_program_per_pair_has_enough_pairs_to_fill_the_card(length: int) -> None:
    """A multiprocessor holds one program of the resident form, and two of the form in two phases."""
    for card in (80, 89):
        forms = [choose("backward", card, length, 64, pairs, 108).form for pairs in (53, 54, 215, 216)]
        assert forms == ["tiled", "tiled", "tiled", "two_phase"]
    for card in (90, 100):
        assert [choose("backward", card, length, 64, pairs, 132).form for pairs in (65, 66)] == ["tiled", "resident"]


def test_two_phases_where_the_resident_backward_leaves_a_multiprocessor_to_one_program() -> None:
    for card in (80, 89):
        assert choose("backward", card, 198, 64, 1536, 108).form == "two_phase"
        assert choose("backward", card, 198, 64, 3, 108).form == "tiled", "it would leave 105 multiprocessors idle"
    assert choose("backward", 90, 198, 64, 1536, 132).form == "resident"


@pytest.mark.parametrize("card", FAMILIES)
def test_a_gradient_of_zero_is_exact_up_to_64_tokens(card: int) -> None:
    """There the resident form makes delta as rowsum(P ∘ dP), of which one key's gradient is exactly 0."""
    assert {choose("backward", card, length, 64, 1536, 108).form for length in range(1, 65)} == {"resident"}


def test_a_written_table_goes_before_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"form": "tiled", "block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2}
    row = {"direction": "forward", "card": 90, "max_length": 208, "max_features": 64, "config": wanted}
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"attention": [row]}))
    default = choose("forward", 90, 198, 64, 1536, 132)
    monkeypatch.setenv("DEIT_KERNELS_TABLE", str(table))
    configuration.forget()
    assert choose("forward", 90, 198, 64, 1536, 132) == Config(**wanted)
    assert choose("forward", 90, 209, 64, 1536, 132) != Config(**wanted)
    monkeypatch.delenv("DEIT_KERNELS_TABLE")
    configuration.forget()
    assert choose("forward", 90, 198, 64, 1536, 132) == default


def test_a_broken_table_says_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.json"
    table.write_text("{}")
    monkeypatch.setenv("DEIT_KERNELS_TABLE", str(table))
    configuration.forget()
    with pytest.raises(ValueError, match=r"table\.json, which is not a table.* type python -m deit_kernels\.tune"):
        choose("forward", 90, 198, 64, 1536, 132)
    monkeypatch.delenv("DEIT_KERNELS_TABLE")
    configuration.forget()
