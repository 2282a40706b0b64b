"""What apply, apply_op and the ops under them refuse, before a byte is read."""

import numpy as np
import pytest
import torch
from augment_cases import noise, noise_batch, plan_for

from deit_kernels.augment import ImageBatch, Policy, apply, apply_op, apply_out
from deit_kernels.augment.plan import ROW
from deit_kernels.augment.policy import IMAGENET_MEAN, IMAGENET_STD

OPS = torch.ops.deit_kernels


def test_a_plan_for_other_images_is_refused() -> None:
    plan = plan_for(noise_batch([(20, 30), (20, 30)]), Policy.deit(32))
    with pytest.raises(
        ValueError, match="row 1: the plan was drawn for an image of 20 x 30, the batch holds one of 30 x"
    ):
        apply(noise_batch([(20, 30), (30, 20)]), plan)
    with pytest.raises(ValueError, match="one entry for each row of the plan"):
        apply(noise_batch([(20, 30)]), plan)


@pytest.mark.parametrize("offset", [-1, 1, 2**62, -(2**63)])
def test_an_image_outside_the_buffer_is_refused(offset: int) -> None:
    batch = noise_batch([(20, 30)])
    with pytest.raises(ValueError, match="row 0: the image leaves the data buffer"):
        apply(batch._replace(offset=torch.tensor([offset])), plan_for(batch, Policy.deit(32)))


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("box", [0, 0, 21, 5], "the box leaves the image"),
        ("box", [2**31 - 1, 0, 2**31 - 1, 5], "the box leaves the image"),
        ("box", [0, 0, 0, 5], "the box is empty"),
        ("resized", [31, 32], "the window leaves the resized image"),
        ("window", [0, 1], "the window leaves the resized image"),
        ("window", [-1, 0], "the window leaves the resized image"),
        ("window", [2**31 - 1, 0], "the window leaves the resized image"),
        ("filter", 2, "the filter or flip is unknown"),
        ("flip", -1, "the filter or flip is unknown"),
        ("pad", 40, "the window leaves the resized image"),
        ("pad", -1, "the window leaves the resized image"),
        ("erased", [0, 0, 33, 1], "the erased box leaves the output"),
        ("erased", [0, 2**31 - 1, 0, 2**31 - 1], "the erased box leaves the output"),
        ("erase", 4, "the erased box leaves the output, or its mode is unknown"),
    ],
)
def test_a_bad_row_is_refused_before_a_pixel_is_read(field: str, value: object, text: str) -> None:
    batch = noise_batch([(20, 30)] * 3)
    plan = plan_for(batch, Policy.deit(32))
    plan.table[field][1] = value
    with pytest.raises(ValueError, match=f"row 1: {text}"):
        apply(batch, plan)
    with pytest.raises(ValueError, match=f"row 1: {text}"):  # the op trusts nobody either
        placed = plan_for(batch, Policy.deit(32)).place(batch)
        placed.table[field][1] = value
        OPS._augment_resize(batch.data, placed.rows, 32)


@pytest.mark.parametrize(("field", "value"), [("op", 17), ("op", -1), ("filter", 2), ("fast", 2)])
def test_an_unknown_op_is_refused(field: str, value: int) -> None:
    batch = noise_batch([(20, 30)] * 3)
    plan = plan_for(batch, Policy.deit(32))
    plan.table["ops"][field][2, 1] = value
    with pytest.raises(ValueError, match="row 2: an op, its filter or its mode is unknown"):
        apply(batch, plan)


def test_rows_of_random_bytes_are_refused_or_harmless() -> None:
    random = np.random.default_rng(0)
    batch = noise_batch([(20, 30)])
    mean, std = list(IMAGENET_MEAN), list(IMAGENET_STD)
    for _ in range(600):
        placed = plan_for(batch, Policy.deit(16)).place(batch)
        for _ in range(random.integers(1, 4)):
            placed.rows[0, int(random.integers(ROW.itemsize))] = int(random.integers(256))
        try:
            OPS._augment_apply(batch.data, placed.rows, None, 16, mean, std, torch.float32, "nchw", 16)
        except ValueError as error:
            assert str(error).startswith("row 0: ")


def test_what_apply_refuses() -> None:
    batch = noise_batch([(20, 30)])
    plan = plan_for(batch, Policy.deit(32))
    with pytest.raises(ValueError, match="layout is one of"):
        apply(batch, plan, layout="nhwc")
    with pytest.raises(ValueError, match="dtype is one of"):
        apply(batch, plan, dtype=torch.float64)
    with pytest.raises(ValueError, match="patch divides the output's side of 32"):
        apply(batch, plan, layout="patches", patch=5)
    with pytest.raises(ValueError, match="contiguous uint8"):
        apply(batch._replace(data=batch.data.float()), plan)
    with pytest.raises(ValueError, match=r"batch\.height is torch\.int32"):
        apply(batch._replace(height=batch.height.long()), plan)
    with pytest.raises(ValueError, match="out is one of"):
        apply_out(batch, plan, out=torch.empty(1, 3, 32, 31))
    with pytest.raises(ValueError, match="out is one of"):
        apply_out(batch, plan, out=torch.empty(1, 3, 32, 32), layout="channels_last")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ({"op": "rotat"}, "there is no op 'rotat': did you mean rotate"),
        ({"op": "none"}, "there is no op 'none'"),
        ({"op": "posterize", "arg": 9}, r"posterize is an integer in \[0, 8\], got 9.0"),
        ({"op": "posterize", "arg": 1.5}, r"posterize is an integer in \[0, 8\], got 1.5"),
        ({"op": "rotate", "arg": float("nan")}, "rotate is a finite number, got nan"),
        ({"op": "color", "arg": [0.1, float("inf")]}, "color is a finite number, got inf"),
        ({"op": "color", "arg": [0.1, 0.2, 0.3]}, "one for each of the 2 images"),
        ({"op": "invert", "interpolation": "nearest"}, "interpolation is one of"),
        ({"op": "invert", "fill": (0, 0, 256)}, "fill is three levels"),
        ({"op": "invert", "images": torch.zeros(2, 3, 4, 5, dtype=torch.uint8)}, r"uint8 \(B, H, W, 3\)"),
        ({"op": "invert", "images": torch.zeros(2, 0, 4, 3, dtype=torch.uint8)}, "sides lie in"),
    ],
)
def test_what_an_op_refuses(call: dict[str, object], text: str) -> None:
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=text):
        apply_op(**{"images": images, **call})


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 5), np.uint8), ((4, 5, 4), np.uint8), ((4, 5, 3), np.float32), ((0, 5, 3), np.uint8)]
)
def test_images_that_are_not_rgb_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ValueError, match=r"image 1 is .* convert it first"):
        ImageBatch.from_images([noise(2, 2), np.zeros(shape, dtype)])
