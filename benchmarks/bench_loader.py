"""From JPEG files to model-ready batches, against timm's and a torchvision v2 loader: same files, same cores, one run.

    pytest benchmarks/bench_loader.py
    pytest benchmarks/bench_loader.py --benchmark-json=benchmarks/results/loader-cpu.json

384 photographs of 500 × 375 pixels, in batches of 48, into float32 (48, 3, 224, 224), normalised. All run the same
recipe as far as the peers have it. A peer is measured with 0, 1, 2 and 4 workers, kept alive between epochs, and its
best count. Epochs of all contenders alternate; a number is the median over them. The JSON's extra_info holds images/s
(copies of repeated augmentation counted, as timm counts them), the ratios, each peer's best number of workers, the mean
size of a file, and the processor time of an image in this process and its workers together: on a machine that others
use too, that ratio is the steadier one.

    test_cpu_full              everything on the CPU
    test_cpu_repeated          the same with every image three times in a batch (DeiT's repeated augmentation)
    test_host_cost_repeated    what is left to the host when a GPU augments: read, decode, plan, pack
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from skimage import data as photographs
from timm.data import ImageDataset, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, Sampler
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from deit_fast.data import TrainLoader
from deit_fast.data import folder as folder_module
from deit_kernels.augment import Policy

IMAGES, BATCH, ROUNDS = 384, 48, 4
WORKERS = (0, 1, 2, 4)
POLICY = Policy.crop_and_flip()
SOURCES = ("astronaut", "cat", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with windows of the photographs inside scikit-image, none twice."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    sources = [Image.fromarray(getattr(photographs, name)()[..., :3]) for name in SOURCES]
    for number in range(IMAGES):
        source = sources[number % len(sources)]
        scale = random.uniform(1.0, 1.5) * max(500 / source.width, 375 / source.height)
        source = source.resize(
            (int(source.width * scale) + 1, int(source.height * scale) + 1), Image.Resampling.BICUBIC
        )
        left, top = random.integers(0, [source.width - 500 + 1, source.height - 375 + 1])
        path = root / SOURCES[number % len(SOURCES)] / f"{number:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        source.crop((left, top, left + 500, top + 375)).save(path, quality=95)
    return root


@dataclass
class Contender:
    """One loader: `epoch()` gives the batches of an epoch; images/s of each measured epoch."""

    name: str
    epoch: Callable[[], Iterable]
    rates: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        began, used = time.perf_counter(), processor_seconds()
        images = sum(len(batch[1]) for batch in self.epoch())
        self.rates.append(images / (time.perf_counter() - began))
        self.milliseconds.append((processor_seconds() - used) / images * 1000)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def cost(self) -> float:
        """Processor milliseconds an image."""
        return statistics.median(self.milliseconds)


def processor_seconds() -> float:
    """User and system time of this process and its live workers so far."""
    ticks = 0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def ours(root: Path, repeats: int, device: str = "cpu") -> Contender:
    dataset = folder_module.ImageFolder(root, "photographs")
    loader = TrainLoader(
        dataset, POLICY, data_seed=0, batch_size=BATCH, total_steps=IMAGES // BATCH, repeats=repeats,
        device=torch.device(device),
    )  # fmt: skip
    return Contender("deit_fast", lambda: ((batch.images, batch.labels) for batch in loader))


def sampler(dataset: object, repeats: int) -> Sampler | None:
    return RepeatAugSampler(dataset, num_replicas=1, rank=0, num_repeats=repeats) if repeats > 1 else None


def peer(name: str, dataset: object, repeats: int, workers: int) -> Contender:
    order = sampler(dataset, repeats)
    loader = DataLoader(
        dataset, BATCH, shuffle=order is None, sampler=order, num_workers=workers, drop_last=True,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return Contender(f"{name}, {workers} workers", lambda: loader)


def timm_dataset(root: Path) -> ImageDataset:
    """timm's training transform of the same recipe: Pillow, float32 tensors."""
    transform = create_transform(224, is_training=True, interpolation="bicubic", color_jitter=None)
    return ImageDataset(str(root), transform=transform)


def torchvision_dataset(root: Path) -> ImageFolder:
    """torchvision's decoder and v2 transforms on uint8 tensors, the fastest order its documentation gives."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(POLICY.mean, POLICY.std),
        ]
    )
    return ImageFolder(root, transform, loader=lambda path: decode_image(path, mode=ImageReadMode.RGB))


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Faster for a peer without workers, whose ops on single images torch's threads only delay; nothing to the rest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compare(benchmark: BenchmarkFixture, root: Path, repeats: int, device: str = "cpu") -> None:
    own = ours(root, repeats, device)
    datasets = {"timm": timm_dataset(root), "torchvision": torchvision_dataset(root)}
    peers = {name: [peer(name, dataset, repeats, workers) for workers in WORKERS] for name, dataset in datasets.items()}
    everyone = [own, *(contender for group in peers.values() for contender in group)]
    for contender in everyone:
        contender.run()  # workers start, files come into the page cache, memory is touched
        contender.rates.clear()
        contender.milliseconds.clear()
    for _ in range(ROUNDS - 1):
        for contender in everyone:
            contender.run()
    benchmark.pedantic(own.run, rounds=1)
    info = benchmark.extra_info
    info["images/s"], info["processor ms"] = round(own.rate), round(own.cost, 2)
    info["mean file bytes"] = round(statistics.mean(path.stat().st_size for path in root.rglob("*.jpg")))
    info["cores"] = len(os.sched_getaffinity(0))
    for name, group in peers.items():
        best = max(group, key=lambda contender: contender.rate)
        info[f"{name} images/s"] = {contender.name: round(contender.rate) for contender in group}
        info[f"best {name}"] = best.name
        info[f"ratio_to_{name}"] = round(own.rate / best.rate, 2)
        info[f"{name} processor ms"] = {contender.name: round(contender.cost, 2) for contender in group}
        info[f"processor_ratio_to_{name}"] = round(best.cost / own.cost, 2)


def test_cpu_full(benchmark: BenchmarkFixture, root: Path) -> None:
    compare(benchmark, root, repeats=1)


def test_cpu_repeated(benchmark: BenchmarkFixture, root: Path) -> None:
    compare(benchmark, root, repeats=3)


def test_host_cost_repeated(benchmark: BenchmarkFixture, root: Path) -> None:
    compare(benchmark, root, repeats=3, device="meta")
