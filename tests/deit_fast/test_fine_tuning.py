"""Fine-tuning at another resolution: with its teacher nothing is lost, and what the official code does is an option."""

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deit_fast import checkpoint, create_model
from deit_fast.config import Config
from deit_fast.recipes import recipe
from deit_fast.train import main, train
from tests.deit_fast.command import command_line


def top1(run: Path) -> float:
    """Of the fused heads: the moving average where it is better, as fine-tuning starts from it."""
    scores = json.loads((run / "summary.json").read_text())
    return max(scores[which]["fused"]["top1"] for which in ("student", "ema"))


@pytest.fixture(scope="module")
def low_resolution(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Path]]:
    """(teacher trained at 96 pixels, student of a seed trained at 64): each trained once."""
    folder = tmp_path_factory.mktemp("photos")
    teacher = dataclasses.replace(recipe("demo-teacher"), out=str(folder / "teacher"), in_memory=True)

    @cache
    def trained(seed: int) -> tuple[Path, Path]:
        train(teacher)
        student = dataclasses.replace(
            recipe("demo"), teacher=teacher.out, image_size=64, seed=seed, in_memory=True, out=str(folder / f"{seed}")
        )
        return Path(teacher.out), train(student).run

    return trained


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["official", "timm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distilled_fine_tuning_from_64_to_96_pixels_loses_no_point(low_resolution, resize, seed, tmp_path) -> None:
    """As `finetune-384-distilled`: train mode, the teacher sees the larger images, a small constant rate."""
    teacher, before = low_resolution(seed)
    after = dataclasses.replace(
        recipe("demo"), teacher=str(teacher), weights=str(before), pos_embed_resize=resize, seed=seed, in_memory=True,
        epochs=2, lr=1e-3, min_lr=1e-3 * 32 / 512, warmup_epochs=0.0, weight_decay=1e-8, out=str(tmp_path / "after"),
    )  # fmt: skip
    train(after)
    scores = top1(before), top1(tmp_path / "after")
    print(f"seed {seed}, {resize}: {scores[0]:.1f} % at 64 pixels, {scores[1]:.1f} % at 96")
    assert scores[1] >= scores[0] - 1.0
