"""What continuing an interrupted training costs: its place in the data, and its checkpoint.

    pytest benchmarks/bench_resume.py

**Data**: from a fresh loader to the first batch in the middle of an epoch. Our loader computes which images and which
augmentations belong to a step. PyTorch's loader has no such place: what is usual (accelerate's `skip_first_batches`)
is to load the batches again and throw them away, which is what the peer does here; skipping its indices alone would
be quick, but gives other augmentations than the uninterrupted run. Here the step is the seventh of eight, of 64
images; the peer's time grows with the step and ours does not.

The limit is the same loader's first batch of the epoch.

**Checkpoint** of DeiT-Ti, its average and AdamW's moments, 91 MB, against torch.load of the same tensors in one file:
once found, verified and loaded, as a resume does it, and once loaded only. Verifying reads every byte for its SHA-256,
several files at once, which torch's file does not have. The limit is reading
the files into memory that is there already. Wall clock, one torch thread.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from timm.data import ImageDataset, create_transform
from torch.utils.data import DataLoader

from benchmarks.measure.interleaved import compare
from benchmarks.measure.photographs import IMAGES
from deit_fast import create_model
from deit_fast.data import Share, TrainLoader
from deit_fast.data.sources.folder import open_folder
from deit_fast.run import checkpoint
from deit_kernels.augment import Policy

pytestmark = [pytest.mark.benchmark(group="resume"), pytest.mark.usefixtures("one_thread")]

BATCH, STEP = 64, 6


def test_resume_data(benchmark: BenchmarkFixture, photographs: Path) -> None:
    transform = create_transform(
        224, is_training=True, interpolation="bicubic", auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25
    )

    def ours(step: int = STEP) -> None:
        dataset = open_folder(photographs, "photographs")
        loader = TrainLoader(
            dataset, Policy.deit(), Share(len(dataset), BATCH), total_steps=IMAGES // BATCH, start_step=step
        )
        next(iter(loader))

    def torchs() -> None:
        loader = DataLoader(ImageDataset(str(photographs), transform=transform), BATCH, shuffle=True)
        next(islice(loader, STEP, None))

    first = "the first batch of the epoch"
    runs = {"ours": ours, "torch": torchs, first: lambda: ours(0)}
    compare(benchmark, runs, rounds=5, clock=time.perf_counter, limited_by=first, unit="resumes/s")


@pytest.mark.parametrize("verified", [True, False], ids=["verified", "loaded_only"])
def test_resume_checkpoint(benchmark: BenchmarkFixture, tmp_path: Path, verified: bool) -> None:
    model, average = (create_model("deit_tiny_distilled_patch16_224") for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    folder = checkpoint.save(tmp_path, 1, checkpoint.tensors_of(model, average, optimizer), {}, keep=1)
    file = tmp_path / "torch.pth"
    torch.save([model.state_dict(), average.state_dict(), optimizer.state_dict()], file)

    def ours() -> None:
        checkpoint.load(checkpoint.newest(tmp_path) if verified else folder, model, average, optimizer)

    def torchs() -> None:
        for part, state in zip((model, average, optimizer), torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)

    files = [path for path in folder.rglob("*") if path.is_file()]
    memory = memoryview(bytearray(max(path.stat().st_size for path in files)))

    def read() -> None:
        for path in files:
            with open(path, "rb", buffering=0) as source:
                source.readinto(memory)

    runs = {"ours": ours, "torch": torchs, "reading the files": read}
    compare(benchmark, runs, clock=time.perf_counter, limited_by="reading the files", unit="loads/s")
