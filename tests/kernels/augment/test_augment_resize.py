"""Crop and resize: every pixel as Pillow's `image.crop(box).resize(size)`, in C++ and in NumPy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from augment_cases import PILLOW, SIZES, crop_rows, needs_extension, noise, noise_batch, pillow_crop
from PIL import Image

from deit_kernels.augment import ImageBatch, resized_crop
from deit_kernels.augment.plan import ROW
from deit_kernels.augment.reference.resize import resize_rows

Resize = Callable[[ImageBatch, np.ndarray, int, str], np.ndarray]


def extension(batch: ImageBatch, boxes: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    return resized_crop(batch, torch.from_numpy(boxes), size, interpolation).numpy()


def numpy(batch: ImageBatch, boxes: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    rows = crop_rows(batch, boxes, size, interpolation)
    rows = torch.from_numpy(rows.view(np.uint8).reshape(-1, ROW.itemsize))
    return resize_rows(batch.data, rows, size).numpy()


implementations = pytest.mark.parametrize("resize", [pytest.param(extension, marks=needs_extension), numpy])
interpolations = pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])


def check(resize: Resize, sizes: list[tuple[int, int]], boxes: list[list[int]], size: int, interpolation: str) -> None:
    batch, box = noise_batch(sizes), np.array(boxes, np.int64)
    result = resize(batch, box, size, interpolation)
    assert result.shape == (len(sizes), size, size, 3)
    offset = batch.offset.tolist()
    for index, (height, width) in enumerate(sizes):
        image = batch.data[offset[index] :][: height * width * 3].numpy().reshape(height, width, 3)
        expected = pillow_crop(image, box[index], size, interpolation)
        assert (result[index] == expected).all(), f"image {height} x {width}, box {boxes[index]}, size {size}"


@implementations
@interpolations
@pytest.mark.parametrize("size", [1, 2, 7, 32, 33, 96, 224])
def test_whole_images_of_every_shape_up_and_down(resize: Resize, interpolation: str, size: int) -> None:
    check(resize, SIZES, [[0, 0, height, width] for height, width in SIZES], size, interpolation)


@implementations
@interpolations
@pytest.mark.parametrize("size", [8, 32, 65])
def test_random_boxes(resize: Resize, interpolation: str, size: int) -> None:
    random = np.random.default_rng(size)
    sizes = [tuple(random.integers(1, 150, 2).tolist()) for _ in range(25)]
    corners = [np.sort(random.integers(0, [side + 1 for side in shape], (2, 2)), axis=0) for shape in sizes]
    boxes = [[*low, *np.maximum(high - low, 1)] for low, high in corners]
    boxes = [
        [min(top, h - 1), min(left, w - 1), height, width]
        for (h, w), (top, left, height, width) in zip(sizes, boxes, strict=True)
    ]
    check(resize, sizes, boxes, size, interpolation)


@implementations
@interpolations
def test_single_pixels_single_lines_and_the_corners(resize: Resize, interpolation: str) -> None:
    boxes = [[0, 0, 1, 1], [19, 29, 1, 1], [0, 29, 20, 1], [19, 0, 1, 30], [18, 28, 2, 2], [0, 0, 20, 30]]
    check(resize, [(20, 30)] * len(boxes), boxes, 16, interpolation)


@implementations
@interpolations
def test_a_pass_between_equal_sizes_copies(resize: Resize, interpolation: str) -> None:
    # Pillow skips the horizontal pass, the vertical one, both.
    check(resize, [(50, 60)] * 3, [[3, 4, 40, 32], [3, 4, 32, 40], [3, 4, 32, 32]], 32, interpolation)


@implementations
@interpolations
@pytest.mark.parametrize(("height", "width"), [(7, 20), (30, 11), (60, 45)])
def test_every_window_is_a_part_of_the_whole_resized_image(
    resize: Resize, interpolation: str, height: int, width: int
) -> None:
    # 60 / 20 = 3: every third output lies on a pixel and reads that one only, its neighbours read more to both sides.
    size, after = 16, (45, 60)
    corners = np.array([(top, left) for top in range(0, 45 - size + 1, 4) for left in range(60 - size + 1)])
    batch = noise_batch([(height, width)] * len(corners))
    boxes = np.tile([0, 0, height, width], (len(corners), 1))
    rows = crop_rows(batch, boxes, size, interpolation)
    rows["resized"], rows["window"] = after, corners
    data = torch.from_numpy(rows.view(np.uint8).reshape(-1, ROW.itemsize))
    run = resize_rows if resize is numpy else torch.ops.deit_kernels._augment_resize
    image = Image.fromarray(noise(height, width)).resize(after[::-1], PILLOW[interpolation])
    for result, (top, left) in zip(run(batch.data, data, size), corners, strict=True):
        assert (result.numpy() == np.asarray(image)[top : top + size, left : left + size]).all()


@needs_extension
@pytest.mark.parametrize(("size", "interpolation"), [(1, "bicubic"), (224, "bilinear"), (1024, "bicubic")])
def test_large_images_of_4000_pixels(size: int, interpolation: str) -> None:
    check(extension, [(3000, 4000), (40, 4000)], [[0, 0, 3000, 4000], [0, 0, 40, 4000]], size, interpolation)


def test_pixels_outside_the_box_do_not_reach_the_result() -> None:
    batch, box = noise_batch([(40, 50)]), torch.tensor([[10, 10, 20, 25]])
    image = batch.data.view(40, 50, 3).clone()
    inside = image[10:30, 10:35].clone()
    image[:] = 255 - image
    image[10:30, 10:35] = inside
    other = ImageBatch.from_images([image])
    assert torch.equal(resized_crop(batch, box, 32), resized_crop(other, box, 32))


def test_rows_may_share_an_image_and_leave_bytes_unused() -> None:
    batch = noise_batch([(30, 40), (20, 10)])
    shared = ImageBatch(
        torch.cat([torch.full((5,), 77, dtype=torch.uint8), batch.data]),
        torch.tensor([5, 5, 5 + 3600, 5]),
        torch.tensor([30, 30, 20, 30], dtype=torch.int32),
        torch.tensor([40, 40, 10, 40], dtype=torch.int32),
    )
    boxes = torch.tensor([[0, 0, 30, 40], [5, 6, 7, 8], [0, 0, 20, 10], [5, 6, 7, 8]])
    result = resized_crop(shared, boxes, 16)
    assert torch.equal(result[[0, 2]], resized_crop(batch, boxes[[0, 2]], 16))
    assert torch.equal(result[1], result[3])


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ([[0, 0, 0, 5]], "row 0: the box is empty"),
        ([[0, 0, 5, -1]], "row 0: the box is empty"),
        ([[-1, 0, 5, 5]], "row 0: the box leaves the image"),
        ([[6, 0, 5, 5]], "row 0: the box leaves the image"),
        ([[0, 8, 5, 5]], "row 0: the box leaves the image"),
        ([[0, 0, 5, 2**33 + 5]], "row 0: the box leaves the image"),
        ([[2**32, 0, 5, 5]], "row 0: the box leaves the image"),
        ([[0, 0, 5, 5], [0, 0, 5, 5]], r"box is int32 or int64 \(1, 4\)"),
        ([[0.0, 0.0, 5.0, 5.0]], r"box is int32 or int64"),
    ],
)
def test_what_a_box_may_not_be(box: list[list[float]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        resized_crop(noise_batch([(10, 12)]), torch.tensor(box), 8)


def test_sizes_and_filters_outside_the_range_are_refused() -> None:
    batch, box = noise_batch([(10, 12)]), torch.tensor([[0, 0, 5, 5]])
    for size in (0, 1025):
        with pytest.raises(ValueError, match="size is a side from 1 to 1024"):
            resized_crop(batch, box, size)
    with pytest.raises(ValueError, match="interpolation is one of"):
        resized_crop(batch, box, 8, "nearest")
