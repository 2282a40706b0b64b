"""Batches are functions of (data set, policy, seed, step); threads come, go and fail without a trace in them."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch

from deit_fast.data import EvalLoader, decode, open_dataset
from deit_fast.data import loader as loader_module
from deit_fast.data.batch import RUN
from deit_fast.data.order import Share
from deit_kernels.augment import ImageBatch, apply, sample_plan
from tests.deit_fast.data.loader_cases import (  # noqa: F401
    EVAL,
    POLICY,
    assert_equal,
    loader_of,
    no_thread_survives_a_test,
    our_threads,
    train_loader,
)
from tests.deit_fast.data.memory_dataset import MemoryDataset

# What a batch is


def test_a_batch_is_its_samples_decoded_and_augmented_as_the_order_says(dataset):
    for batch in train_loader(dataset, repeats=3):
        rows = Share(data_seed=7, images=30, batch_size=12, repeats=3).samples(batch.step)
        images = [decode(dataset.files[index]) for index in rows.sample]
        sizes = dict(height=[image.shape[0] for image in images], width=[image.shape[1] for image in images])
        plan = sample_plan(POLICY, seed=7, epoch=rows.epoch, sample=rows.sample, copy=rows.copy, **sizes)
        assert torch.equal(batch.images, apply(ImageBatch.from_images(images), plan))
        assert batch.labels.tolist() == (rows.sample % 3).tolist()
        assert batch.samples.tolist() == rows.sample.tolist()
        assert batch.positions.tolist() == list(range(12))


def test_types_and_layouts_are_those_of_the_augmentation(dataset):
    plain = next(iter(train_loader(dataset)))
    assert plain.images.dtype == torch.float32
    assert plain.images.shape == (12, 3, 16, 16)
    assert plain.labels.dtype == plain.samples.dtype == plain.positions.dtype == torch.int64
    patches = next(iter(train_loader(dataset, layout="patches", patch=8, dtype=torch.bfloat16)))
    assert patches.images.dtype == torch.bfloat16
    assert patches.images.shape == (12, 4, 192)
    last = next(iter(train_loader(dataset, layout="channels_last")))
    assert last.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last.images, plain.images)


def test_repeated_images_are_decoded_once_in_a_batch(dataset):
    list(train_loader(dataset, repeats=3, total_steps=2))
    assert dataset.reads.max() == 1
    assert dataset.reads.sum() == 8


def test_files_of_a_folder_become_batches(image_folder):
    train, val = open_dataset(str(image_folder))
    batches = list(loader_of(train, POLICY, data_seed=0, batch_size=4, total_steps=4))
    assert [len(batch.images) for batch in batches] == [4] * 4
    assert sorted(torch.cat([batch.samples for batch in batches[:2]]).tolist()) == list(range(8))
    assert [len(batch.labels) for batch in EvalLoader(val, EVAL, batch_size=3)] == [3, 1]


# What a batch does not depend on


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 4), (2, 1), (5, 4), (5, 1)])
def test_threads_and_prefetch_change_no_bit(dataset, threads, prefetch):
    assert_equal(list(train_loader(dataset, threads=threads, prefetch=prefetch)), list(train_loader(dataset)))


@pytest.mark.parametrize("start_step", [1, 2, 5])
def test_starting_at_a_step_equals_skipping_to_it(dataset, start_step):
    assert_equal(list(train_loader(dataset, start_step=start_step)), list(train_loader(dataset))[start_step:])


@pytest.mark.parametrize(("world_size", "repeats"), [(2, 1), (2, 3), (3, 3), (4, 2)])
def test_the_batches_of_all_ranks_joined_are_the_batch_of_one(dataset, world_size, repeats):
    """Also where the copies of an image fall to two ranks: 12 rows on 3 ranks with 3 copies."""
    whole = list(train_loader(dataset, repeats=repeats))
    ranks = [list(train_loader(dataset, repeats=repeats, rank=r, world_size=world_size)) for r in range(world_size)]
    for alone, *parts in zip(whole, *ranks, strict=True):
        for field in ("images", "labels", "samples", "positions"):
            assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(alone, field)), field


def test_an_iteration_can_be_repeated_also_while_another_is_under_way(dataset):
    loader = train_loader(dataset)
    once = list(loader)
    assert_equal([pair[0] for pair in zip(loader, loader, strict=True)], once)


def test_other_seeds_give_other_batches(dataset):
    first, other = next(iter(train_loader(dataset))), next(iter(train_loader(dataset, data_seed=8)))
    assert not torch.equal(first.samples, other.samples)


# Evaluation


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_image_is_evaluated_once_and_none_is_padded(dataset, world_size):
    loaders = [EvalLoader(dataset, EVAL, batch_size=4, rank=r, world_size=world_size) for r in range(world_size)]
    ranks = [list(loader) for loader in loaders]
    assert [len(batches) for batches in ranks] == [len(loader) for loader in loaders]
    for rank, batches in enumerate(ranks):
        assert torch.cat([batch.samples for batch in batches]).tolist() == list(range(rank, 30, world_size))
        assert all(len(batch.labels) == 4 for batch in batches[:-1])
        assert all(torch.equal(batch.labels, batch.samples % 3) for batch in batches)
    for step in range(len(ranks[0])):
        positions = torch.cat([batches[step].positions for batches in ranks if step < len(batches)])
        assert sorted(positions.tolist()) == list(range(len(positions)))


def test_an_evaluated_image_does_not_depend_on_its_batch(dataset):
    together = next(iter(EvalLoader(dataset, EVAL, batch_size=30))).images
    assert torch.equal(torch.cat([batch.images for batch in EvalLoader(dataset, EVAL, batch_size=7)]), together)


def test_more_ranks_than_images_leave_some_without_a_batch():
    assert list(EvalLoader(MemoryDataset(2), EVAL, batch_size=4, rank=2, world_size=3)) == []


# Threads


def test_prefetching_is_bounded_and_goes_on_while_the_consumer_works(dataset):
    """Two batches ahead of the one that is in use, and no more."""
    batches = iter(train_loader(dataset, prefetch=2))
    next(batches)
    for _ in range(3000):
        if dataset.reads.sum() == 36:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert dataset.reads.sum() == 36
    batches.close()


def test_a_batch_is_augmented_before_the_next_ones_are_all_decoded(dataset):
    """Else its images have left the CPU's caches, and the threads are idle at the end."""
    loader = train_loader(dataset, threads=1, prefetch=4)
    read, augment, seen = dataset.read, loader._builder.augment._augment_part, []
    dataset.read = lambda index: time.sleep(0.005) or read(index)
    loader._builder.augment._augment_part = lambda *rows: seen.append(dataset.reads.sum()) or augment(*rows)
    with closing(iter(loader)) as batches:
        next(batches)
    assert 12 <= seen[0] <= 12 + 3 * RUN, "not all 48 of the four batches"


def test_the_time_spent_waiting_is_measured(dataset, monkeypatch):
    """On a clock that goes one second further whenever it is read: at the start and at the end of each wait."""
    clock = itertools.count()
    monkeypatch.setattr(loader_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    loader = train_loader(dataset)
    list(loader)
    assert loader.wait_seconds == 5.0


def test_breaking_out_ends_the_threads(dataset):
    for _ in train_loader(dataset):
        assert our_threads()
        break
    gc.collect()
    assert our_threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, MemoryError])
def test_an_exception_in_a_thread_reaches_the_consumer_as_itself(dataset, error):
    def broken(index):
        raise error("from a thread")

    dataset.read = broken
    with pytest.raises(error, match="from a thread"):
        list(train_loader(dataset))
    assert our_threads() == []


def test_an_exception_of_the_consumer_ends_the_threads(dataset):
    def consume():
        for _ in train_loader(dataset):
            raise RuntimeError("loss is NaN")

    with pytest.raises(RuntimeError, match="loss is NaN"):
        consume()
    gc.collect()
    assert our_threads() == []


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
sys.path.insert(0, {folder!r})
from tests.deit_fast.data.memory_dataset import MemoryDataset
from deit_kernels.augment import Policy
from deit_fast.data import Share, TrainLoader

dataset = MemoryDataset(30)
loader = TrainLoader(dataset, Policy.deit(16), Share(len(dataset), 10), total_steps=10**9)
batches = iter(loader)
next(batches)
{rest}
"""


def run(rest: str) -> subprocess.Popen:
    program = PROGRAM.format(folder=os.path.dirname(__file__), rest=rest)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_program_that_ends_in_the_middle_of_an_iteration_exits():
    process = run("print('done')")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "done\n"), stderr
    assert "Traceback" not in stderr


def test_ctrl_c_while_waiting_for_a_batch_ends_the_program():
    slow = "read = dataset.read\ndataset.read = lambda index: time.sleep(0.3) or read(index)\n"
    process = run(slow + "print('ready', flush=True)\nfor batch in batches: pass")  # without end, but for the signal
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert stderr.rstrip().endswith("KeyboardInterrupt")


def test_torchs_threads_are_left_as_they_were(dataset):
    """Decoding threads run torch's ops alone; the training loop and threads to come do not."""
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        read = dataset.read
        dataset.read = lambda index: seen.append(torch.get_num_threads()) or read(index)
        list(train_loader(dataset))
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen[:-1] == [1] * 60
        assert seen[-1] == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(batch_size=31), "batch size 31 is larger than the 30 training images: type --batch-size 30 or less"),
        (dict(world_size=5), "global batch size 12 does not divide among 5 processes: type --batch-size 10 or 15"),
        (dict(rank=2, world_size=2), "rank 2 is outside 0 … 1"),
        (dict(repeats=0), "repeats 0 shows no image"),
        (dict(start_step=6), "start step 6 is outside 0 … 5"),
        (dict(threads=0), "0 threads decode nothing: give 1 or more"),
        (dict(prefetch=0), "1 or more, got 0"),
        (dict(bad_images="ignore"), "bad images 'ignore': type --bad-images skip or --bad-images fail"),
        (dict(dtype=torch.float64), "dtype is one of"),
        (dict(layout="patches", patch=5), "patch divides the output's side of 16, got 5"),
        (dict(data_seed=-1), "seed"),
    ],
)
def test_wrong_settings_are_refused_before_any_file_is_read(dataset, wrong, message):
    with pytest.raises(ValueError, match=message):
        train_loader(dataset, **wrong)
    assert dataset.reads.sum() == 0
