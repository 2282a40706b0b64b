"""DeiT III's weights under the official names, timm's and Hugging Face's: strictly read, and written back."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from deit_fast import create_model, load, load_pretrained
from deit_fast.model import VisionTransformer
from deit_fast.weights.huggingface import to_huggingface
from deit_fast.weights.pretrained import read_weights, to_official

NAME, DISTILLED = "deit3_small_patch16_224", "deit3_small_distilled_patch16_224"
SMALL = {"image_size": 32, "patch_size": 8, "depth": 2, "classes": 5}


def model_of(name: str = NAME, **changes) -> VisionTransformer:
    torch.manual_seed(0)
    model = create_model(name, **{**SMALL, **changes}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def logits_of(model: nn.Module) -> Tensor:
    torch.manual_seed(1)
    with torch.inference_mode():
        return model(torch.randn(2, 3, 32, 32))


# Of one block of facebookresearch/deit models_v2.Layer_scale_init_Block.
OFFICIAL_BLOCK = {
    "gamma_1", "gamma_2", "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight",
    "attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
}  # fmt: skip
OFFICIAL = {f"blocks.{block}.{name}" for block in range(2) for name in OFFICIAL_BLOCK} | {
    "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias",
    "head.weight", "head.bias",
}  # fmt: skip


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A file as the official code saves it."""
    torch.save({"model": to_official(model_of().state_dict())}, tmp_path / "deit_3_small_224_1k.pth")
    return tmp_path / "deit_3_small_224_1k.pth"


def test_official_weights_load_strictly_and_are_written_back(official: Path) -> None:
    file = torch.load(official)["model"]
    assert file.keys() == OFFICIAL
    model = create_model(NAME, **SMALL)
    assert load_pretrained(model, official) == []
    assert same_weights(model, model_of())
    back = to_official(model.state_dict())
    assert back.keys() == file.keys() and all(torch.equal(back[key], file[key]) for key in file)


def test_an_official_file_tells_its_own_sizes(official: Path) -> None:
    trained = load(official)
    assert same_weights(trained.model, model_of())
    assert trained.model.config == model_of().config
    assert trained.preprocessing.crop_ratio == 1.0  # the official --eval-crop-ratio 1.0


def test_official_weights_load_into_timms_model(official: Path) -> None:
    theirs = timm.create_model(NAME, img_size=32, patch_size=8, depth=2, num_classes=5).eval()
    load_pretrained(theirs, official)
    torch.testing.assert_close(logits_of(theirs), logits_of(model_of()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [NAME, DISTILLED])
def test_a_file_of_timms_names_tells_its_own_sizes(name: str, tmp_path: Path) -> None:
    save_file(model_of(name).state_dict(), tmp_path / "model.safetensors")
    trained = load(tmp_path / "model.safetensors")
    assert trained.model.config == model_of(name).config
    assert same_weights(trained.model, model_of(name))


def test_positions_of_0_are_kept_where_they_are_the_patches() -> None:
    weights = model_of().state_dict()
    weights["pos_embed"][:, :3] = 0
    model = create_model(NAME, **SMALL)
    load_pretrained(model, weights)
    assert torch.equal(model.pos_embed, weights["pos_embed"])


def test_other_networks_names_stay_as_they_are() -> None:
    """timm's CaiT and BEiT have parameters that are called gamma_1 too."""
    theirs = timm.create_model("cait_xxs24_224", depth=1, num_classes=3)
    assert "blocks.0.gamma_1" in theirs.state_dict()
    load_pretrained(timm.create_model("cait_xxs24_224", depth=1, num_classes=3), theirs.state_dict())


@pytest.mark.parametrize("name", [NAME, DISTILLED])
@pytest.mark.parametrize("method", ["official", "timm"])
def test_position_embeddings_are_resized_without_a_prefix(name: str, method: str) -> None:
    small, large = model_of(name), create_model(name, **{**SMALL, "image_size": 48})
    (note,) = load_pretrained(large, small.state_dict(), method)
    assert note == f"position embeddings resized from 16 to 36 tokens ({method})"
    patches = small.pos_embed.detach().unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = F.interpolate(patches, (6, 6), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    if method == "timm":
        expected = resample_abs_pos_embed(small.pos_embed.detach(), [6, 6], num_prefix_tokens=0)
    torch.testing.assert_close(large.pos_embed.detach(), expected)


def test_timms_position_embeddings_are_resized_without_a_prefix() -> None:
    theirs = timm.create_model(NAME, img_size=48, patch_size=8, depth=2, num_classes=5)
    load_pretrained(theirs, model_of().state_dict(), "timm")
    expected = resample_abs_pos_embed(model_of().pos_embed.detach(), [6, 6], num_prefix_tokens=0)
    torch.testing.assert_close(theirs.pos_embed.detach(), expected)


@pytest.mark.parametrize("name", [NAME, DISTILLED])
def test_hugging_faces_names_load_strictly_and_are_written_back(name: str, tmp_path: Path) -> None:
    written = to_huggingface(model_of(name).state_dict(), prefix_positions=False)
    assert not any("gamma" in key or "lambda" in key for key in written)  # transformers' ViT has no LayerScale
    save_file(written, tmp_path / "model.safetensors")
    model = create_model(name, **SMALL).eval()
    (note,) = load_pretrained(model, tmp_path / "model.safetensors")
    assert note == "LayerScale starts at 1: in Hugging Face's files its factors are in the matrices"
    torch.testing.assert_close(logits_of(model), logits_of(model_of(name)), rtol=1e-5, atol=1e-5)
    back = to_huggingface(model.state_dict(), prefix_positions=False)
    assert back.keys() == written.keys() and all(torch.equal(back[key], written[key]) for key in back)


def test_a_plain_deit_of_hugging_face_is_that_function_as_a_deit3(tmp_path: Path) -> None:
    deit = create_model("deit_small_distilled_patch16_224", **SMALL).eval()
    for parameter in deit.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_file(to_huggingface(deit.state_dict()), tmp_path / "model.safetensors")
    model = create_model(DISTILLED, **SMALL).eval()
    load_pretrained(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(logits_of(model), logits_of(deit), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        (NAME, "deit_small_patch16_224", r"they have .* no distillation token and LayerScale, the model has .*: type"),
        (DISTILLED, NAME, r"a distillation token and LayerScale, .*: type"),
        ("deit_small_patch16_224", NAME, "a --model whose name begins with deit_$"),
    ],
)
def test_weights_of_the_other_family_are_refused(theirs: str, ours: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_pretrained(model_of(ours), model_of(theirs).state_dict())


def test_released_sizes_are_named_when_weights_do_not_fit() -> None:
    sizes = {"image_size": 32, "classes": 5}
    weights = to_official(create_model(NAME, **sizes).state_dict())
    with pytest.raises(ValueError, match=f"type --model {NAME}$"):
        load_pretrained(create_model("deit_small_patch16_224", **sizes), weights)


def test_read_weights_keeps_the_files_own_names(official: Path) -> None:
    assert read_weights(official).keys() == OFFICIAL
