"""What a loader can be told: where to start, which order, memory, orientation; and what it tells."""

import io
import os
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from deit_fast.data import IGNORE, EvalLoader, TrainLoader
from deit_fast.data.order import Share
from deit_kernels.augment import Policy
from tests.deit_fast.data import loader_cases
from tests.deit_fast.data.loader_cases import EVAL, assert_equal
from tests.deit_fast.data.memory_dataset import MemoryDataset


def train_loader(dataset, **changes) -> TrainLoader:
    """12 rows a step, 2 steps an epoch, 6 steps."""
    return loader_cases.train_loader(dataset, **dict(total_steps=6) | changes)


# Any batch is addressable


def test_seeking_gives_the_batches_from_there(dataset):
    whole = list(train_loader(dataset))
    loader = train_loader(dataset)
    for epoch, step in ((2, 1), (0, 0), (1, 0)):
        loader.seek(epoch, step)
        assert len(loader) == 6 - (2 * epoch + step)
        assert_equal(list(loader), whole[2 * epoch + step :])


def test_seeking_reads_nothing(dataset):
    loader = train_loader(dataset, total_steps=10**9)
    loader.seek(400_000_000, 1)
    assert dataset.reads.sum() == 0
    assert next(iter(loader)).step == 800_000_001


@pytest.mark.parametrize(("epoch", "step"), [(0, 2), (-1, 0), (3, 1), (0, -1)])
def test_a_step_outside_the_run_cannot_be_sought(dataset, epoch, step):
    with pytest.raises(ValueError, match=f"epoch {epoch}, step {step} is not in this run of 6 steps, 2 an epoch"):
        train_loader(dataset).seek(epoch, step)


# The official order


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_official_order_is_what_ranks_show(world_size):
    dataset = MemoryDataset(300)
    for rank in range(world_size):
        settings = dict(batch_size=12, repeats=3, order="official", rank=rank, world_size=world_size)
        loader = train_loader(dataset, total_steps=3, **settings)
        assert loader.share.steps_per_epoch == 21  # 256 // 12
        for batch in loader:
            rows = Share(data_seed=7, images=300, **settings).samples(batch.step)
            assert batch.samples.tolist() == rows.sample.tolist()
            assert batch.labels.tolist() == (rows.sample % 3).tolist()


# In memory


@pytest.mark.parametrize("settings", [dict(), dict(repeats=3), dict(rank=1, world_size=2)])
def test_a_set_in_memory_gives_the_same_batches_and_is_read_once(dataset, settings):
    loader = train_loader(dataset, in_memory=True, **settings)
    assert dataset.reads.tolist() == [1] * 30
    assert_equal(list(loader), list(train_loader(MemoryDataset(30), **settings)))
    list(loader)
    assert dataset.reads.tolist() == [1] * 30


def test_bad_images_are_named_and_blank_in_memory_too(dataset):
    dataset.files[4] = b""
    loader = train_loader(dataset, in_memory=True)
    batches = list(loader)
    assert loader.bad_images == {"image-4": "the file is empty"}
    for batch in batches:
        bad = batch.samples == 4
        assert torch.equal(batch.labels == IGNORE, bad)
        assert not batch.images[bad].any()


def test_one_huge_image_leaves_no_huge_blocks_behind(dataset):
    """Every batch after it decodes into memory of the usual size, and has its pixels."""
    huge = io.BytesIO()
    Image.new("RGB", (2000, 3000), (10, 200, 30)).save(huge, "JPEG")
    dataset.files[14] = huge.getvalue()
    loader = EvalLoader(dataset, EVAL, batch_size=4, threads=2)
    batches = list(loader)
    assert_equal(batches, list(EvalLoader(dataset, EVAL, batch_size=4, in_memory=True)))
    assert max(block.numel() for _, block in loader._builder.augment.pixels._blocks) < 100_000
    assert loader._builder._expected < 100_000


def test_a_set_too_large_for_memory_says_so(dataset, monkeypatch):
    monkeypatch.setattr("deit_fast.data.sources.in_memory.MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"of 30 images of memory take .* GiB decoded: leave out --in-memory"):
        train_loader(dataset, in_memory=True)


def test_decoded_pixels_are_taken_as_they_are():
    class Decoded(MemoryDataset):
        def read(self, index):
            return np.full((20, 20, 3), index, np.uint8)

    images = next(iter(EvalLoader(Decoded(30), Policy.eval(20, 1.0), batch_size=30))).images
    assert all(len(image[0].unique()) == 1 for image in images)
    assert (images[1:, 0, 0, 0] > images[:-1, 0, 0, 0]).all()


# EXIF orientation


def test_orientation_is_ignored_unless_asked_for(dataset):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    dataset.files = [file.getvalue()] * 30
    plain, turned = (
        next(iter(EvalLoader(dataset, Policy.eval(20, 1.0), batch_size=1, exif_orientation=flag))).images
        for flag in (False, True)
    )
    assert torch.equal(turned, plain.flip(2, 3))
    assert not torch.equal(turned, plain)


# Memory and time


def test_batches_that_are_kept_are_never_written_to_again(dataset):
    loader = train_loader(dataset)
    kept = list(loader)
    copies = [batch.images.clone() for batch in kept]
    list(loader)
    for batch, copy in zip(kept, copies, strict=True):
        assert torch.equal(batch.images, copy)


def test_memory_of_batches_that_are_let_go_is_used_again(dataset):
    addresses = set()
    for batch in train_loader(dataset, total_steps=200):
        addresses.add(batch.images.data_ptr())
    assert len(addresses) <= 6  # in use, and up to 3 ahead


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_is_flat_over_10_000_batches(dataset):
    """Also across iterations, each of which has threads of its own."""
    loader, batches = train_loader(dataset, total_steps=10**9), 0
    sizes = []
    while batches < 10_000:
        loader.seek(batches)
        for _ in zip(loader, range(500), strict=False):
            batches += 1
        sizes.append(resident())
    assert max(sizes[2:]) - sizes[1] < 4 * 2**20
    assert threading.active_count() < 5


def test_time_is_told_by_stage(dataset):
    read = dataset.read

    def slow(index):
        time.sleep(0.002)
        return read(index)

    dataset.read = slow
    loader = train_loader(dataset)
    list(loader)
    seconds = loader.seconds
    assert seconds.read >= 72 * 0.002
    assert seconds.decode > 0
    assert seconds.augment > 0
    assert seconds.copy == 0
    assert loader.wait_seconds == seconds.wait > 0
    assert str(seconds).startswith("read 0.")


# On a card


@pytest.mark.gpu
def test_a_slow_gpu_never_sees_a_batch_overwritten(dataset):
    """Kernels of the consumer are queued behind a long one; the loader must not reuse what they will read."""
    loader = train_loader(dataset, total_steps=60, device=torch.device("cuda"))
    whole = [batch.images for batch in train_loader(dataset, total_steps=60)]
    sums = []
    for batch in loader:
        torch.cuda._sleep(20_000_000)
        sums.append(batch.images.double().sum())
    for ours, images in zip(sums, whole, strict=True):
        assert ours.item() == pytest.approx(images.double().sum().item(), rel=1e-12)


@pytest.mark.gpu
def test_the_gpus_memory_is_flat_across_iterations(dataset):
    loader = train_loader(dataset, device=torch.device("cuda"))
    list(loader)
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for _ in range(20):
        for _ in loader:
            pass
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() <= before + 2 * 2**20
    assert loader.seconds.copy > 0
    assert loader.seconds.augment > 0
