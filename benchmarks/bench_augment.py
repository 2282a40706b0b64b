"""Augmentation against its peers, on the same decoded 500 × 375 photographs, in one run.

    pytest benchmarks/bench_augment.py                        # prints each group with the ratio to its fastest
    pytest benchmarks/bench_augment.py --benchmark-json=benchmarks/results/augment-cpu.json

One thread unless the name says otherwise. All run random resized crop to 224 (bicubic, antialiased), flip and normalise
to float32; ours and timm's give Pillow's pixels, torchvision v2's resize of tensors rounds otherwise. The JSON's
extra_info holds images/s and rows/s.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode, v2

from deit_kernels import _extension
from deit_kernels.augment import ImageBatch, Policy, apply, apply_out, reference, sample_plan

IMAGES = 32
POLICY = Policy.deit()

needs_extension = pytest.mark.skipif(_extension.cpu_missing is not None, reason=f"{_extension.cpu_missing}")


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Different windows of the two photographs inside scikit-learn, so that no two share pixels in a cache."""
    sources = load_sample_images().images
    random = np.random.default_rng(0)
    corners = random.integers(0, [427 - 375, 640 - 500], (IMAGES, 2))
    return [sources[i % 2][y : y + 375, x : x + 500].copy() for i, (y, x) in enumerate(corners)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measure(benchmark: BenchmarkFixture, unit: str, count: int, function: Callable[[], object]) -> None:
    benchmark.pedantic(function, rounds=15, warmup_rounds=2)
    benchmark.extra_info[unit] = round(count / benchmark.stats.stats.min)


def plan(photos: list[np.ndarray]) -> tuple[ImageBatch, object]:
    sample = np.arange(len(photos))
    return ImageBatch.from_images(photos), sample_plan(
        POLICY, seed=0, epoch=0, sample=sample, copy=0, height=375, width=500
    )


@needs_extension
@pytest.mark.benchmark(group="crop, flip, normalise: 32 images, one thread")
def test_deit_kernels(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    batch, rows = plan(photos)
    out = apply(batch, rows)
    measure(benchmark, "images/s", IMAGES, lambda: apply_out(batch, rows, out=out))


@needs_extension
@pytest.mark.benchmark(group="crop, flip, normalise: 32 images, one thread")
def test_deit_kernels_bfloat16_patches(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    batch, rows = plan(photos)
    out = apply(batch, rows, dtype=torch.bfloat16, layout="patches")
    measure(benchmark, "images/s", IMAGES, lambda: apply_out(batch, rows, out=out, layout="patches"))


@pytest.mark.benchmark(group="crop, flip, normalise: 32 images, one thread")
def test_deit_kernels_without_compiler(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    batch, rows = plan(photos)
    placed, mean, std = rows.place(batch).rows, list(POLICY.mean), list(POLICY.std)

    def augment() -> torch.Tensor:
        return reference.finish(reference.resize_rows(batch.data, placed, 224), mean, std, torch.float32, "nchw", 16)

    measure(benchmark, "images/s", IMAGES, augment)


@pytest.mark.benchmark(group="crop, flip, normalise: 32 images, one thread")
def test_timm(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    transform = timm.data.create_transform(224, is_training=True, interpolation="bicubic", color_jitter=None)
    images = [Image.fromarray(photo) for photo in photos]
    measure(benchmark, "images/s", IMAGES, lambda: [transform(image) for image in images])


@pytest.mark.benchmark(group="crop, flip, normalise: 32 images, one thread")
def test_torchvision_v2_tensors(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(POLICY.mean, POLICY.std),
        ]
    )
    images = [torch.from_numpy(photo).permute(2, 0, 1).contiguous() for photo in photos]
    measure(benchmark, "images/s", IMAGES, lambda: [transform(image) for image in images])


@needs_extension
@pytest.mark.benchmark(group="crop, flip, normalise: 32 images, all threads")
def test_deit_kernels_all_threads(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    torch.set_num_threads(torch.multiprocessing.cpu_count())
    batch, rows = plan(photos)
    out = apply(batch, rows)
    measure(benchmark, "images/s", IMAGES, lambda: apply_out(batch, rows, out=out))


@pytest.mark.benchmark(group="sample_plan: 100 000 rows, one thread")
@pytest.mark.parametrize("policy", [Policy.deit(), Policy.eval()], ids=["deit", "eval"])
def test_sample_plan(benchmark: BenchmarkFixture, policy: Policy) -> None:
    sample = np.arange(100_000)

    def draw() -> object:
        return sample_plan(policy, seed=0, epoch=0, sample=sample, copy=0, height=375, width=500)

    measure(benchmark, "rows/s", len(sample), draw)
