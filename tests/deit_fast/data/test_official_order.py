"""`official` is the official code's index lists, restated here; mix groups keep copies apart and ranks whole."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from deit_fast.data.order import Share, mix_group

IMAGENET = 1_281_167


def repeated_augmentation_sampler(images, epoch, rank, world_size, repeats):
    """deit/samplers.py, RASampler.__iter__, with Python's lists as it has them (torch's where they are the same)."""
    generator = torch.Generator()
    generator.manual_seed(epoch)
    indices = torch.randperm(images, generator=generator)
    indices = torch.repeat_interleave(indices, repeats, dim=0)
    total = math.ceil(images * repeats / world_size) * world_size
    indices = torch.cat([indices, indices[: total - len(indices)]])
    indices = indices[rank:total:world_size]
    return indices[: math.floor(images // 256 * 256 / world_size)].numpy()


def ours(images, epoch, rank, world_size, repeats, rows):
    """One rank's epoch, all steps joined."""
    settings = dict(images=images, batch_size=rows * world_size, repeats=repeats, order="official")
    steps = Share(**settings, world_size=world_size).steps_per_epoch
    parts = [
        Share(**settings, data_seed=5, rank=rank, world_size=world_size).samples(epoch * steps + step)
        for step in range(steps)
    ]
    assert {part.epoch for part in parts} == {epoch}
    return [np.concatenate([getattr(part, field) for part in parts]) for field in ("sample", "copy")]


@pytest.mark.parametrize("epoch", [0, 1, 299])
def test_imagenet_on_eight_ranks_has_the_official_lists(epoch):
    for rank in range(8):
        official = repeated_augmentation_sampler(IMAGENET, epoch, rank, 8, 3)
        assert len(official) == 160_128
        sample, _ = ours(IMAGENET, epoch, rank, 8, 3, rows=128)
        assert len(sample) == 160_128  # DeiT's batch of 1024 leaves no remainder
        assert np.array_equal(sample, official)


@pytest.mark.parametrize(
    ("images", "world_size", "repeats"), [(1000, 1, 3), (1000, 3, 2), (777, 4, 5), (256, 2, 3), (2000, 7, 3)]
)
def test_small_sets_and_odd_worlds_have_the_official_lists_less_the_dropped_batch(images, world_size, repeats):
    for rank in range(world_size):
        official = repeated_augmentation_sampler(images, 4, rank, world_size, repeats)
        sample, _ = ours(images, 4, rank, world_size, repeats, rows=10)
        assert len(official) - 10 < len(sample) <= len(official)
        assert np.array_equal(sample, official[: len(sample)])


def test_timms_sampler_has_the_same_lists():
    sampler = pytest.importorskip("timm.data.distributed_sampler").RepeatAugSampler
    for rank in range(3):
        peer = sampler(range(5000), num_replicas=3, rank=rank, num_repeats=3)
        peer.set_epoch(7)
        sample, _ = ours(5000, 7, rank, 3, 3, rows=8)
        assert sample.tolist() == list(peer)[: len(sample)]


@pytest.mark.parametrize(("images", "world_size"), [(100, 1), (100, 3), (101, 4)])
def test_without_repeats_it_is_torchs_distributed_sampler(images, world_size):
    for rank in range(world_size):
        peer = DistributedSampler(range(images), num_replicas=world_size, rank=rank)
        peer.set_epoch(2)
        sample, _ = ours(images, 2, rank, world_size, 1, rows=5)
        assert len(peer) - 5 < len(sample)
        assert sample.tolist() == list(peer)[: len(sample)]


def test_the_copies_of_an_image_lie_on_neighbouring_ranks_in_one_step():
    rows = [
        Share(data_seed=0, images=1024, batch_size=24, repeats=3, order="official", rank=rank, world_size=3).samples(0)
        for rank in range(3)
    ]
    for rank, part in enumerate(rows):
        assert part.copy.tolist() == [rank] * 8
        assert part.position.tolist() == list(range(rank, 24, 3))
        assert np.array_equal(part.sample, rows[0].sample)


def test_rows_that_fill_the_list_up_are_further_copies():
    """Else an image would be shown twice with the same augmentation in one epoch."""
    last = Share(data_seed=0, images=10, batch_size=12, order="official", rank=2, world_size=3).samples(0)
    assert last.copy.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(images=255, batch_size=8, repeats=3), "0 of 255 images of an official epoch: type --order grouped"),
        (dict(images=600, batch_size=513, repeats=3), "larger than the 512 of 600 images of an official epoch: type"),
        (dict(images=600, batch_size=601), "601 is larger than the 600 training images: type --batch-size 600"),
        (dict(images=600, batch_size=8, order="random"), "order 'random': type --order grouped or --order official"),
    ],
)
def test_impossible_settings_say_what_to_type(wrong, message):
    with pytest.raises(ValueError, match=message):
        Share(data_seed=0, **dict(order="official") | wrong).samples(0)


# Mix groups


def mix_partner(position, group):
    """The position in the global batch that each position is mixed with: half a group further, within the group."""
    return position // group * group + (position + group // 2) % group


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_no_image_is_mixed_with_its_own_copy_and_partners_share_a_rank(repeats, world_size):
    group = mix_group(144, repeats)
    settings = dict(data_seed=0, images=500, batch_size=144, repeats=repeats)
    assert group % 2 == 0 and group // 2 >= repeats and 144 // world_size % group == 0
    for step in range(20):
        whole = Share(**settings).samples(step)
        assert np.all(whole.sample != whole.sample[mix_partner(whole.position, group)])
        part = Share(**settings, rank=world_size - 1, world_size=world_size).samples(step)
        assert set(mix_partner(part.position, group)) == set(part.position)


def test_partners_are_mutual():
    position = np.arange(48)
    partner = mix_partner(position, 8)
    assert partner[:9].tolist() == [4, 5, 6, 7, 0, 1, 2, 3, 12]
    assert np.array_equal(mix_partner(partner, 8), position)


def test_the_smallest_group_that_fits_is_taken():
    assert mix_group(1024, 3) == 8
    assert mix_group(1024, 1) == 2
    assert mix_group(96, 3) == 6
    with pytest.raises(ValueError, match=r"mixing needs groups of an even number of rows.*type --batch-size 12"):
        mix_group(13, 3)
