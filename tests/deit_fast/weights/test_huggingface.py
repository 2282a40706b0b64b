"""Hugging Face's names for our weights: bitwise in both directions, logits within 1e-5."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from deit_fast import create_model, load_pretrained, read_weights
from deit_fast.weights.huggingface import from_huggingface, huggingface_config, is_huggingface, to_huggingface

SMALL = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 3, "classes": 7}
NAMES = ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"]
CLASSES = [f"class {label}" for label in range(7)]


def ours(name: str):
    torch.manual_seed(0)
    return create_model(name, **SMALL).eval()


def theirs(model):
    """The transformers model of our configuration, with weights of its own."""
    config = huggingface_config(model, CLASSES)
    kind = transformers.DeiTConfig if config["model_type"] == "deit" else transformers.ViTConfig
    torch.manual_seed(1)
    return getattr(transformers, config["architectures"][0])(kind(**config)).eval()


def equal(weights, others) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_what_we_write_and_agrees(name: str, tmp_path) -> None:
    model = ours(name)
    save_file(to_huggingface(model.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(model, CLASSES)))
    architecture = type(theirs(model))
    loaded, report = architecture.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.id2label[3] == "class 3"
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(images).logits, model(images), rtol=1e-5, atol=1e-5)
    assert equal(from_huggingface(loaded.state_dict()), model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_we_read_what_transformers_writes_and_agree(name: str, tmp_path) -> None:
    model = ours(name)
    other = theirs(model)
    other.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    for source in (file, other.state_dict()):  # two sets of names in transformers 5
        assert load_pretrained(model, source) == []
        images = torch.randn(3, 3, 32, 32)
        torch.testing.assert_close(model(images), other(images).logits, rtol=1e-5, atol=1e-5)
    assert equal(to_huggingface(model.state_dict()), load_file(file))


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_bitwise(name: str) -> None:
    state = ours(name).state_dict()
    assert is_huggingface(to_huggingface(state)) and not is_huggingface(state)
    assert equal(read_weights(to_huggingface(state)), state)


def test_a_bare_model_with_its_pooler_lacks_only_the_heads() -> None:
    model = ours(NAMES[0])
    bare = transformers.DeiTModel(transformers.DeiTConfig(**huggingface_config(model, CLASSES)))
    missing = model.state_dict().keys() - from_huggingface(bare.state_dict()).keys()
    assert missing == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_weights_that_are_not_whole_or_not_a_deits_are_refused() -> None:
    weights = to_huggingface(ours(NAMES[0]).state_dict())
    del weights["deit.encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(ValueError, match=r"lack the key of blocks\.1\.attn\.qkv\.weight"):
        from_huggingface(weights)
    model = ours(NAMES[0])
    one_head = transformers.DeiTForImageClassification(transformers.DeiTConfig(**huggingface_config(model, CLASSES)))
    with pytest.raises(ValueError, match="load the file of a DeiTForImageClassificationWithTeacher"):
        from_huggingface(one_head.state_dict())
    with pytest.raises(ValueError, match=r"blocks\.0\.ls1\.gamma has no counterpart"):
        to_huggingface({"blocks.0.ls1.gamma": torch.zeros(1)})
