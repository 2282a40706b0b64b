"""DeiT III: the same model by other sizes, against timm's, with and without a distillation token."""

import copy

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from deit_fast.model import CONFIGS, VisionTransformer, create_model

NAMES = [name for name in CONFIGS if name.startswith("deit3_")]
SMALL = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 3, "heads": 2, "classes": 7}
NAME, DISTILLED = "deit3_small_patch16_224", "deit3_small_distilled_patch16_224"


def small(name: str = DISTILLED, **changes) -> VisionTransformer:
    torch.manual_seed(0)
    return create_model(name, **{**SMALL, **changes})


def timms(name: str, depth: int) -> nn.Module:
    """timm's model; of a distilled one, which timm does not have, its distilled class with LayerScale."""
    if "distilled" not in name:
        return timm.create_model(name, depth=depth)
    sizes = CONFIGS[name]
    return VisionTransformerDistilled(
        img_size=sizes.image_size, patch_size=sizes.patch_size, embed_dim=sizes.width, num_heads=sizes.heads,
        depth=depth, init_values=1e-4,
    )  # fmt: skip


def test_the_models_are_timms_and_each_of_them_with_a_distillation_token() -> None:
    theirs = {name for name in timm.list_models("deit3_*")}
    assert {name for name in NAMES if "distilled" not in name} == theirs
    assert {name.replace("_distilled", "") for name in NAMES if "distilled" in name} == theirs


def check_against_timm(name: str, depth: int) -> None:
    torch.manual_seed(0)
    theirs, ours = timms(name, depth).eval(), create_model(name, depth=depth).eval()
    for parameter in theirs.parameters():  # LayerScale of 1e-4 would hide what the blocks compute
        nn.init.normal_(parameter, std=0.05)
    weights = theirs.state_dict()
    if ours.config.distilled:  # timm's class has positions for its tokens, which 0 makes ineffective
        weights["pos_embed"][:, :2] = 0
        weights["pos_embed"] = weights["pos_embed"][:, 2:]
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [(k, v.shape) for k, v in weights.items()]
    ours.load_state_dict(weights, strict=True)
    images = torch.randn(1, 3, ours.config.image_size, ours.config.image_size)
    with torch.inference_mode():
        expected, logits = theirs(images), ours(images)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", [name for name in NAMES if "384" not in name])
def test_timm_weights_load_strictly_and_give_the_same_logits(name: str) -> None:
    check_against_timm(name, depth=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_timm_weights_give_the_same_logits_at_full_depth(name: str) -> None:
    check_against_timm(name, depth=CONFIGS[name].depth)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("deit3_small_patch16_224", 22.1), ("deit3_medium_patch16_224", 38.8), ("deit3_base_patch16_224", 86.6),
        ("deit3_base_patch16_384", 86.9), ("deit3_large_patch16_224", 304.4), ("deit3_huge_patch14_224", 632.1),
    ],
)  # fmt: skip
def test_the_parameter_counts_of_the_official_readme(name: str, millions: float) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in create_model(name).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_head_dims_are_those_of_the_attention_kernels() -> None:
    assert {CONFIGS[name].width // CONFIGS[name].heads for name in NAMES} == {64, 80}


def test_initialisation_is_the_official_one() -> None:
    model = create_model(NAME, depth=2)
    scales = {name: value for name, value in model.named_parameters() if name.endswith("gamma")}
    assert list(scales) == [f"blocks.{block}.ls{branch}.gamma" for block in (0, 1) for branch in (1, 2)]
    assert all((value == 1e-4).all() for value in scales.values())
    for value in (model.cls_token, model.pos_embed, model.head.weight):
        assert value.std().item() == pytest.approx(0.02, rel=4 / (2 * value.numel()) ** 0.5)


def test_the_distilled_model_is_the_plain_one_and_a_token() -> None:
    plain, distilled = small(NAME), small(DISTILLED)
    theirs = distilled.state_dict()
    assert theirs.keys() - plain.state_dict().keys() == {"dist_token", "head_dist.weight", "head_dist.bias"}
    for name, value in plain.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("name", [NAME, DISTILLED])
def test_no_token_before_the_patches_has_a_position(name: str) -> None:
    model, seen = small(name), []
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, 32, 32)
    model(images)
    prefix = model.config.prefix_tokens
    assert model.pos_embed.shape == (1, 16, 64) and seen[0].shape == (2, 16 + prefix, 64)
    tokens = [model.cls_token, *([model.dist_token] if prefix == 2 else [])]
    assert torch.equal(seen[0][:, :prefix], torch.cat(tokens, 1).expand(2, -1, -1))
    torch.testing.assert_close(seen[0][:, prefix:], model.patch_embed(images) + model.pos_embed)


def test_stochastic_depth_is_the_same_in_every_block() -> None:
    assert small(drop_path_rate=0.4).drop_path_rates() == [0.4] * 3


def test_layer_scale_multiplies_a_branch_before_stochastic_depth() -> None:
    block, x = small(depth=1).blocks[0], torch.randn(2, 5, 64)
    with torch.no_grad():
        block.ls1.gamma.normal_()
    attended = block.attn(block.norm1(x))
    expected = x + 2 * (attended * block.ls1.gamma)
    torch.testing.assert_close(block(x, torch.tensor([2.0, 0.0]).view(2, 1, 1, 1)), expected)


@pytest.mark.parametrize("residual", [None, torch.bfloat16])
def test_the_sums_between_blocks_keep_their_type(residual: torch.dtype | None) -> None:
    model, types = small(), []
    model.residual_dtype = residual
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 3, 32, 32), torch.ones(3, 2, 2))
    assert set(types) == {residual or torch.float32}


def test_the_graph_is_whole() -> None:
    model = small().train()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    images, scales = torch.randn(3, 3, 32, 32), torch.rand(3, 2, 3)
    torch.testing.assert_close(compiled(images, scales), model(images, scales))


def test_an_image_that_patches_of_14_do_not_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size 160 is not a multiple of patch_size 14: use 154"):
        create_model("deit3_huge_patch14_224", image_size=160)
