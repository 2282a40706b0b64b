"""apply: timm's and torchvision's pixels in every layout and type, in C++ and in NumPy, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import timm.data
import torch
import torchvision.transforms.functional as F
from augment_cases import POLICIES, SIZES, needs_extension, noise, noise_batch, plan_for
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend

from deit_kernels.augment import (
    AugmentPlan,
    ImageBatch,
    Mix,
    MixPlan,
    Policy,
    apply,
    apply_out,
    op,
    resized_crop,
    sample_mix,
)
from deit_kernels.augment.plan import OP, ROW
from deit_kernels.augment.policy import IMAGENET_MEAN, IMAGENET_STD
from deit_kernels.augment.reference.resize import resize_rows

OPS = torch.ops.deit_kernels
LAYOUTS = [("nchw", 16), ("channels_last", 16), ("patches", 8)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def arguments(
    batch: ImageBatch, plan: AugmentPlan, mix: MixPlan | None, dtype: torch.dtype, layout: str, patch: int
) -> tuple[object, ...]:
    policy, rows, mixes = plan.policy, plan.place(batch).rows, None if mix is None else mix.rows
    return batch.data, rows, mixes, policy.size, list(policy.mean), list(policy.std), dtype, layout, patch


def mix_for(batch: ImageBatch, policy: Policy, step: int = 0) -> MixPlan:
    policy = replace(policy, mix=Mix())
    return sample_mix(policy, seed=0, step=step, start=0, count=len(batch.offset), group=2)


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
    plan = plan_for(batch, Policy.crop_and_flip(32), seed)
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
    for mix in (None, mix_for(batch, policy)):
        given = arguments(batch, plan_for(batch, policy), mix, dtype, layout, patch)
        ours, expected = OPS._augment_apply(*given), op._apply_reference(*given)
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
    assert torch.equal(OPS._augment_resize(batch.data, plan, size), resize_rows(batch.data, plan, size))


@needs_extension
def test_the_op_refuses_a_buffer_it_would_overrun() -> None:
    batch = noise_batch([(20, 30)])
    *before, _, _, _ = arguments(batch, plan_for(batch, Policy.deit(8)), None, torch.float32, "nchw", 4)
    for layout, out in [
        ("nchw", torch.empty(1, 3, 8, 7)),
        ("nchw", torch.empty(1).expand(1, 3, 8, 8)),
        ("channels_last", torch.empty(1, 3, 8, 8)),
        ("patches", torch.empty(1, 4, 96)[:, :, ::2]),
    ]:
        with pytest.raises(ValueError, match="out has the shape and strides"):
            OPS._augment_apply_out(*before, layout, 4, out)


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
    batch, policy = noise_batch(SIZES[:4]), Policy.deit(32)
    plan = plan_for(batch, policy)
    for layout, patch in LAYOUTS:
        mix = mix_for(batch, policy) if layout == "nchw" else None
        given = arguments(batch, plan, mix, torch.bfloat16, layout, patch)
        torch.library.opcheck(OPS._augment_apply.default, given)
        out = apply(batch, plan, mix, dtype=torch.bfloat16, layout=layout, patch=patch)
        torch.library.opcheck(OPS._augment_apply_out.default, (*given[:-3], layout, patch, out))
    data, rows = given[:2]
    torch.library.opcheck(OPS._augment_resize.default, (data, rows, 32))
    torch.library.opcheck(OPS._augment_check_mix.default, (mix_for(batch, policy).rows, 32))
    calls = torch.from_numpy(np.zeros((2, OP.itemsize), np.uint8))
    torch.library.opcheck(OPS._augment_op.default, (torch.zeros(2, 5, 6, 3, dtype=torch.uint8), calls))
    tables = batch.offset, batch.height, batch.width
    torch.library.opcheck(OPS._augment_place.default, (plan.rows, *tables, data.numel(), 32))
    numbers = torch.from_numpy(policy.numbers(5).view(np.uint8))
    torch.library.opcheck(OPS._augment_sample_plan.default, (torch.tensor([[0, 1, 2, 30, 40]]), numbers))


def test_a_crop_compiles_with_a_full_graph() -> None:
    batch, boxes = noise_batch([(20, 30), (8, 9)]), torch.tensor([[1, 2, 10, 11], [0, 0, 8, 9]])
    compiled = torch.compile(resized_crop, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(batch, boxes, 16), resized_crop(batch, boxes, 16))


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "patches"])
def test_compiled_with_a_full_graph(layout: str) -> None:
    def step(batch: ImageBatch, plan: AugmentPlan, mix: MixPlan) -> torch.Tensor:
        return apply(batch, plan, mix, dtype=torch.bfloat16, layout=layout) * 2

    def step_out(batch: ImageBatch, plan: AugmentPlan, mix: MixPlan, out: torch.Tensor) -> torch.Tensor:
        apply_out(batch, plan, mix, out=out, layout=layout)
        return out * 2

    batch = noise_batch(SIZES)
    plan = plan_for(batch, Policy.deit(32))
    mix = mix_for(batch, plan.policy)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(batch, plan, mix), step(batch, plan, mix))
    compiled_out = torch.compile(step_out, fullgraph=True, backend="aot_eager")
    out = apply(batch, plan, dtype=torch.bfloat16, layout=layout).fill_(float("nan"))
    assert torch.equal(compiled_out(batch, plan, mix, out), step(batch, plan, mix))


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
