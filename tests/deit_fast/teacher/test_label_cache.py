"""The label cache as storage: what comes back, and what a damaged or foreign folder gets."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from deit_fast import files as durable
from deit_fast.teacher import cache as label_cache
from deit_fast.teacher.cache import PIECE_STEPS, LabelCache, runs
from deit_kernels import TopK
from tests.deit_fast.forbidden import forbid

BATCH = 8
SETTINGS = {"data_seed": 0, "policy": {"flip": 0.5, "size": 16}}


@pytest.fixture
def said() -> list[str]:
    return []


def opened(folder: Path, said: list[str], rows: range = range(BATCH), **others) -> LabelCache:
    return LabelCache.open(folder, {**SETTINGS, **others}, rows, classes=1000, say=said.append, repair=True)


def label(step: int, positions: np.ndarray) -> np.ndarray:
    return (step * 31 + positions * 7) % 1000


def fill(cache: LabelCache, steps: range, rows: range) -> None:
    positions = np.array(rows)
    for step in steps:
        cache.add(step, positions, torch.from_numpy(label(step, positions)))
    cache.flush()


def test_hard_labels_come_back_for_any_rows(tmp_path: Path, said: list[str]) -> None:
    cache = opened(tmp_path / "labels", said)
    steps = range(PIECE_STEPS - 2, PIECE_STEPS + 3)  # over the boundary of a piece
    fill(cache, steps, range(BATCH))
    for reader in (cache, opened(tmp_path / "labels", said)):
        for step in steps:
            for positions in (np.arange(BATCH), np.array([5, 2]), np.array([7])):
                assert reader.lookup(step, positions).classes.tolist() == label(step, positions).tolist()
        assert reader.lookup(steps.stop, np.arange(BATCH)) is None
        assert reader.missing(range(PIECE_STEPS + 5), range(BATCH))[-3:] == [
            PIECE_STEPS - 3,
            *range(*(steps.stop, 261)),
        ]
    files = sorted(path.name for path in (tmp_path / "labels").glob("*.safetensors"))
    assert files == ["00000254-00000256_0-8-1.safetensors", "00000256-00000259_0-8-1.safetensors"]


def test_a_hard_label_takes_two_bytes(tmp_path: Path, said: list[str]) -> None:
    cache = opened(tmp_path, said, range(1024))
    fill(cache, range(PIECE_STEPS), range(1024))
    (piece,) = tmp_path.glob("*.safetensors")
    assert piece.stat().st_size < 2.01 * PIECE_STEPS * 1024


def test_a_top_k_comes_back_with_the_bits_that_were_trained_on(tmp_path: Path, said: list[str]) -> None:
    cache = opened(tmp_path, said)
    probs = torch.rand(BATCH, 3).half().float()
    indices = torch.randint(1000, (BATCH, 3))
    cache.add(0, np.arange(BATCH), TopK(indices, probs, 2.0))
    cache.flush()
    found = opened(tmp_path, said).lookup(0, np.arange(BATCH))
    assert np.array_equal(found.classes, indices.numpy())
    assert np.array_equal(found.probs.astype(np.float32), probs.numpy())


def test_labels_that_may_not_be_read_are_not_removed_as_damaged(tmp_path: Path, said: list[str], monkeypatch) -> None:
    fill(opened(tmp_path, said), range(3), range(BATCH))
    (piece,) = tmp_path.glob("*.safetensors")
    with monkeypatch.context() as patch:
        forbid(patch, piece)
        with pytest.raises(PermissionError):
            opened(tmp_path, said)
    assert opened(tmp_path, said).missing(range(3), range(BATCH)) == [] and said == []


@pytest.mark.parametrize("shares", [[range(0, 4), range(4, 8)], [range(0, 8, 2), range(1, 8, 2)]])
def test_the_shares_of_two_ranks_are_one_cache(tmp_path: Path, said: list[str], shares: list[range]) -> None:
    for rows in shares:
        fill(opened(tmp_path, said, rows), range(3), rows)
    cache = opened(tmp_path, said)
    assert cache.missing(range(3), range(BATCH)) == []
    positions = np.array([6, 1, 3, 4])
    assert cache.lookup(2, positions).classes.tolist() == label(2, positions).tolist()


def test_half_the_ranks_are_not_the_whole(tmp_path: Path, said: list[str]) -> None:
    fill(opened(tmp_path, said, range(4)), range(3), range(4))
    cache = opened(tmp_path, said)
    assert cache.missing(range(3), range(BATCH)) == [0, 1, 2] and cache.missing(range(3), range(4)) == []
    assert cache.lookup(0, np.arange(BATCH)) is None


def test_slices_of_a_step_and_a_repeated_one_make_one_row(tmp_path: Path, said: list[str]) -> None:
    cache = opened(tmp_path, said)
    for positions in (np.arange(4), np.arange(2), np.arange(2, 4), np.arange(4, 8)):  # the first was tried again
        cache.add(0, positions, torch.from_numpy(label(0, positions)))
    cache.add(1, np.arange(4), torch.zeros(4, dtype=torch.int64))  # a step that was never finished
    cache.flush()
    cache = opened(tmp_path, said)
    assert cache.lookup(0, np.arange(BATCH)).classes.tolist() == label(0, np.arange(BATCH)).tolist()
    assert cache.missing(range(2), range(BATCH)) == [1]


@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty"])
def test_a_damaged_piece_is_removed_and_the_rest_used(tmp_path: Path, said: list[str], damage: str) -> None:
    cache = opened(tmp_path, said)
    fill(cache, range(2), range(BATCH))
    fill(cache, range(2, 4), range(BATCH))
    piece = tmp_path / "00000000-00000002_0-8-1.safetensors"
    content = bytearray(piece.read_bytes())
    if damage == "one bit":
        content[-3] ^= 4
    piece.write_bytes(b"" if damage == "empty" else content[:-5] if damage == "cut off" else content)
    cache = opened(tmp_path, said)
    assert len(said) == 1 and str(piece) in said[0] and "its labels are computed again" in said[0]
    assert not piece.exists()
    assert cache.missing(range(4), range(BATCH)) == [0, 1]
    assert cache.lookup(3, np.arange(BATCH)) is not None


def test_a_piece_damaged_while_a_run_reads_is_left_out(tmp_path: Path, said: list[str]) -> None:
    fill(opened(tmp_path, said), range(2), range(BATCH))
    cache = opened(tmp_path, said)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"short")
    assert cache.lookup(0, np.arange(BATCH)) is None and "damaged" in said[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data_seed": 1}, "data_seed 0 -> 1"),
        ({"policy": {"flip": 0.0, "size": 16}}, "policy.flip 0.5 -> 0.0"),
        ({"policy": {"flip": 0.5, "size": 32}, "data_seed": 2}, "data_seed 0 -> 2, policy.size 16 -> 32"),
        ({"teacher": "another"}, "teacher None -> 'another'"),
    ],
)
def test_a_cache_of_other_settings_is_refused_by_name(tmp_path: Path, said, changes: dict, says: str) -> None:
    opened(tmp_path, said)
    with pytest.raises(ValueError) as caught:
        opened(tmp_path, said, **changes)
    assert says in str(caught.value) and "another --teacher-cache" in str(caught.value)
    opened(tmp_path, said)


def test_labels_of_other_weights_under_the_same_name_are_refused(tmp_path: Path, said: list[str]) -> None:
    cache = opened(tmp_path, said)
    cache.check_weights("aaaa")
    cache.keep_scores({"crop": 1}, {"top1": 70.0})
    cache = opened(tmp_path, said)
    cache.check_weights("aaaa")
    assert cache.scores({"crop": 1}) == {"top1": 70.0} and cache.scores({"crop": 2}) is None
    with pytest.raises(ValueError, match="weights aaaa -> bbbb"):
        cache.check_weights("bbbb")


def test_a_folder_with_something_else_is_refused(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than labels: type another --teacher-cache"):
        opened(tmp_path, said)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file cannot be written to \(.*\): type another"):
        opened(tmp_path / "file", said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis.tex"]


def test_on_a_full_disk_the_run_goes_on_and_what_was_written_stays(tmp_path: Path, said, monkeypatch) -> None:
    cache = opened(tmp_path, said)
    fill(cache, range(2), range(BATCH))

    def full(path: Path, write) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write_file", full)
    fill(cache, range(2, 5), range(BATCH))
    fill(cache, range(5, 7), range(BATCH))
    assert len(said) == 1 and "steps 2 to 4" in said[0] and "No space left" in said[0] and "goes on" in said[0]
    monkeypatch.undo()
    assert opened(tmp_path, said).missing(range(7), range(BATCH)) == [2, 3, 4, 5, 6]


def test_too_many_classes_for_two_bytes(tmp_path: Path, said: list[str]) -> None:
    options = {"classes": 65537, "say": said.append, "repair": True}
    with pytest.raises(ValueError, match="up to 65,536 classes, the teacher knows 65537"):
        LabelCache.open(tmp_path / "new", SETTINGS, range(4), **options)
    assert not (tmp_path / "new").exists()


def test_runs_of_consecutive_steps() -> None:
    assert list(runs([0, 1, 2, 5, 6, 9], 4)) == [range(0, 3), range(5, 7), range(9, 10)]
    assert list(runs(range(2, 9), 4)) == [range(2, 4), range(4, 8), range(8, 9)]
    assert list(runs([], 4)) == []


def test_a_disk_that_is_full_within_the_tensors_is_a_sentence_too(tmp_path: Path, said, monkeypatch) -> None:
    """safetensors writes in Rust, whose error is no OSError."""

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    cache = opened(tmp_path, said)
    monkeypatch.setattr(label_cache, "save_file", full)
    fill(cache, range(2), range(BATCH))
    assert len(said) == 1 and "No space left on device" in said[0] and "goes on" in said[0]
    assert not list(tmp_path.glob("*.safetensors"))
