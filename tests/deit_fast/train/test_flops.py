"""FLOPs as the literature counts them (twice the multiply-adds), and the cards they are divided by."""

import pytest
import timm
import torch
from torch import nn

from deit_fast.model import create_model
from deit_fast.train.meter import forward_flops, peak_flops, training_flops
from deit_fast.weights.build import Frozen


@pytest.mark.parametrize(
    ("name", "giga_multiply_adds"),
    # timm's results/benchmark tables: 224 x 224 pixels, 1000 classes.
    [("deit_tiny_patch16_224", 1.26), ("deit_small_patch16_224", 4.61), ("deit_base_patch16_224", 17.58)],
)
def test_a_transformer_s_are_the_published_ones(name: str, giga_multiply_adds: float) -> None:
    assert forward_flops(create_model(name), 224) == pytest.approx(2e9 * giga_multiply_adds, rel=0.01)


def test_a_convnet_s_are_counted_without_running_it() -> None:
    assert forward_flops(timm.create_model("regnety_160"), 224) == pytest.approx(2e9 * 15.96, rel=0.01)


def test_a_step_has_three_forward_passes_and_its_teacher_s() -> None:
    student, teacher = create_model("deit_tiny_patch16_224"), Frozen(nn.Conv2d(3, 1, 1), ((0.0,) * 3, (1.0,) * 3))
    assert training_flops(student, None, 224) == 3 * forward_flops(student, 224)
    assert training_flops(student, teacher, 224) == 3 * forward_flops(student, 224) + 2 * 3 * 224 * 224


def test_a_model_that_needs_values_has_no_count() -> None:
    class Reads(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, : int(images.sum().item())]

    assert forward_flops(Reads(), 8) is None
    assert training_flops(Reads(), None, 8) is None


@pytest.mark.parametrize(
    ("card", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 5090", None),
    ],
)
def test_a_card_that_is_not_in_the_table_has_no_peak(card: str, tera: float | None) -> None:
    assert peak_flops(card) == (None if tera is None else tera * 1e12)
