"""The order of images is a pure function of (data seed, step): for any number of ranks and after any restart."""

import numpy as np
import pytest

from deit_fast.data import order
from deit_fast.data.order import Share, epoch_order


def test_an_epoch_is_a_permutation_and_differs_from_the_next_and_from_other_seeds():
    first, second, other = epoch_order(0, 0, 1000), epoch_order(0, 1, 1000), epoch_order(1, 0, 1000)
    for images in (first, second, other):
        assert images.dtype == np.int64
        assert np.array_equal(np.sort(images), np.arange(1000))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_the_order_never_changes_between_versions():
    """A run continued with a newer version must see the images that the older one would have shown."""
    assert epoch_order(0, 0, 10).tolist() == [9, 1, 6, 4, 5, 3, 7, 8, 2, 0]
    assert epoch_order(2**63 + 5, 299, 10).tolist() == [7, 6, 9, 4, 0, 3, 5, 1, 2, 8]


def test_images_with_equal_keys_stand_in_index_order(monkeypatch):
    parity = np.repeat(np.arange(1000, dtype=np.uint32)[:, None] % 2, 4, axis=1)
    monkeypatch.setattr(order, "philox", lambda *counter: parity)
    assert epoch_order.__wrapped__(0, 0, 1000).tolist() == [*range(0, 1000, 2), *range(1, 1000, 2)]


def test_a_position_is_equally_likely_for_every_image():
    """Mean place over 400 epochs: 49.5 ± 6 standard errors (28.9 / 20) for each of 100 images."""
    places = np.stack([np.argsort(epoch_order(0, epoch, 100)) for epoch in range(400)])
    assert np.all(np.abs(places.mean(axis=0) - 49.5) < 6 * 28.9 / 20)


def test_the_shared_order_of_an_epoch_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 10)[0] = 3


def test_an_epoch_has_whole_batches_only_and_shows_each_image_at_most_once():
    assert Share(84, 84).steps_per_epoch == 1
    assert Share(85, 42).steps_per_epoch == 2
    shown = np.concatenate([Share(data_seed=0, images=50, batch_size=8).samples(step).sample for step in range(6)])
    assert len(shown) == len(set(shown)) == 48
    assert np.array_equal(shown, epoch_order(0, 0, 50)[:48])


def test_the_step_after_the_last_of_an_epoch_starts_the_next_epoch():
    rows = Share(data_seed=0, images=50, batch_size=8).samples(6)
    assert rows.epoch == 1
    assert np.array_equal(rows.sample, epoch_order(0, 1, 50)[:8])
    assert np.array_equal(rows.position, np.arange(8))


def test_positions_are_global_and_ranks_take_contiguous_parts():
    rows = Share(data_seed=0, images=100, batch_size=12, rank=2, world_size=3).samples(3)
    assert rows.position.tolist() == [8, 9, 10, 11]
    assert np.array_equal(rows.sample, epoch_order(0, 0, 100)[3 * 12 + 8 : 4 * 12])
    assert Share(100, 12, rank=2, world_size=3).positions == range(8, 12)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_show_the_batch_of_one_rank(world_size, repeats):
    settings = dict(data_seed=4, images=100, batch_size=24, repeats=repeats)
    for step in (0, 3, 4, 9):
        alone = Share(**settings).samples(step)
        parts = [Share(**settings, rank=rank, world_size=world_size).samples(step) for rank in range(world_size)]
        for field in ("sample", "copy", "position"):
            joined = np.concatenate([getattr(part, field) for part in parts])
            assert np.array_equal(joined, getattr(alone, field)), field
        assert {part.epoch for part in parts} == {alone.epoch}


def test_repeated_augmentation_shows_copies_side_by_side_and_keeps_the_number_of_steps():
    steps = [Share(data_seed=0, images=60, batch_size=20, repeats=3).samples(step) for step in range(4)]
    assert [rows.epoch for rows in steps] == [0, 0, 0, 1]
    shown = np.concatenate([rows.sample for rows in steps[:3]])
    copies = np.concatenate([rows.copy for rows in steps[:3]])
    assert np.array_equal(shown, np.repeat(epoch_order(0, 0, 60), 3)[:60])
    assert np.array_equal(copies, np.tile([0, 1, 2], 20))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(batch_size=128), "128 is larger than the 84 training images: type --batch-size 84 or less"),
        (dict(batch_size=0), "batch size 0 holds no image: type --batch-size 1 or more"),
        (dict(batch_size=10, world_size=4), "10 does not divide among 4 processes: type --batch-size 8 or 12"),
        (dict(batch_size=3, world_size=4), "3 does not divide among 4 processes: type --batch-size 4"),
        (dict(batch_size=8, rank=4, world_size=4), "rank 4 is outside 0 … 3"),
        (dict(batch_size=8, repeats=0), "repeats 0 shows no image: type --repeats 1"),
    ],
)
def test_impossible_settings_say_what_to_type(wrong, message):
    with pytest.raises(ValueError, match=message):
        Share(data_seed=0, images=84, **wrong).samples(0)
