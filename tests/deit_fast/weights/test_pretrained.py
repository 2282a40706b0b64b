"""Loading weights from the official code, from timm and from files that are none."""

import argparse
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from deit_fast import create_model, load_pretrained, read_weights, resize_pos_embed

SMALL = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "heads": 2, "classes": 7}
NAME = "deit_tiny_distilled_patch16_224"


@pytest.fixture
def source():
    torch.manual_seed(1)
    return create_model(NAME, **SMALL)


def fresh(**changes):
    torch.manual_seed(2)
    return create_model(NAME, **{**SMALL, **changes})


def same(model, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_an_official_release(source, tmp_path) -> None:
    torch.save({"model": source.state_dict()}, tmp_path / "official.pth")
    model = fresh()
    assert load_pretrained(model, tmp_path / "official.pth") == []
    assert same(model, source)


def test_an_official_training_checkpoint_with_its_namespace(source, tmp_path) -> None:
    saved = {"model": source.state_dict(), "epoch": 3, "args": argparse.Namespace(lr=5e-4)}
    torch.save(saved, tmp_path / "checkpoint.pth")
    model = fresh()
    load_pretrained(model, tmp_path / "checkpoint.pth")
    assert same(model, source)


def test_a_safetensors_file_and_a_ddp_state_dict(source, tmp_path) -> None:
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    for weights in (tmp_path / "model.safetensors", {f"module.{k}": v for k, v in source.state_dict().items()}):
        model = fresh()
        load_pretrained(model, weights)
        assert same(model, source)


def test_a_timm_model_of_another_resolution_gives_timms_logits() -> None:
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 7}
    theirs = timm.create_model(NAME, img_size=32, **sizes).eval()
    ours = fresh(image_size=64).eval()
    notes = load_pretrained(ours, theirs.state_dict(), resize="timm")
    assert notes == ["position embeddings resized from 18 to 66 tokens (timm)"]
    theirs.set_input_size(img_size=64)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [7, 24])
def test_position_embeddings_resize_as_the_official_code_and_as_timm(grid: int) -> None:
    pos_embed = torch.randn(1, 2 + 14 * 14, 8)
    official = resize_pos_embed(pos_embed, grid, prefix_tokens=2)
    # facebookresearch/deit main.py: a plain bicubic interpolation of the patch rows.
    patches = pos_embed[:, 2:].reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False)
    torch.testing.assert_close(official[:, 2:], patches.permute(0, 2, 3, 1).reshape(1, grid * grid, 8))
    antialiased = resize_pos_embed(pos_embed, grid, prefix_tokens=2, method="timm")
    torch.testing.assert_close(antialiased, resample_abs_pos_embed(pos_embed, [grid, grid], num_prefix_tokens=2))
    for resized in (official, antialiased):
        assert torch.equal(resized[:, :2], pos_embed[:, :2])
    assert (official - antialiased).abs().max() > 0.01  # why the method is a choice


def test_other_classes_start_the_heads_anew_and_say_so(source, caplog) -> None:
    model = fresh(classes=3)
    before = model.head.weight.clone()
    notes = load_pretrained(model, source.state_dict())
    assert notes == [f"{head} starts anew: the file has 7 classes, the model 3" for head in ("head", "head_dist")]
    assert [record.message for record in caplog.records] == notes
    assert torch.equal(model.head.weight, before)
    assert torch.equal(model.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight)


def test_missing_and_unexpected_keys_are_listed_and_nothing_is_loaded(source) -> None:
    model = fresh()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    weights = source.state_dict()
    weights["extra.weight"] = weights.pop("norm.weight")
    with pytest.raises(ValueError, match=r"missing: norm\.weight; unexpected: extra\.weight"):
        load_pretrained(model, weights)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_shape_is_listed(source) -> None:
    with pytest.raises(
        ValueError, match=r"of another shape: .*blocks\.0\.mlp\.fc1\.weight \(256, 64\) instead of \(128, 64\)"
    ):
        load_pretrained(fresh(mlp_ratio=2.0), source.state_dict())


@pytest.mark.parametrize(
    ("change", "way"),
    [
        ({"width": 32}, "type --width 64$"),
        ({"patch_size": 16, "depth": 1}, "type --depth 2 and --patch-size 8$"),
    ],
)
def test_another_architecture_is_described_with_the_flags_that_fit(source, change: dict, way: str) -> None:
    with pytest.raises(ValueError, match=f"they have 64 channels, 2 blocks, patches of 8 pixels and a dist.*{way}"):
        load_pretrained(fresh(**change), source.state_dict())


def test_an_official_model_in_anothers_place_is_named() -> None:
    with pytest.raises(ValueError, match=r"they have 192 channels, 12 blocks.*: type --model deit_tiny_patch16_224$"):
        load_pretrained(create_model("deit_small_patch16_224"), create_model("deit_tiny_patch16_224").state_dict())


def test_a_plain_checkpoint_does_not_silently_fill_a_distilled_model() -> None:
    plain = create_model("deit_tiny_patch16_224", **SMALL)
    with pytest.raises(ValueError, match=r"and no distillation token, .*: type a --model without _distilled in its"):
        load_pretrained(fresh(), plain.state_dict())


@pytest.mark.parametrize("method", ["official", "timm"])
@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 10)), ((7, 28), (14, 14)), ((6, 4), (3, 9))])
def test_position_embeddings_go_to_and_from_grids_that_are_not_square(method: str, old, new) -> None:
    pos_embed = torch.randn(1, 2 + old[0] * old[1], 8)
    ours = resize_pos_embed(pos_embed, new, prefix_tokens=2, method=method, old_grid=old)
    if method == "timm":
        theirs = resample_abs_pos_embed(pos_embed, list(new), list(old), num_prefix_tokens=2)
    else:
        patches = pos_embed[:, 2:].reshape(1, *old, 8).permute(0, 3, 1, 2)
        patches = torch.nn.functional.interpolate(patches, new, mode="bicubic", align_corners=False)
        theirs = torch.cat([pos_embed[:, :2], patches.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(ours, theirs)


def test_a_grid_that_cannot_be_told_must_be_given() -> None:
    with pytest.raises(ValueError, match="24 patch positions, which is not a square grid: give old_grid"):
        resize_pos_embed(torch.zeros(1, 25, 8), 5, prefix_tokens=1)
    with pytest.raises(ValueError, match=r"24 patch positions, which is no grid of \(5, 5\)"):
        resize_pos_embed(torch.zeros(1, 25, 8), 5, prefix_tokens=1, old_grid=(5, 5))


@pytest.mark.parametrize("method", ["official", "timm"])
def test_a_model_for_images_that_are_not_square_takes_square_weights_as_timms_does(source, method: str) -> None:
    ours = fresh(image_size=(64, 32)).eval()
    assert load_pretrained(ours, source.state_dict(), method) == [
        f"position embeddings resized from 18 to 34 tokens ({method})"
    ]
    assert ours.config.grid_size == (8, 4)
    sizes = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 7}
    theirs = timm.create_model(NAME, img_size=(64, 32), **sizes).eval()
    load_pretrained(theirs, source.state_dict(), method)
    images = torch.randn(2, 3, 64, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
    back = fresh().eval()
    load_pretrained(back, ours.state_dict(), method, old_grid=(8, 4))
    assert back(torch.randn(2, 3, 32, 32)).shape == (2, 7)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, "bomb.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth", "bare.pth"):
        with pytest.raises(ValueError, match="not loaded: save the tensors alone"):
            read_weights(name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_a_truncated_file_says_so(source, tmp_path, name: str) -> None:
    whole = tmp_path / f"whole{name[3:]}"
    save_file(source.state_dict(), whole) if name.endswith("safetensors") else torch.save(source.state_dict(), whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="copy or download it again"):
        read_weights(tmp_path / name)


def test_no_file_and_no_weights(tmp_path) -> None:
    with pytest.raises(ValueError, match="no weights file at"):
        read_weights(tmp_path / "none.pth")
    for contents in ({"epoch": 3}, {0: torch.zeros(2)}):
        torch.save(contents, tmp_path / "empty.pth")
        with pytest.raises(ValueError, match="holds no weights"):
            read_weights(tmp_path / "empty.pth")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match="is not a PyTorch weights file, whatever its name says"):
        read_weights(tmp_path / "page.pth")
