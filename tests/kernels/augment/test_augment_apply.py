"""apply: timm's and torchvision's pixels in every layout and type, in C++ and in NumPy, and what it refuses."""

import numpy as np
import pytest
import timm.data
import torch
import torchvision.transforms.functional as F
from augment_cases import POLICIES, SIZES, needs_extension, noise, noise_batch
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend

from deit_kernels.augment import (
    AugmentPlan,
    ImageBatch,
    Policy,
    apply,
    apply_out,
    reference,
    resized_crop,
    sample_plan,
)
from deit_kernels.augment.plan import IMAGENET_MEAN, IMAGENET_STD, ROW

OPS = torch.ops.deit_kernels
LAYOUTS = [("nchw", 16), ("channels_last", 16), ("patches", 8)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def plan_for(batch: ImageBatch, policy: Policy, seed: int = 0) -> AugmentPlan:
    height, width = batch.height.numpy(), batch.width.numpy()
    return sample_plan(policy, seed=seed, epoch=0, sample=np.arange(len(height)), copy=0, height=height, width=width)


def arguments(batch: ImageBatch, plan: AugmentPlan, dtype: torch.dtype, layout: str, patch: int) -> tuple[object, ...]:
    policy, rows = plan.policy, plan.place(batch).rows
    return batch.data, rows, policy.size, list(policy.mean), list(policy.std), dtype, layout, patch


def as_nchw(images: torch.Tensor, size: int, patch: int) -> torch.Tensor:
    """(B, N, 3 patch²) back to (B, 3, size, size)."""
    grid = size // patch
    images = images.reshape(len(images), grid, grid, 3, patch, patch)
    return images.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, size, size)


@pytest.mark.parametrize(("size", "crop_ratio"), [(32, 0.875), (33, 0.9), (64, 1.0), (224, 0.875)])
def test_evaluation_equals_timm(size: int, crop_ratio: float) -> None:
    transform = timm.data.create_transform(size, is_training=False, interpolation="bicubic", crop_pct=crop_ratio)
    batch = noise_batch(SIZES)
    ours = apply(batch, plan_for(batch, Policy.eval(size, crop_ratio)))
    theirs = torch.stack([transform(Image.fromarray(noise(height, width))) for height, width in SIZES])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", range(4))
def test_training_equals_torchvision_on_the_same_crop_and_flip(seed: int) -> None:
    batch = noise_batch(SIZES)
    plan = plan_for(batch, Policy.deit(32), seed)
    ours = apply(batch, plan)
    for image, (height, width), row in zip(ours, SIZES, plan.table, strict=True):
        crop = F.resized_crop(
            Image.fromarray(noise(height, width)), *row["box"].tolist(), [32, 32], F.InterpolationMode.BICUBIC
        )
        flipped = F.hflip(crop) if row["flip"] else crop
        assert torch.equal(image, F.normalize(F.to_tensor(flipped), IMAGENET_MEAN, IMAGENET_STD))
    assert 0 < plan.table["flip"].sum() < len(SIZES)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("layout", "patch"), LAYOUTS)
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy.size % 8 == 0], ids=str)
def test_cpp_equals_numpy(policy: Policy, layout: str, patch: int, dtype: torch.dtype) -> None:
    batch = noise_batch(SIZES)
    data, rows, size, mean, std, *_ = arguments(batch, plan_for(batch, policy), dtype, layout, patch)
    ours = OPS._augment_apply(data, rows, size, mean, std, dtype, layout, patch)
    expected = reference.finish(reference.resize_rows(data, rows, size), mean, std, dtype, layout, patch)
    assert ours.dtype == expected.dtype == dtype
    assert ours.shape == expected.shape
    assert ours.stride() == expected.stride()
    assert torch.equal(ours, expected)


@needs_extension
def test_cpp_equals_numpy_for_any_box_window_and_resize() -> None:
    random, size, count = np.random.default_rng(0), 13, 400
    batch = noise_batch([tuple(random.integers(1, 60, 2).tolist()) for _ in range(count)])
    rows = np.zeros(count, ROW)
    rows["offset"], rows["height"], rows["width"] = batch.offset, batch.height, batch.width
    sides = np.stack([batch.height, batch.width], axis=1)
    rows["box"][:, 2:] = random.integers(1, sides + 1)
    rows["box"][:, :2] = random.integers(0, sides - rows["box"][:, 2:] + 1)
    rows["resized"] = random.integers(size, 90, (count, 2))
    rows["window"] = random.integers(0, rows["resized"] - size + 1)
    rows["filter"], rows["flip"] = random.integers(0, 2, (2, count))
    plan = torch.from_numpy(rows.view(np.uint8).reshape(count, -1))
    assert torch.equal(OPS._augment_resize(batch.data, plan, size), reference.resize_rows(batch.data, plan, size))


@needs_extension
def test_the_op_refuses_a_buffer_it_would_overrun() -> None:
    batch = noise_batch([(20, 30)])
    data, rows, size, mean, std, *_ = arguments(batch, plan_for(batch, Policy.deit(8)), torch.float32, "nchw", 4)
    for layout, out in [
        ("nchw", torch.empty(1, 3, 8, 7)),
        ("nchw", torch.empty(1).expand(1, 3, 8, 8)),
        ("channels_last", torch.empty(1, 3, 8, 8)),
        ("patches", torch.empty(1, 4, 96)[:, :, ::2]),
    ]:
        with pytest.raises(ValueError, match="out has the shape and strides"):
            OPS._augment_apply_out(data, rows, size, mean, std, layout, 4, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_hold_the_same_values(dtype: torch.dtype) -> None:
    batch = noise_batch(SIZES)
    plan = plan_for(batch, Policy.deit(48))
    images = apply(batch, plan, dtype=dtype)
    assert images.is_contiguous()
    last = apply(batch, plan, dtype=dtype, layout="channels_last")
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, last)
    for patch in (3, 16, 48):
        patches = apply(batch, plan, dtype=dtype, layout="patches", patch=patch)
        assert patches.shape == (len(SIZES), (48 // patch) ** 2, 3 * patch * patch)
        assert torch.equal(images, as_nchw(patches, 48, patch))


def test_patches_are_what_a_patch_embedding_multiplies() -> None:
    batch = noise_batch(SIZES)
    plan = plan_for(batch, Policy.deit(32))
    embedding = torch.nn.Conv2d(3, 10, 8, 8)
    by_convolution = embedding(apply(batch, plan)).flatten(2).transpose(1, 2)
    by_matmul = apply(batch, plan, layout="patches", patch=8) @ embedding.weight.flatten(1).T + embedding.bias
    torch.testing.assert_close(by_matmul, by_convolution)


def test_an_image_is_the_same_in_every_batch_and_with_every_number_of_threads() -> None:
    batch = noise_batch(SIZES * 3)
    plan = plan_for(batch, Policy.deit(32))
    together, threads = apply(batch, plan), torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(apply(batch, plan), together)
    finally:
        torch.set_num_threads(threads)
    for index in (0, 7, 20):
        alone = ImageBatch(batch.data, *(table[index : index + 1] for table in batch[1:]))
        assert torch.equal(apply(alone, AugmentPlan(plan.rows[index : index + 1], plan.policy))[0], together[index])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("layout", "patch"), LAYOUTS)
def test_apply_out_fills_the_buffer_and_nothing_beside_it(layout: str, patch: int, dtype: torch.dtype) -> None:
    batch = noise_batch(SIZES)
    plan = plan_for(batch, Policy.deit(32))
    before = batch.data.clone(), plan.rows.clone()
    expected = apply(batch, plan, dtype=dtype, layout=layout, patch=patch)
    memory = torch.full((expected.numel() + 128,), float("nan"), dtype=dtype)
    out = memory[64:-64].as_strided(expected.shape, expected.stride(), 64)
    assert apply_out(batch, plan, out=out, layout=layout, patch=patch) is None
    assert torch.equal(out, expected)
    assert memory[:64].isnan().all()
    assert memory[-64:].isnan().all()
    assert torch.equal(before[0], batch.data)
    assert torch.equal(before[1], plan.rows)


def test_the_last_image_may_end_the_buffer() -> None:
    # The same pixels at the end of the buffer and in its middle.
    image = noise(9, 11)
    end = ImageBatch.from_images([image])
    middle = end._replace(data=torch.cat([end.data, torch.full((64,), 200, dtype=torch.uint8)]))
    plan = plan_for(end, Policy.eval(8))
    assert torch.equal(apply(end, plan), apply(middle, plan))


def test_an_empty_batch_gives_an_empty_result() -> None:
    batch = ImageBatch.from_images([])
    assert apply(batch, plan_for(batch, Policy.deit(32))).shape == (0, 3, 32, 32)


def test_opcheck_passes_for_every_op() -> None:
    batch = noise_batch(SIZES[:3])
    plan = plan_for(batch, Policy.deit(32))
    for layout, patch in LAYOUTS:
        data, rows, size, mean, std, dtype, *_ = arguments(batch, plan, torch.bfloat16, layout, patch)
        torch.library.opcheck(OPS._augment_apply.default, (data, rows, size, mean, std, dtype, layout, patch))
        out = apply(batch, plan, dtype=dtype, layout=layout, patch=patch)
        torch.library.opcheck(OPS._augment_apply_out.default, (data, rows, size, mean, std, layout, patch, out))
    torch.library.opcheck(OPS._augment_resize.default, (data, rows, size))
    tables = batch.offset, batch.height, batch.width
    torch.library.opcheck(OPS._augment_place.default, (plan.rows, *tables, data.numel(), size))
    keys = torch.tensor([[0, 1, 2, 30, 40]])
    numbers = [0.08, 1.0], [0.75, 1.3], 0.875, 1, 0.5
    torch.library.opcheck(OPS._augment_sample_plan.default, (keys, 5, 32, "random_resized", *numbers))


def test_a_crop_compiles_with_a_full_graph() -> None:
    batch, boxes = noise_batch([(20, 30), (8, 9)]), torch.tensor([[1, 2, 10, 11], [0, 0, 8, 9]])
    compiled = torch.compile(resized_crop, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(batch, boxes, 16), resized_crop(batch, boxes, 16))


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "patches"])
def test_compiled_with_a_full_graph(layout: str) -> None:
    def step(batch: ImageBatch, plan: AugmentPlan) -> torch.Tensor:
        return apply(batch, plan, dtype=torch.bfloat16, layout=layout) * 2

    def step_out(batch: ImageBatch, plan: AugmentPlan, out: torch.Tensor) -> torch.Tensor:
        apply_out(batch, plan, out=out, layout=layout)
        return out * 2

    batch = noise_batch(SIZES)
    plan = plan_for(batch, Policy.deit(32))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(batch, plan), step(batch, plan))
    compiled_out = torch.compile(step_out, fullgraph=True, backend="aot_eager")
    out = apply(batch, plan, dtype=torch.bfloat16, layout=layout).fill_(float("nan"))
    assert torch.equal(compiled_out(batch, plan, out), step(batch, plan))


def test_batches_of_other_images_are_not_compiled_again() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda batch, plan: apply(batch, plan), fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    for sizes in (SIZES[:3], SIZES[1:6], SIZES):
        batch = noise_batch(sizes)
        plan = plan_for(batch, Policy.deit(32))
        assert torch.equal(compiled(batch, plan), apply(batch, plan))
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[2]


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


def test_rows_of_random_bytes_are_refused_or_harmless() -> None:
    random = np.random.default_rng(0)
    batch = noise_batch([(20, 30)])
    for _ in range(300):
        placed = plan_for(batch, Policy.deit(16)).place(batch)
        for _ in range(random.integers(1, 4)):
            placed.rows[0, int(random.integers(ROW.itemsize))] = int(random.integers(256))
        try:
            OPS._augment_resize(batch.data, placed.rows, 16)
        except ValueError as error:
            assert str(error).startswith("row 0: ")


def test_what_apply_refuses() -> None:
    batch = noise_batch([(20, 30)])
    plan = plan_for(batch, Policy.deit(32))
    with pytest.raises(ValueError, match="mixing"):
        apply(batch, plan, mix=object())
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
    ("shape", "dtype"), [((4, 5), np.uint8), ((4, 5, 4), np.uint8), ((4, 5, 3), np.float32), ((0, 5, 3), np.uint8)]
)
def test_images_that_are_not_rgb_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ValueError, match=r"image 1 is .* convert it first"):
        ImageBatch.from_images([noise(2, 2), np.zeros(shape, dtype)])
