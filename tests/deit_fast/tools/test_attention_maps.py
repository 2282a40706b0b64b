"""The maps are the attention that the model computes, token by token."""

import pytest
import timm
import torch

from deit_fast import create_model
from deit_fast.tools.attention_maps import attention_maps

SMALL = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 3, "heads": 3, "classes": 5}


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"])
@pytest.mark.parametrize("block", [0, -1])
def test_maps_are_timms_attention_weights(name: str, block: int) -> None:
    torch.manual_seed(0)
    model = create_model(name, **SMALL).eval()
    theirs = timm.create_model(
        name, img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5
    ).eval()
    theirs.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    prefix = model.config.prefix_tokens
    attention = theirs.blocks[block].attn
    attention.fused_attn = False  # timm then has the weights in a tensor that can be seen
    seen = []
    attention.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    theirs(images)
    maps = attention_maps(model, images, block)
    assert maps.shape == (2, prefix, 3, 4, 4)
    torch.testing.assert_close(maps.flatten(3), seen[0][:, :, :prefix, prefix:].transpose(1, 2), rtol=1e-5, atol=1e-6)
    assert not model.blocks[block].attn.qkv._forward_hooks


def test_a_model_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="maps are drawn for a DeiT"):
        attention_maps(timm.create_model("test_efficientnet"), torch.randn(1, 3, 32, 32))
