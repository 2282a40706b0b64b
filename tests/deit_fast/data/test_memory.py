"""Memory comes back when the last view of it is gone, never earlier, and images are gathered wherever they were put."""

import threading

import numpy as np
import pytest
import torch

from deit_fast.data.memory import ALIGNMENT, RECENT, Arena, Blocks, usual


def test_a_block_is_used_again_when_the_last_view_is_gone():
    blocks = Blocks()
    tensor = blocks.take(1000)
    address = tensor.data_ptr()
    view = tensor.view(torch.float32)[10:20].reshape(2, 5)
    array = view.numpy()
    del tensor, view
    assert blocks.take(1000).data_ptr() != address
    del array
    both = [blocks.take(1000), blocks.take(1000)]
    assert address in [tensor.data_ptr() for tensor in both]


def test_nothing_is_called_when_a_view_goes():
    """Python drops a KeyboardInterrupt that is raised inside such a call, and a program goes on after Ctrl-C."""
    blocks = Blocks()
    held = blocks.take(1000)
    assert [lease.__callback__ for lease, _ in blocks._blocks] == [None]
    del held


def test_a_smaller_request_fits_into_a_larger_block_and_a_larger_one_replaces_it():
    blocks = Blocks()
    address = blocks.take(1000).data_ptr()
    small = blocks.take(10)
    assert small.data_ptr() == address
    assert small.shape == (10,)
    del small
    large = blocks.take(2000)
    assert large.shape == (2000,)
    del large
    assert [block.numel() for _, block in blocks._blocks] == [2000]


def test_blocks_held_at_the_same_time_never_overlap():
    blocks = Blocks()
    held = [blocks.take(100) for _ in range(5)]
    for number, tensor in enumerate(held):
        tensor.fill_(number)
    assert [tensor.unique().tolist() for tensor in held] == [[number] for number in range(5)]


def fill(arena, shapes):
    images = [arena.reserve(*shape) for shape in shapes]
    for number, image in enumerate(images):
        image[:] = number + 1
    return images


@pytest.mark.parametrize("expected", [0, 100, 10_000])
@pytest.mark.parametrize("tail", [0, 37])
def test_images_are_gathered_whether_or_not_they_found_room(expected, tail):
    shapes = [(3, 5), (1, 1), (7, 2), (10, 10)]
    arena = Arena(Blocks(), expected)
    block, offset, end = arena.gather(fill(arena, shapes), tail)
    assert end % ALIGNMENT == 0
    assert len(block) == end + tail
    for number, (start, (height, width)) in enumerate(zip(offset, shapes, strict=True)):
        assert start + height * width * 3 <= end
        assert (block[start : start + height * width * 3] == number + 1).all()


def test_the_next_arena_has_room_and_copies_nothing():
    blocks, shapes = Blocks(), [(30, 50), (20, 20)]
    first = Arena(blocks, 0)
    _, _, end = first.gather(fill(first, shapes))
    second = Arena(blocks, end)
    images = fill(second, shapes)
    block, offset, _ = second.gather(images)
    assert np.shares_memory(block.numpy(), images[0])
    assert offset.tolist() == [0, 4500]


def test_an_outsized_batch_has_a_block_of_its_own_that_is_not_used_again():
    blocks, shapes = Blocks(), [(10, 10), (100, 100)]
    arena = Arena(blocks, 1000)
    block, offset, end = arena.gather(fill(arena, shapes), 40)
    assert len(block) == end + 40 > 30_000
    assert [(block[start : start + 300] == number + 1).all() for number, start in enumerate(offset)] == [True, True]
    del arena, block
    assert [kept.numel() for _, kept in blocks._blocks] == [1250]


def test_a_block_far_larger_than_what_is_taken_of_late_is_given_back():
    blocks = Blocks()
    for size in [1000] * 3 + [100_000] * 2:
        blocks.take(size)
    assert [block.numel() for _, block in blocks._blocks] == [100_000]
    for _ in range(RECENT - 1):
        blocks.take(1000)
        assert [block.numel() for _, block in blocks._blocks] == [100_000], "which may be what is usual"
    blocks.take(1000)
    assert [block.numel() for _, block in blocks._blocks] == [1000]


def test_a_block_in_use_is_kept_however_large():
    blocks = Blocks()
    held = blocks.take(100_000)
    for _ in range(2 * RECENT):
        blocks.take(10)
    held.fill_(7)
    assert sorted(block.numel() for _, block in blocks._blocks) == [10, 100_000]


def test_what_batches_need_is_not_said_by_one_of_them():
    assert usual([50]) == 50
    assert usual([50, 40]) == usual([40, 50]) == 40
    assert usual([40, 900, 50, 45]) == 50
    assert usual([40, 900, 50, 800]) == 800


def test_threads_never_get_the_same_bytes():
    arena = Arena(Blocks(), 200 * 30)
    images: list[np.ndarray] = []

    def reserve(number):
        for _ in range(50):
            image = arena.reserve(2, 5)
            image[:] = number
            images.append(image)

    threads = [threading.Thread(target=reserve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(image.min()) for image in images) == sorted(int(image.max()) for image in images)
    block, offset, _ = arena.gather(images)
    assert len(set(offset.tolist())) == 200
    for image, start in zip(images, offset, strict=True):
        assert np.array_equal(block[start : start + 30].numpy(), image.reshape(-1))
