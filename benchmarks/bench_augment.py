"""Augmentation against its peers, on the same decoded 500 × 375 photographs, in one run.

    pytest benchmarks/bench_augment.py

The contenders of a row take turns, each with new random numbers every round. One thread works and processor time
counts, which others on the machine disturb least. With a card the whole recipe is compared there too.

Ours and timm's pixels are the same. Not so: torchvision v2 rounds its resize otherwise and draws each op once a call,
here once an image; albumentations' crop is not antialiased and its RandAugment is our list of its ops; Kornia works on
floats and picks the ops of RandAugment once for a batch; torchvision's blur is a Gaussian of 9 pixels, Pillow's three
boxes. The limit is a copy of as many bytes as the crops and the
output have.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.measure import interleaved
from benchmarks.measure.device_timing import memory_limit
from benchmarks.measure.interleaved import Limit
from benchmarks.measure.peers import DEIT3_OF_TIMM, DEIT_OF_TIMM, PLAIN_OF_TIMM, torchvision_transform
from deit_kernels import _extension
from deit_kernels.augment import (
    OPS,
    AugmentPlan,
    Erase,
    ImageBatch,
    MixPlan,
    Policy,
    apply,
    apply_op,
    apply_out,
    sample_mix,
    sample_plan,
)
from deit_kernels.augment.op import Layout

IMAGES, ROUNDS = 64, 9
DEIT, DEIT3, PLAIN = Policy.deit(), Policy.deit3(), Policy.crop_and_flip()
NUMBERS = DEIT.mean, DEIT.std

pytestmark = [
    pytest.mark.benchmark(group="augment"),
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(_extension.cpu_missing is not None, reason=f"{_extension.cpu_missing}"),
]
Contender = Callable[[], object]


def windows() -> list[np.ndarray]:
    """Different windows of the two photographs inside scikit-learn, so that no two share pixels in a cache."""
    sources = load_sample_images().images
    random = np.random.default_rng(0)
    corners = random.integers(0, [427 - 375, 640 - 500], (IMAGES, 2))
    return [sources[i % 2][y : y + 375, x : x + 500].copy() for i, (y, x) in enumerate(corners)]


photos = pytest.fixture(windows, scope="module", name="photos")


def compare(
    benchmark: BenchmarkFixture,
    contenders: Mapping[str, Contender],
    count: int = IMAGES,
    clock: Callable[[], float] = time.process_time,
    variants: bool = False,
) -> None:
    """A row of the contenders, the first of which is ours."""
    own = next(iter(contenders.values()))
    limit = own.limit() if isinstance(own, Ours) and not variants else None
    work = {name: count * getattr(run, "epochs", 1) for name, run in contenders.items()}
    interleaved.compare(
        benchmark, contenders, rounds=ROUNDS, clock=clock, work=work, unit="images/s", limit=limit, variants=variants
    )


class Ours:
    """The batch through one policy, into the same buffer; planning included.

    A call is several epochs: one takes a tenth of a peer's turn, and which ops its 64 images draw decides its time.
    """

    epochs = 8

    def __init__(
        self,
        photos: list[np.ndarray],
        policy: Policy,
        mix: bool = False,
        dtype: torch.dtype = torch.float32,
        layout: Layout = "nchw",
        device: str = "cpu",
    ):
        self.batch, self.policy, self.mix, self.layout = ImageBatch.from_images(photos).to(device), policy, mix, layout
        self.epoch = 0
        like = apply(ImageBatch.from_images(photos), self.plan(), dtype=dtype, layout=layout)
        self.out = torch.empty_like(like, device=device)

    def plan(self) -> AugmentPlan:
        sample = np.arange(IMAGES)
        return sample_plan(self.policy, seed=0, epoch=self.epoch, sample=sample, copy=0, height=375, width=500)

    def limit(self) -> Limit:
        box = self.plan().table["box"]
        crop = 3 * (box[:, 2] * box[:, 3]).mean()
        return memory_limit(int(crop + self.out.nbytes / IMAGES))

    def draw_mix(self) -> MixPlan | None:
        if not self.mix:
            return None
        return sample_mix(self.policy, seed=0, step=self.epoch, start=0, count=IMAGES, group=IMAGES)

    def __call__(self) -> Tensor:
        for _ in range(self.epochs):
            self.epoch += 1
            apply_out(self.batch, self.plan(), self.draw_mix(), out=self.out, layout=self.layout)
        return self.out


def timm_batch(photos: list[np.ndarray], recipe: dict[str, Any], mix: bool = False) -> Contender:
    transform = timm.data.create_transform(224, is_training=True, **recipe)
    images = [Image.fromarray(photo) for photo in photos]
    mixup = timm.data.Mixup(0.8, 1.0, num_classes=1000)
    labels = torch.zeros(IMAGES, dtype=torch.int64)

    def run() -> Tensor:
        batch = torch.stack([transform(image) for image in images])
        return mixup(batch, labels)[0] if mix else batch

    return run


def torchvision_three_augment(photos: list[np.ndarray]) -> Contender:
    three = [v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), v2.GaussianBlur(9, (0.1, 2.0))]
    return torchvision_batch(photos, whole=False, ops=[v2.RandomChoice(three), v2.ColorJitter(0.3, 0.3, 0.3)])


def torchvision_batch(
    photos: list[np.ndarray], whole: bool, device: str = "cpu", ops: Sequence[Callable[[Tensor], Tensor]] = ()
) -> Contender:
    transform = torchvision_transform(DEIT, whole, ops)
    images = [torch.from_numpy(photo).permute(2, 0, 1).contiguous().to(device) for photo in photos]
    return lambda: torch.stack([transform(image) for image in images])


def albumentations_batch(photos: list[np.ndarray], whole: bool) -> Contender:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    border = {"border_mode": cv2.BORDER_CONSTANT, "fill": DEIT.fill, "interpolation": cv2.INTER_CUBIC, "p": 0.5}
    alone = {"brightness_limit": 0, "contrast_limit": 0, "p": 0.5}
    ops = [
        A.AutoContrast(p=0.5),
        A.Equalize(p=0.5),
        A.InvertImg(p=0.5),
        A.Rotate(27, **border),
        A.Posterize(1, p=0.5),
        A.Solarize((0.1, 0.1), p=0.5),
        A.Solarize((0.5, 0.5), p=0.5),  # it has no solarize_add
        A.ColorJitter(0, 0, 0.9, 0, p=0.5),
        A.RandomBrightnessContrast(**{**alone, "contrast_limit": 0.9}),
        A.RandomBrightnessContrast(**{**alone, "brightness_limit": 0.9}),
        A.Sharpen(p=0.5),
        A.Affine(shear={"x": (-15, 15), "y": (0, 0)}, **border),
        A.Affine(shear={"x": (0, 0), "y": (-15, 15)}, **border),
        A.Affine(translate_percent={"x": (-0.4, 0.4), "y": (0, 0)}, **border),
        A.Affine(translate_percent={"x": (0, 0), "y": (-0.4, 0.4)}, **border),
    ]
    two = A.SomeOf(ops, n=2, replace=True, p=1.0)
    stages = [A.RandomResizedCrop((224, 224), interpolation=cv2.INTER_CUBIC), A.HorizontalFlip(), two]
    stages += [A.Normalize(*NUMBERS), A.Erasing(scale=(0.02, 1 / 3), fill="random", p=0.25)]
    transform = A.Compose(stages if whole else [*stages[:2], stages[3]])

    def run() -> Tensor:
        images = [transform(image=photo)["image"] for photo in photos]
        return torch.stack([torch.from_numpy(image.transpose(2, 0, 1)) for image in images])

    return run


def kornia_batch(photos: list[np.ndarray], whole: bool, device: str = "cpu") -> Contender:
    import kornia.augmentation as K

    ops = [K.auto.RandAugment(2, 9)] if whole else []
    erase = [K.RandomErasing((0.02, 1 / 3), (0.3, 3.3), p=0.25)] if whole else []
    transform = torch.nn.Sequential(
        K.RandomResizedCrop((224, 224), resample="BICUBIC", cropping_mode="resample"),
        K.RandomHorizontalFlip(),
        *ops,
        K.Normalize(torch.tensor(NUMBERS[0]), torch.tensor(NUMBERS[1])),
        *erase,
    )
    stacked = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous().to(device)

    def run() -> Tensor:
        with torch.no_grad():
            return transform(stacked.float() / 255)

    return run


def peers(photos: list[np.ndarray], whole: bool) -> dict[str, Contender]:
    """The peers that are installed."""
    timms = timm_batch(photos, DEIT_OF_TIMM if whole else PLAIN_OF_TIMM)
    found = {"timm": timms, "torchvision v2": torchvision_batch(photos, whole)}
    for name, make in (("albumentations", albumentations_batch), ("kornia", kornia_batch)):
        if importlib.util.find_spec(name):
            found[name] = make(photos, whole)
    return found


def test_whole_recipe(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    """Crop, flip, RandAugment, normalise, erase."""
    compare(benchmark, {"deit_kernels": Ours(photos, replace(DEIT, mix=None)), **peers(photos, whole=True)})


def test_whole_recipe_with_mixing(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    """The same and mixup or CutMix of the batch, which of the peers timm has on the CPU."""
    ours, theirs = Ours(photos, DEIT, mix=True), timm_batch(photos, DEIT_OF_TIMM, mix=True)
    compare(benchmark, {"deit_kernels": ours, "timm": theirs})


def test_three_augment(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    """DeiT III: crop, flip, one of greyscale, solarise and Gaussian blur, colour jitter, normalise."""
    theirs = {"timm": timm_batch(photos, DEIT3_OF_TIMM), "torchvision v2": torchvision_three_augment(photos)}
    compare(benchmark, {"deit_kernels": Ours(photos, replace(DEIT3, mix=None)), **theirs})


def test_crop_and_flip(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    """Crop, flip, normalise."""
    compare(benchmark, {"deit_kernels": Ours(photos, PLAIN), **peers(photos, whole=False)})


def test_stages(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    """What each stage and output costs, against the whole recipe."""
    variants = {
        "whole recipe": Ours(photos, replace(DEIT, mix=None)),
        "whole recipe, mixing": Ours(photos, DEIT, mix=True),
        "whole recipe, fast affine": Ours(photos, replace(DEIT, mix=None, affine="fast")),
        "whole recipe, bf16 patches": Ours(photos, DEIT, dtype=torch.bfloat16, layout="patches"),
        "crop and flip": Ours(photos, PLAIN),
        "and RandAugment": Ours(photos, replace(PLAIN, rand_augment=DEIT.rand_augment)),
        "and erasing": Ours(photos, replace(PLAIN, erase=Erase())),
        "and 3-Augment": Ours(photos, replace(PLAIN, auto_augment=DEIT3.auto_augment)),
        "and colour jitter": Ours(photos, replace(PLAIN, color_jitter=0.3)),
    }
    compare(benchmark, variants, variants=True)


def test_every_op(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    """Each op alone on 224 × 224 images, at a drawn argument, beside a copy of the images."""
    images = torch.from_numpy(np.stack([photo[:224, :224] for photo in photos]))
    drawn = [sample_plan(p, seed=0, epoch=0, sample=range(500), copy=0, height=9, width=9) for p in (DEIT, DEIT3)]
    calls = np.concatenate([plan.table["ops"].reshape(-1) for plan in drawn])
    arguments = {name: float(calls["arg"][calls["op"] == OPS.index(name)][0]) for name in OPS[1:]}
    runs: dict[str, Contender] = {"copy": images.clone}
    runs |= {name: (lambda name=name, arg=arg: apply_op(images, name, arg)) for name, arg in arguments.items()}
    compare(benchmark, runs, variants=True)


def test_all_threads(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    """The whole recipe on every core, against one of them; wall clock."""
    ours = Ours(photos, replace(DEIT, mix=None))

    def with_threads(count: int) -> Contender:
        def run() -> None:
            torch.set_num_threads(count)
            ours()

        run.epochs = ours.epochs
        return run

    cores = len(os.sched_getaffinity(0))
    runs = {f"{cores} threads": with_threads(cores), "1 thread": with_threads(1)}
    compare(benchmark, runs, clock=time.perf_counter, variants=True)


def test_plans(benchmark: BenchmarkFixture) -> None:
    """Rows a second of sample_plan; images/s in the table are rows."""
    sample = np.arange(100_000)

    def draw(policy: Policy) -> Contender:
        return lambda: sample_plan(policy, seed=0, epoch=0, sample=sample, copy=0, height=375, width=500)

    runs = {"deit": draw(DEIT), "deit3": draw(DEIT3), "crop and flip": draw(PLAIN), "eval": draw(Policy.eval())}
    compare(benchmark, runs, count=len(sample), variants=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card(benchmark: BenchmarkFixture, photos: list[np.ndarray]) -> None:
    """The whole recipe in device memory to float32, against torchvision v2 and Kornia there. Not yet measured."""

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    contenders: dict[str, Contender] = {
        "deit_kernels": Ours(photos, replace(DEIT, mix=None), device="cuda"),
        "torchvision v2": torchvision_batch(photos, True, "cuda"),
    }
    if importlib.util.find_spec("kornia"):
        contenders["kornia"] = kornia_batch(photos, True, "cuda")
    compare(benchmark, contenders, clock=clock)
