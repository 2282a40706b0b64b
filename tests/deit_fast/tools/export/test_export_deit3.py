"""DeiT III exported: every library gives the same logits, and the folders are read back."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from deit_fast import create_model, load
from deit_fast.model import VisionTransformer
from deit_fast.tools.export.formats import FORMS, _read_onnx, export
from deit_fast.weights.pretrained import to_official

NAMES = ["deit3_small_patch16_224", "deit3_small_distilled_patch16_224", "deit3_huge_patch14_224"]


def model_of(name: str) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"image_size": 28, "patch_size": 14, "depth": 2, "classes": 5}
    sizes |= {"width": 160, "heads": 2} if "huge" in name else {}  # head dim 80
    model = create_model(name, **sizes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(params=NAMES)
def official(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, VisionTransformer]:
    model = model_of(request.param)
    torch.save({"model": to_official(model.state_dict())}, tmp_path / "official.pth")
    return tmp_path / "official.pth", model


@pytest.mark.parametrize("to", FORMS)
def test_every_library_gives_the_same_logits(to: str, official: tuple[Path, VisionTransformer], tmp_path: Path) -> None:
    file, model = official
    trained = load(file, heads=2) if model.config.width == 160 else load(file)
    takes, read = ("tensor", _read_onnx) if to == "onnx" else ("image", FORMS[to].read)
    export(trained, to, tmp_path / to, takes)  # which compares image files and random images
    images = torch.randn(3, 3, 28, 28)
    tolerance = 1e-4 if to == "onnx" else 1e-5
    with torch.inference_mode():
        expected, logits = model(images), read(tmp_path / to)(images)
    assert (logits - expected).abs().max() <= tolerance * max(1, expected.abs().max())
    if to == "onnx":
        return
    back = load(tmp_path / to).model
    with torch.inference_mode():
        assert (back(images) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    if to == "timm":
        ours, theirs = model.state_dict(), back.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert back.config == model.config


def test_timms_folder_is_timms_own_deit3(tmp_path: Path) -> None:
    model = model_of("deit3_small_patch16_224")
    torch.save({"model": to_official(model.state_dict())}, tmp_path / "official.pth")
    export(load(tmp_path / "official.pth"), "timm", tmp_path / "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert theirs.no_embed_class and theirs.pretrained_cfg["architecture"] == "deit3_small_patch16_224"
