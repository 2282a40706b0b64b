"""The augmentation in the place of a torchvision or timm transform: the same pixels, drawn as their users expect."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from deit_kernels import cross_entropy
from deit_kernels.augment import BatchTransform, ImageBatch, Policy, Transform, apply, sample_mix, sample_plan

timm = pytest.importorskip("timm")
CROP = Policy.crop_and_flip(24)


def photo(seed: int = 0, size: tuple[int, int] = (47, 61)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in range(2):
        (tmp_path / f"class{label}").mkdir()
        for index in range(4):
            photo(4 * label + index).save(tmp_path / f"class{label}" / f"{index}.png")
    return tmp_path


def test_evaluation_gives_the_pixels_of_timm_and_torchvision_and_draws_nothing() -> None:
    policy = Policy.eval(24, 0.9)
    by_timm = timm.data.create_transform(
        (3, 24, 24), crop_pct=0.9, interpolation="bicubic", mean=policy.mean, std=policy.std
    )
    by_torchvision = transforms.Compose(
        [
            transforms.Resize(26, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize(policy.mean, policy.std),
        ]
    )
    state = torch.get_rng_state()
    ours = Transform(policy)(photo())
    assert torch.equal(ours, by_timm(photo())) and torch.equal(ours, by_torchvision(photo()))
    assert torch.equal(state, torch.get_rng_state())


def test_it_serves_an_image_folder_and_its_workers(folder: Path) -> None:
    dataset = ImageFolder(folder, transform=Transform(Policy.deit(24)))

    def epochs(workers: int) -> list[torch.Tensor]:
        torch.manual_seed(3)
        loader = DataLoader(dataset, batch_size=4, num_workers=workers)
        return [torch.cat([images for images, _ in loader]) for _ in range(2)]

    first, second = epochs(0)
    assert first.shape == (8, 3, 24, 24) and first.dtype == torch.float32
    assert all(torch.equal(*pair) for pair in zip(epochs(0), (first, second), strict=True)), "torch's seed decides"
    assert (first != second).flatten(1).any(1).all(), "every epoch augments anew"
    assert all(torch.equal(*pair) for pair in zip(epochs(2), epochs(2), strict=True))
    parts = epochs(2)[0].chunk(2)
    assert not torch.equal(*parts), "workers do not repeat each other"


def test_every_way_to_hand_in_an_image_gives_the_same_pixels() -> None:
    transform = Transform(CROP, seed=7)
    results = []
    for image in (
        photo(),
        np.asarray(photo()),
        torch.from_numpy(np.array(photo())).permute(2, 0, 1),
        torch.from_numpy(np.array(photo())),
        photo().convert("RGBA"),
    ):
        torch.manual_seed(0)
        results.append(transform(image))
    assert all(torch.equal(result, results[0]) for result in results)
    assert Transform(CROP)(photo().convert("L")).shape == (3, 24, 24)


def test_counters_make_a_batch_a_function() -> None:
    images = [photo(seed, (30 + seed, 40)) for seed in range(4)]
    batch = ImageBatch.from_images(images)
    plan = sample_plan(
        CROP, seed=5, epoch=2, sample=[9, 8, 7, 9], copy=0, height=batch.height.numpy(), width=batch.width.numpy()
    )
    transform = BatchTransform(CROP, seed=5, dtype=torch.float16)
    state = torch.get_rng_state()
    given = {"sample": [9, 8, 7, 9], "epoch": 2}
    for form in (images, batch):
        assert torch.equal(transform(form, **given), apply(batch, plan, dtype=torch.float16))
    assert torch.equal(state, torch.get_rng_state())
    labels = torch.arange(4)
    augmented, same_labels = transform(images, labels, **given)
    assert same_labels is labels and torch.equal(augmented, transform(images, **given))
    assert not torch.equal(transform(images), transform(images)), "without counters torch's generator decides"


def test_a_batch_of_one_size_may_be_a_tensor() -> None:
    images = torch.from_numpy(np.stack([np.asarray(photo(seed)) for seed in range(3)])).permute(0, 3, 1, 2)
    given = {"sample": [0, 1, 2], "epoch": 0}
    alone = BatchTransform(CROP)(list(images), **given)
    assert torch.equal(BatchTransform(CROP)(images, **given), alone)
    patches = BatchTransform(CROP, layout="patches", patch=8)(images, **given)
    assert torch.equal(patches, alone.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(3, 9, 192))


def test_collate_mixes_images_and_targets_alike(folder: Path) -> None:
    policy = Policy.deit(24)
    torch.manual_seed(0)
    loader = DataLoader(ImageFolder(folder), batch_size=8, collate_fn=BatchTransform(policy, seed=1).collate)
    ((images, target),) = list(loader)
    assert images.shape == (8, 3, 24, 24)
    assert cross_entropy(torch.randn(8, 2), target).isfinite()
    labels = torch.arange(8)
    transform, given = BatchTransform(policy, seed=1), {"sample": range(8), "epoch": 0, "step": 4}
    mixed, target = transform([photo(seed) for seed in range(8)], labels, **given)
    mix = sample_mix(policy, seed=1, step=4, start=0, count=8, group=8)
    assert torch.equal(target.lam, mix.target(labels).lam) and torch.equal(target.partner_labels, labels.roll(4))
    unmixed = BatchTransform(dataclasses.replace(policy, mix=None), seed=1)
    assert not torch.equal(mixed, unmixed([photo(seed) for seed in range(8)], sample=range(8), epoch=0))


def test_what_cannot_be_augmented_says_what_to_do() -> None:
    for call, says in [
        (lambda: BatchTransform(CROP)(torch.zeros(2, 3, 8, 8)), "augmentation comes before the conversion"),
        (lambda: BatchTransform(Policy.deit(24))([photo()] * 2), "needs their labels: give them, or mix=None"),
        (lambda: BatchTransform(Policy.deit(24))([photo()], torch.zeros(1, dtype=torch.int64)), "in pairs, got 1"),
        (lambda: BatchTransform(CROP)([photo()], sample=[1]), "sample and epoch are given together"),
        (lambda: Transform(CROP)(np.zeros((4, 4, 3), np.float32)), r"not uint8 \(height, width, 3\)"),
        (lambda: Transform(CROP)(torch.zeros(3, 8, 8)), r"got torch.float32 \(3, 8, 8\).*so leave ToTensor"),
        (lambda: Transform(CROP)(torch.zeros(4, 8, 8, dtype=torch.uint8)), r"got torch.uint8 \(4, 8, 8\)"),
    ]:
        with pytest.raises(ValueError, match=says):
            call()
