"""The whole recipe: timm's own stages on Pillow, given the numbers of a plan, make the same tensor."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from augment_cases import noise, photo, plan_for
from PIL import Image
from test_augment_ops import timm_op
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing

from deit_kernels.augment import OPS, Erase, ImageBatch, Policy, RandAugment, apply, apply_op, sample_plan
from deit_kernels.augment.policy import FILTERS, IMAGENET_MEAN, IMAGENET_STD


def timm_stages(image: np.ndarray, row: np.void, size: int) -> torch.Tensor:
    """Crop, flip, ops and normalise, as timm's training transform or DeiT III's does them."""
    modes = {"bicubic": F.InterpolationMode.BICUBIC, "bilinear": F.InterpolationMode.BILINEAR}
    mode, pad = modes[FILTERS[row["filter"]]], int(row["pad"])
    if pad:
        resized = F.resize(Image.fromarray(image), size, mode)
        assert resized.size[::-1] == tuple(row["resized"])
        top, left = (row["window"] + pad).tolist()
        pixels = F.crop(F.pad(resized, [pad], padding_mode="reflect"), top, left, size, size)
    else:
        pixels = F.resized_crop(Image.fromarray(image), *row["box"].tolist(), [size, size], mode)
    pixels = np.asarray(F.hflip(pixels) if row["flip"] else pixels)
    for call in row["ops"]:
        if call["op"]:
            pixels = timm_op(pixels, OPS[call["op"]], float(call["arg"]), FILTERS[call["filter"]])
    return F.normalize(F.to_tensor(Image.fromarray(pixels)), IMAGENET_MEAN, IMAGENET_STD)


def photographs(count: int) -> ImageBatch:
    random = np.random.default_rng(0)
    corners = random.integers(0, [427 - 375, 640 - 500], (count, 2))
    return ImageBatch.from_images([photo(i % 2)[y : y + 375, x : x + 500] for i, (y, x) in enumerate(corners)])


def image_of(batch: ImageBatch, index: int) -> np.ndarray:
    height, width = int(batch.height[index]), int(batch.width[index])
    return batch.data[int(batch.offset[index]) :][: 3 * height * width].numpy().reshape(height, width, 3)


def check(batch: ImageBatch, policy: Policy, seed: int) -> None:
    plan = plan_for(batch, policy, seed)
    ours = apply(batch, plan)
    for index, row in enumerate(plan.table):
        expected = timm_stages(image_of(batch, index), row, policy.size)
        if row["erase"]:
            top, left, height, width = row["erased"].tolist()
            window = (slice(None), slice(top, top + height), slice(left, left + width))
            expected[window] = ours[index][window]
        assert torch.equal(ours[index], expected), row


def test_the_recipe_on_photographs_equals_timms_stages() -> None:
    check(photographs(48), Policy.deit(), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_the_recipe_on_many_photographs_equals_timms_stages(seed: int) -> None:
    check(photographs(100), replace(Policy.deit(), rand_augment=RandAugment(probability=1.0)), seed + 100)


@pytest.mark.parametrize("seed", range(3))
def test_the_recipe_on_odd_images_and_sizes_equals_timms_stages(seed: int) -> None:
    sides = np.random.default_rng(seed).integers(1, 90, (60, 2))
    batch = ImageBatch.from_images([noise(*side) for side in sides.tolist()])
    policy = Policy(size=31 + seed, rand_augment=RandAugment(probability=1.0), interpolation="random", flip=0.3)
    check(batch, policy, seed)


def test_a_simple_crop_equals_torchvisions_reflected_padding() -> None:
    policy = Policy(size=24, crop="simple", pad=6)
    batch = ImageBatch.from_images([noise(*side) for side in [(24, 24), (40, 30), (5, 9), (24, 100), (1, 3)] * 6])
    check(batch, policy, seed=0)
    assert plan_for(batch, policy).table["window"].min() < 0


@pytest.mark.parametrize("src", [False, True])
def test_deit_3_on_photographs_equals_the_official_stages(src: bool) -> None:
    check(photographs(30), replace(Policy.deit3(src=src), mix=None), seed=1)


@pytest.mark.parametrize("src", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_deit_3_on_odd_images_and_sizes_equals_the_official_stages(src: bool, seed: int) -> None:
    sides = np.random.default_rng(seed).integers(1, 90, (60, 2))
    batch = ImageBatch.from_images([noise(*side) for side in sides.tolist()])
    check(batch, replace(Policy.deit3(31 + seed, src=src, color_jitter=0.9), mix=None), seed)


@pytest.mark.parametrize("text", ["original", "v0", "rand-m9-mstd0.5-inc1-n4-p0.8"])
def test_other_strings_of_timm_equal_timms_stages(text: str) -> None:
    sides = np.random.default_rng(5).integers(1, 90, (120, 2))
    batch = ImageBatch.from_images([noise(*side) for side in sides.tolist()])
    check(batch, Policy.parse(text, 33), seed=2)


def test_deit_3_makes_what_timm_makes_of_3a() -> None:
    transform = create_transform(224, is_training=True, auto_augment="3a", color_jitter=0.3, interpolation="bicubic")
    crop, flip, three, jitter, *_ = transform.transforms
    assert (crop.scale, flip.p) == ((0.08, 1.0), 0.5)
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (*((0.7, 1.3),) * 3, None)
    image, ours = Image.fromarray(photo()), torch.from_numpy(photo().copy())[None]
    solarised, grey = (np.asarray(three.policy[i][0](image)) for i in range(2))
    assert (apply_op(ours, "color", 0.0)[0].numpy() == grey).all()
    assert (apply_op(ours, "solarize", 128)[0].numpy() == solarised).all()
    random.seed(3)
    blurred = np.asarray(three.policy[2][0](image))
    random.seed(3)
    assert (apply_op(ours, "gaussian_blur", random.uniform(0.1, 2.0))[0].numpy() == blurred).all()


def erased(policy: Policy, count: int = 200) -> tuple[torch.Tensor, np.ndarray]:
    batch = ImageBatch.from_images([noise(9, 9)])
    batch = ImageBatch(batch.data, *(table.repeat(count) for table in batch[1:]))
    plan = plan_for(batch, policy)
    return apply(batch, plan), plan.table


def inside(image: torch.Tensor, row: np.void) -> torch.Tensor:
    top, left, height, width = row["erased"].tolist()
    return image[:, top : top + height, left : left + width]


def test_pixel_noise_is_normal_and_independent() -> None:
    images, table = erased(Policy(size=64, erase=Erase(1.0)))
    values = torch.cat([inside(image, row).reshape(3, -1) for image, row in zip(images, table, strict=True)], dim=1)
    count = values.shape[1]
    assert count > 100_000
    for channel in values:
        ordered = channel.double().sort().values
        normal = 0.5 * (1 + torch.erf(ordered / 2**0.5))
        ranks = torch.arange(1, count + 1) / count
        assert (normal - ranks).abs().max() < 1.95 / count**0.5  # Kolmogorov: rejected once in a thousand if true
    assert values.corrcoef().fill_diagonal_(0).abs().max() < 4 / count**0.5
    neighbours = torch.stack([values[:, :-1].reshape(-1), values[:, 1:].reshape(-1)]).corrcoef()[0, 1]
    assert abs(neighbours) < 4 / count**0.5
    assert values.unique().numel() > 0.98 * values.numel()  # no two images share noise


def test_rand_is_one_colour_and_const_is_zero() -> None:
    images, table = erased(Policy(size=16, erase=Erase(1.0, "rand")))
    colours = [inside(image, row) for image, row in zip(images, table, strict=True)]
    colours = torch.stack([box[:, 0, 0] for box in colours if (box == box[:, :1, :1]).all()])
    assert len(colours) == (table["erase"] > 0).sum()
    assert abs(float(colours.mean())) < 4 / colours.numel() ** 0.5
    assert abs(float(colours.std()) - 1) < 4 / colours.numel() ** 0.5
    images, table = erased(Policy(size=16, erase=Erase(1.0, "const")))
    assert all((inside(image, row) == 0).all() for image, row in zip(images, table, strict=True))


def test_timm_erases_in_normalised_space_too() -> None:
    image = torch.full((3, 64, 64), 100.0)
    RandomErasing(probability=1.0, min_area=0.3, max_area=0.4, mode="pixel", device="cpu")(image)  # 3600 values or more
    noise_of_timm = image[image != 100.0]
    assert abs(float(noise_of_timm.mean())) < 0.1
    assert abs(float(noise_of_timm.std()) - 1) < 0.1


def test_an_image_depends_on_seed_epoch_sample_and_copy_alone() -> None:
    policy, batch = Policy.deit(32), photographs(12)
    keys = dict(seed=4, epoch=2, sample=np.arange(12), copy=np.arange(12) % 3)
    everything = apply(batch, sample_plan(policy, **keys, height=375, width=500))
    order = np.random.default_rng(0).permutation(12)
    shuffled = ImageBatch(batch.data, *(table[order] for table in batch[1:]))
    keys |= {name: keys[name][order] for name in ("sample", "copy")}
    assert torch.equal(apply(shuffled, sample_plan(policy, **keys, height=375, width=500)), everything[order])
