"""Mixed batches are functions of (data set, policy, seed, step) too: the same for all ranks, threads and starts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deit_fast.data import IGNORE, BadImage, EvalLoader, Share, TrainLoader
from deit_fast.data.device import CpuAugment
from deit_fast.data.mixing import Mixing, part_of, parts_of
from deit_kernels import MixedTarget
from deit_kernels.augment import Mix, Policy, sample_mix
from tests.deit_fast.data.loader_cases import assert_equal, columns, loader_of
from tests.deit_fast.data.memory_dataset import MemoryDataset

POLICY = Policy.deit(16)
UNMIXED = replace(POLICY, mix=None)
CRUMBS = dict(layout="patches", patch=8, dtype=torch.bfloat16)


def train_loader(dataset, policy=POLICY, **changes) -> TrainLoader:
    """24 rows a step, 4 steps an epoch, 6 steps."""
    settings = dict(data_seed=7, batch_size=24, total_steps=6, threads=2)
    return loader_of(dataset, policy, **settings | changes)


@pytest.fixture
def dataset() -> MemoryDataset:
    return MemoryDataset(100)


# What a mixed batch is


def test_pairs_of_images_are_mixed_as_the_plan_says_and_the_target_follows(dataset):
    plain = train_loader(dataset, UNMIXED)
    kinds = set()
    for batch, alone in zip(train_loader(dataset), plain, strict=True):
        mix = sample_mix(POLICY, seed=7, step=batch.step, start=0, count=24, group=2)
        for row, drawn in enumerate(mix.table):
            own, partner, lam = alone.images[row], alone.images[drawn["partner"]], float(drawn["lam"])
            if drawn["mode"] == 1:
                assert torch.equal(batch.images[row], own * lam + partner * (1.0 - lam))
            else:
                top, left, height, width = drawn["box"].tolist()
                own = own.clone()
                window = (..., slice(top, top + height), slice(left, left + width))
                own[window] = partner[window]
                assert torch.equal(batch.images[row], own)
            kinds.add(int(drawn["mode"]))
        assert isinstance(batch.target, MixedTarget)
        assert torch.equal(batch.target.lam, mix.lam)
        assert torch.equal(batch.target.partner_labels, alone.labels[mix.partner_row])
        assert torch.equal(batch.target.labels, alone.labels)
        assert torch.equal(batch.labels, alone.labels)
    assert kinds == {1, 2}


def test_without_mixing_the_target_is_the_labels_in_training_and_always_in_evaluation(dataset):
    for batch in (
        next(iter(train_loader(dataset, UNMIXED))),
        next(iter(EvalLoader(dataset, replace(Policy.eval(16), mix=Mix()), batch_size=24))),
    ):
        assert batch.target is batch.labels


def test_no_image_is_mixed_with_its_own_copy(dataset):
    for batch in train_loader(dataset, repeats=3):
        mix = sample_mix(POLICY, seed=7, step=batch.step, start=0, count=24, group=6)
        assert (batch.samples != batch.samples[mix.partner_row]).all()


# What it does not depend on


@pytest.mark.parametrize(
    ("threads", "settings"), [(1, dict()), (3, dict(repeats=3)), (5, dict(order="official")), (3, CRUMBS)]
)
def test_threads_change_no_bit(dataset, threads, settings):
    assert_equal(list(train_loader(dataset, threads=threads, **settings)), list(train_loader(dataset, **settings)))


@pytest.mark.parametrize(("world_size", "repeats"), [(2, 1), (3, 1), (4, 1), (2, 3), (4, 3), (3, 2)])
def test_the_batches_of_all_ranks_joined_are_the_batch_of_one(dataset, world_size, repeats):
    whole = list(train_loader(dataset, repeats=repeats))
    ranks = [list(train_loader(dataset, repeats=repeats, rank=r, world_size=world_size)) for r in range(world_size)]
    for alone, *parts in zip(whole, *ranks, strict=True):
        for expected, *found in zip(columns(alone), *map(columns, parts), strict=True):
            assert torch.equal(torch.cat(found), expected)


@pytest.mark.parametrize("order", ["grouped", "official"])
def test_starting_or_seeking_equals_skipping(dataset, order):
    whole = list(train_loader(dataset, order=order))
    assert_equal(list(train_loader(dataset, order=order, start_step=3)), whole[3:])
    loader = train_loader(dataset, order=order)
    loader.seek(1, 1)
    assert_equal(list(loader), whole[5:])


def test_a_set_in_memory_gives_the_same_batches(dataset):
    assert_equal(list(train_loader(dataset, in_memory=True)), list(train_loader(MemoryDataset(100))))


def test_other_seeds_mix_otherwise(dataset):
    first, other = next(iter(train_loader(dataset))), next(iter(train_loader(dataset, data_seed=8)))
    assert not torch.equal(first.target.lam, other.target.lam)


# The official code's way


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_official_order_mixes_a_rank_with_its_mirror_image_and_one_draw(dataset, world_size):
    """timm's Mixup._mix_batch on each rank: x.flip(0), one lam and mode a batch."""
    lams = set()
    for rank in range(world_size):
        settings = dict(order="official", rank=rank, world_size=world_size)
        plain = train_loader(dataset, UNMIXED, **settings)
        for batch, alone in zip(train_loader(dataset, **settings), plain, strict=True):
            lam = batch.target.lam.unique()
            assert len(lam) == 1
            assert torch.equal(batch.target.partner_labels, alone.labels.flip(0))
            mixed = (alone.images * lam + alone.images.flip(0) * (1 - lam) - batch.images).abs().max() < 1e-5
            pasted = ((batch.images == alone.images) | (batch.images == alone.images.flip(0))).all()
            assert mixed or pasted
            lams.add(lam.item())
    assert len(lams) > 4 * world_size  # a few boxes of 16 x 16 images have equal areas


# Parts


@pytest.mark.parametrize("order", ["grouped", "official"])
@pytest.mark.parametrize("threads", [1, 2, 3, 50])
def test_parts_hold_partners_and_every_row_once(order, threads):
    settings = dict(batch_size=48, repeats=3, rank=1, world_size=2)
    mixing = Mixing.of_share(POLICY, Share(300, data_seed=0, order=order, **settings))
    parts = parts_of(24, mixing, threads)
    assert len(parts) <= threads
    assert sorted(np.concatenate(parts).tolist()) == list(range(24))
    plan = mixing.plan(4)
    for rows in parts:
        part = part_of(plan, rows)
        assert (rows[part.table["partner"]] == plan.table["partner"][rows]).all()
        assert torch.equal(part.lam, plan.lam[rows])


# Bad images


def test_a_bad_image_blanks_its_row_and_its_partners_and_changes_no_other(dataset):
    """The partner would show half of an image that nobody has seen: it has no label either."""
    whole = list(train_loader(MemoryDataset(100)))
    dataset.files[4] = dataset.files[9] = b"no image"
    loader = train_loader(dataset)
    lost = 0
    for batch, sound in zip(loader, whole, strict=True):
        mix = sample_mix(POLICY, seed=7, step=batch.step, start=0, count=24, group=2)
        bad = torch.isin(batch.samples, torch.tensor([4, 9]))
        bad |= bad[mix.partner_row]
        assert torch.equal(batch.images, torch.where(bad[:, None, None, None], 0.0, sound.images))
        for labels in (batch.labels, batch.target.labels, batch.target.partner_labels):
            assert ((labels == IGNORE) == bad).all()
        assert torch.equal(batch.target.lam, sound.target.lam)
        lost += int(bad.sum())
    assert lost == 2 * sum(int(torch.isin(batch.samples, torch.tensor([4, 9])).sum()) for batch in whole) > 2
    assert set(loader.bad_images) == {"image-4", "image-9"}


def test_a_row_that_is_not_mixed_keeps_its_label_beside_a_bad_image(dataset):
    dataset.files[::2] = [b"no image"] * 50
    policy = replace(POLICY, mix=Mix(probability=0.0))
    for batch in train_loader(dataset, policy):
        assert torch.equal(batch.labels == IGNORE, batch.samples % 2 == 0)


def test_a_step_in_which_every_pair_lost_an_image_stops_the_training():
    dataset = MemoryDataset(2)
    dataset.files[1] = b""
    with pytest.raises(BadImage, match="step 0 has no pair of readable images to mix; the first of 1 is image-1: the"):
        list(train_loader(dataset, batch_size=2, total_steps=1))


# On a card, or on the host for one


@pytest.mark.parametrize("policy", [POLICY, UNMIXED])
def test_the_hosts_share_of_a_gpus_batch_can_be_had_without_a_gpu(dataset, policy):
    on_host = train_loader(dataset, policy, device=torch.device("meta"))
    for batch, whole in zip(on_host, train_loader(dataset, policy), strict=True):
        assert torch.equal(batch.samples, whole.samples)
        for ours, real in zip([batch.images, *columns(batch)[4:]], [whole.images, *columns(whole)[4:]], strict=True):
            assert ours.is_meta
            assert (ours.shape, ours.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize(("policy", "rows"), [(POLICY, 24), (UNMIXED, 15)])
def test_what_is_sent_to_a_device_comes_apart_as_it_was_put_together(dataset, policy, rows, monkeypatch):
    """CudaAugment's packing, without a card: one block of bytes, copied, and read back."""
    seen, augment = [], CpuAugment.__call__

    def looked_at(self, gathered, executor):
        plan, mix, target = gathered.unpacked(gathered.pack().clone())
        assert torch.equal(plan.rows, gathered.plan.rows)
        if gathered.mix is None:
            assert mix is None and torch.equal(target, gathered.target)
        else:
            assert torch.equal(mix.rows, gathered.mix.rows)
            assert all(torch.equal(ours, real) for ours, real in zip(target, gathered.target, strict=True))
        seen.append(gathered)
        return augment(self, gathered, executor)

    monkeypatch.setattr(CpuAugment, "__call__", looked_at)
    list(train_loader(dataset, policy, batch_size=rows))
    assert len(seen) == 6


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        (POLICY, dict()),
        (POLICY, dict(repeats=3)),
        (POLICY, dict(order="official")),
        (POLICY, dict(in_memory=True)),
        (UNMIXED, dict()),
        (UNMIXED, dict(repeats=3, in_memory=True)),
    ],
)
def test_a_gpu_gives_the_batches_of_the_cpu(dataset, policy, settings):
    dataset.files[4] = b""
    on_gpu = train_loader(dataset, policy, device=torch.device("cuda"), **settings)
    for batch, whole in zip(on_gpu, train_loader(dataset, policy, **settings), strict=True):
        assert batch.images.is_cuda
        for ours, real in zip(columns(batch), columns(whole), strict=True):
            assert torch.equal(ours.cpu(), real)


# Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(batch_size=25), "mixing needs groups of an even number of rows, .*type --batch-size 24"),
        (
            dict(batch_size=24, repeats=3, world_size=3),
            "groups of 6 rows, which do not divide the 8 rows of each of 3 processes: type --batch-size 18 or 36",
        ),
        (
            dict(batch_size=6, order="official", world_size=2),
            "so each of 2 needs an even number, not 3: type --batch-size 4 or 8",
        ),
    ],
)
def test_a_batch_that_cannot_be_mixed_is_refused_before_any_file_is_read(dataset, wrong, message):
    with pytest.raises(ValueError, match=message):
        train_loader(dataset, **wrong)
    assert dataset.reads.sum() == 0
