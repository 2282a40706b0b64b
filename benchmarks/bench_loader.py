"""From JPEG files to model-ready batches, against timm's and a torchvision v2 loader: same files, same cores, one run.

    pytest benchmarks/bench_loader.py
    pytest benchmarks/bench_loader.py --benchmark-json=loader.json

512 photographs of 500 × 375 pixels, in batches of 64, into float32 (64, 3, 224, 224). Everyone runs DeiT's recipe:
random resized crop, flip, RandAugment rand-m9-mstd0.5-inc1, normalisation, random erasing of a quarter of the images
by noise, mixup or CutMix of every batch. Ours and timm's are the same distribution, but that we draw a mix for every
group of a batch; torchvision's RandAugment is another (its ops, one magnitude, no bicubic for tensors).

timm's loader is `create_loader`, with its prefetcher (timm's own training: bytes from the workers, normalised, erased
and mixed in the main process) and without (DeiT's). Both forms and torchvision's loader run an epoch with 0, 1, 2 and
4 workers; the two best of timm's and the best of torchvision's then take turns with ours in every row, and the faster
counts. Images/s are of the wall clock: a loader that keeps a core idle is slow. The processor time of an image, in this
process and its workers together, is beside them: on a machine that others use too, that ratio is the steadier one.

    test_cpu_full              everything on the CPU
    test_cpu_repeated          the same with every image three times in a batch (DeiT's repeated augmentation)
    test_host_cost_repeated    what is left to the host when a GPU augments: ours read, decode, plan, pack; beside it
                               timm's whole loader, and timm's host share: its prefetcher moves to the GPU what
                               normalises, erases and mixes, and leaves crop and RandAugment to the host
    test_cpu_crop_and_flip     the first without RandAugment and erasing, where decoding is most of the work

The limit of a row is the decoder alone on all cores: every image decoded once and whole, for all of its copies. Ours
decodes no more of an image than its crops need, so it can pass that limit; the peers decode whole images.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import starmap
from pathlib import Path

import pytest
import torch
import torch.distributed
from pytest_benchmark.fixture import BenchmarkFixture
from timm.data import ImageDataset, Mixup, create_loader
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benchmarks.measure.interleaved import Limit, record
from benchmarks.measure.peers import DEIT_OF_TIMM, PLAIN_OF_TIMM, torchvision_transform
from benchmarks.measure.photographs import HEIGHT, IMAGES, WIDTH
from deit_fast.data import Share, TrainLoader
from deit_fast.data.decode import decode, new_array
from deit_fast.data.sources import folder as folder_module
from deit_kernels.augment import Policy

pytestmark = [
    pytest.mark.benchmark(group="loader"),
    # Faster for a peer without workers, whose ops on single images torch's threads only delay; nothing to the rest.
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:The image decoding and encoding"),
]

BATCH, ROUNDS = 64, 5
CORES = len(os.sched_getaffinity(0))
WORKERS = (0, 1, 2, 4)
Form = partial["Contender"]  # of a peer: (root, policy, repeats) -> Contender
DEIT, PLAIN = Policy.deit(), Policy.crop_and_flip()


@dataclass
class Contender:
    """One loader: `epoch()` gives the batches of an epoch. Wall-clock and processor seconds an image, of each epoch."""

    name: str
    epoch: Callable[[], Iterable]
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def run(self) -> None:
        began, used = time.perf_counter(), processor_seconds()
        images = sum(len(batch[1]) for batch in self.epoch())
        self.wall.append((time.perf_counter() - began) / images)
        self.processor.append((processor_seconds() - used) / images)

    @property
    def cost(self) -> float:
        """Wall-clock seconds an image."""
        return statistics.median(self.wall)

    def forget(self) -> None:
        self.wall.clear()
        self.processor.clear()


def processor_seconds() -> float:
    """User and system time of this process and its live workers so far."""
    ticks = 0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def ours(root: Path, policy: Policy, repeats: int, device: str = "cpu") -> Contender:
    dataset = folder_module.open_folder(root, "photographs")
    loader = TrainLoader(
        dataset, policy, Share(len(dataset), BATCH, repeats), total_steps=IMAGES // BATCH, device=torch.device(device),
    )  # fmt: skip
    return Contender("deit_fast", lambda: ((batch.images, batch.labels) for batch in loader))


def timm_loader(
    root: Path, policy: Policy, repeats: int, workers: int, prefetcher: bool, device: str = "cpu"
) -> Contender:
    """timm's loader. On the device "meta" its prefetcher neither normalises nor erases, and nothing is mixed."""
    loader = create_loader(
        ImageDataset(str(root)), 224, BATCH, is_training=True, num_workers=workers,
        use_prefetcher=prefetcher, device=torch.device(device), distributed=repeats > 1,
        num_aug_repeats=repeats if repeats > 1 else 0, persistent_workers=workers > 0,
        **(DEIT_OF_TIMM if policy is DEIT else PLAIN_OF_TIMM),
    )  # fmt: skip
    form = ", prefetcher" if prefetcher else ""
    mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=1000)
    mixes = policy is DEIT and device == "cpu"
    return Contender(f"timm, {workers} workers{form}", lambda: starmap(mixup, loader) if mixes else loader)


def torchvision_loader(root: Path, policy: Policy, repeats: int, workers: int) -> Contender:
    transform = torchvision_transform(policy, whole=policy is DEIT)
    dataset = ImageFolder(root, transform, loader=partial(decode_image, mode=ImageReadMode.RGB))
    order = RepeatAugSampler(dataset, num_replicas=1, rank=0, num_repeats=repeats) if repeats > 1 else None
    loader = DataLoader(
        dataset, BATCH, shuffle=order is None, sampler=order, num_workers=workers, drop_last=True,
        persistent_workers=workers > 0,
    )  # fmt: skip
    mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=1000), v2.CutMix(num_classes=1000)])
    return Contender(f"torchvision, {workers} workers", lambda: starmap(mix, loader) if policy is DEIT else loader)


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    """timm repeats augmentations in distributed training only."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def decoding(root: Path, repeats: int) -> Limit:
    """Images/s of reading and decoding whole images alone, on every core, into memory used before."""
    files = sorted(root.rglob("*.jpg"))
    memory = threading.local()

    def read(file: Path) -> None:
        if not hasattr(memory, "pixels"):
            memory.pixels = new_array(HEIGHT, WIDTH)
        decode(file.read_bytes(), reserve=lambda height, width: memory.pixels)

    seconds = []
    with ThreadPoolExecutor(CORES) as pool:
        for _ in range(3):
            began = time.perf_counter()
            list(pool.map(read, files))
            seconds.append(time.perf_counter() - began)
    whole = f"decoding whole images alone on {CORES} cores, each for {repeats} copies"
    return Limit(len(files) * repeats / min(seconds), whole)


@lru_cache
def best_forms(root: Path) -> tuple[dict[str, list[Form]], dict[str, int]]:
    """The forms of each peer to measure, timm's two and torchvision's one best of an epoch; images/s of all forms."""
    forms = {
        "timm": [partial(timm_loader, workers=count, prefetcher=form) for form in (False, True) for count in WORKERS],
        "torchvision": [partial(torchvision_loader, workers=count) for count in WORKERS],
    }
    chosen, first = {}, {}
    for peer, number in (("timm", 2), ("torchvision", 1)):
        costs = {}
        for form in forms[peer]:
            contender = form(root, DEIT, 1)
            contender.run()  # workers start, files come into the page cache, memory is touched
            contender.forget()
            contender.run()
            costs[form], first[contender.name] = contender.cost, round(1 / contender.cost)
        chosen[peer] = sorted(costs, key=costs.__getitem__)[:number]
    return chosen, first


def compare(benchmark: BenchmarkFixture, root: Path, policy: Policy, repeats: int = 1, device: str = "cpu") -> None:
    own = ours(root, policy, repeats, device)
    forms, first = best_forms(root)
    chosen = {peer: [form(root, policy, repeats) for form in group] for peer, group in forms.items()}
    if device != "cpu":
        workers = {form.keywords["workers"] for form in forms["timm"]}
        chosen["timm's host share"] = [
            timm_loader(root, policy, repeats, count, prefetcher=True, device=device) for count in sorted(workers)
        ]
    everyone = [own, *(contender for best in chosen.values() for contender in best)]
    # Ours last: the workers that a peer's first epoch forks share our memory, and each page costs a copy once.
    for contender in reversed(everyone):
        contender.run()
        contender.forget()
    own.run()
    own.forget()
    for _ in range(ROUNDS):
        for contender in everyone:
            contender.run()
    best = {name: min(group, key=lambda contender: contender.cost) for name, group in chosen.items()}
    record(
        benchmark, {own.name: own.wall, **{name: contender.wall for name, contender in best.items()}},
        unit="images/s", clock="wall clock", limit=decoding(root, repeats), cores=CORES,
        mean_file_bytes=round(statistics.mean(path.stat().st_size for path in root.rglob("*.jpg"))),
        best={name: contender.name for name, contender in best.items()}, first_epoch=first,
        processor_ms={
            name: round(1000 * statistics.median(contender.processor), 2)
            for name, contender in {own.name: own, **best}.items()
        },
        **{
            f"processor_ratio_to_{name}":
            round(statistics.median(contender.processor) / statistics.median(own.processor), 2)
            for name, contender in best.items()
        },
    )  # fmt: skip


def test_cpu_full(benchmark: BenchmarkFixture, photographs: Path) -> None:
    compare(benchmark, photographs, DEIT)


def test_cpu_repeated(benchmark: BenchmarkFixture, photographs: Path) -> None:
    compare(benchmark, photographs, DEIT, repeats=3)


def test_host_cost_repeated(benchmark: BenchmarkFixture, photographs: Path) -> None:
    compare(benchmark, photographs, DEIT, repeats=3, device="meta")


def test_cpu_crop_and_flip(benchmark: BenchmarkFixture, photographs: Path) -> None:
    compare(benchmark, photographs, PLAIN)
