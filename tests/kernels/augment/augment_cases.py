"""Images, boxes and programs that several augmentation tests share."""

import fcntl
import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from deit_kernels import _extension
from deit_kernels.augment import AugmentPlan, Erase, ImageBatch, Policy, RandAugment, sample_plan
from deit_kernels.augment.plan import ROW
from deit_kernels.augment.policy import FILTERS

ROOT = Path(__file__).parents[3]
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

needs_extension = pytest.mark.skipif(_extension.cpu_missing is not None, reason=f"{_extension.cpu_missing}")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiles a test program with g++")

# height, width: square, tall, wide, tiny, and lines of one pixel
SIZES = [(96, 128), (64, 64), (200, 7), (5, 180), (1, 1), (1, 40), (33, 1), (2, 3)]
POLICIES = [
    Policy.deit(32),
    Policy.deit(33),
    Policy.eval(32),
    Policy.eval(31, crop_ratio=1.0),
    Policy(size=16, scale=(0.5, 0.5), ratio=(0.1, 10.0), interpolation="bilinear", flip=1.0),
    Policy(size=24, crop="center", crop_ratio=0.6, interpolation="bilinear", flip=0.3),
    Policy.crop_and_flip(40),
    Policy(size=24, crop="simple", pad=5, interpolation="random", erase=Erase(0.8, "rand"), affine="fast"),
    Policy(size=16, rand_augment=RandAugment(probability=1.0), erase=Erase(1.0, "const", area=(0.1, 0.9))),
    replace(Policy.parse("rand-m12-mstd101-mmax20-p0.9", 8), interpolation="random", affine="fast"),
    Policy.parse("rand-m7-mstd1-inc1-p1-tweights", 16),
    Policy.parse("rand-m9-mstd0.5-inc1-n4", 17),
    Policy.deit3(32),
    Policy.deit3(33, src=True, color_jitter=1.5),
    Policy.parse("original", 16),
    replace(Policy.parse("v0r", 15), interpolation="random", affine="fast"),
    Policy(size=20, color_jitter=0.4, rand_augment=RandAugment(layers=1, probability=1.0)),
]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Half of it black and white, so that bicubic overshoots and has to be clipped."""
    random = np.random.default_rng([seed, height, width])
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(random.random((height, width, 1)) < 0.5, image, np.where(image < 128, 0, 255)).astype(np.uint8)


def noise_batch(sizes: list[tuple[int, int]], seed: int = 0) -> ImageBatch:
    return ImageBatch.from_images([noise(height, width, seed) for height, width in sizes])


@cache
def photo(number: int = 0) -> np.ndarray:
    """A 427 × 640 photograph, one of the two inside scikit-learn; not to be written to."""
    return load_sample_images().images[number]


def plan_for(batch: ImageBatch, policy: Policy, seed: int = 0) -> AugmentPlan:
    height, width = batch.height.numpy(), batch.width.numpy()
    return sample_plan(policy, seed=seed, epoch=0, sample=np.arange(len(height)), copy=0, height=height, width=width)


def crop_rows(batch: ImageBatch, boxes: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """Placed rows that resize boxes (B, 4) to size × size, as a structured array."""
    rows = np.zeros(len(boxes), ROW)
    rows["offset"], rows["height"], rows["width"] = batch.offset, batch.height, batch.width
    rows["box"], rows["resized"], rows["filter"] = boxes, size, FILTERS.index(interpolation)
    return rows


def pillow_crop(image: np.ndarray, box: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    top, left, height, width = (int(side) for side in box)
    crop = Image.fromarray(image).crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((size, size), PILLOW[interpolation]))


def build_program(source: str, folder: Path, *flags: str, root: Path = ROOT) -> Path:
    """Compile one of csrc/emulate's programs the way the extension is compiled, once for the same sources and flags."""
    program = folder / Path(source).stem
    sources = [root / "csrc" / "emulate" / source]
    runs_loss = {"run.cpp": False, "loss.cpp": True}
    if source in runs_loss:
        files = sorted((root / "csrc" / "cpu").glob("*.cpp"))
        sources += [file for file in files if file.stem.startswith("loss") == runs_loss[source]]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"]
    vector = ["-fno-math-errno", "-fno-trapping-math"]
    options = ["-std=c++20", "-O2", "-ffp-contract=off", *vector, "-pthread", *warnings, *flags]
    command = ["g++", *options, *map(str, sources), "-o"]
    if root != ROOT:  # a planted fault
        subprocess.run([*command, program], check=True)
        return program
    content = hashlib.sha256(repr(command).encode())
    content.update(subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout)
    for file in sorted((root / "csrc").rglob("*.*")):
        content.update(f"{file.relative_to(root)} ".encode() + file.read_bytes())
    kept = ROOT / "build" / "emulation" / content.hexdigest()[:16]
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be compiling the same
        if not kept.exists():
            subprocess.run([*command, kept.with_suffix(".partial")], check=True)
            kept.with_suffix(".partial").rename(kept)
    return Path(shutil.copy(kept, program))


def cpu_flags() -> set[str]:
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return set(found.group(1).split()) if found else set()
