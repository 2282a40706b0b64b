"""The model against timm, the official initialisation, and its own contracts."""

import copy

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from deit_fast.model import CONFIGS, FUSIONS, VisionTransformer, ViTConfig, create_model, drop_path_scales, fuse

SMALL = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 3, "heads": 2, "classes": 7}
NAMES = [
    pytest.param(name, marks=[] if "tiny" in name or name == "deit_small_distilled_patch16_224" else pytest.mark.slow)
    for name in CONFIGS
    if name.startswith("deit_")  # DeiT III: test_model_deit3.py
]


def small(distilled: bool = True, **changes):
    torch.manual_seed(0)
    name = f"deit_tiny{'_distilled' if distilled else ''}_patch16_224"
    return create_model(name, **{**SMALL, **changes})


def test_the_eight_official_models_are_there() -> None:
    assert len(NAMES) == 8


@pytest.mark.parametrize("name", NAMES)
def test_timm_weights_load_strictly_and_give_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    theirs, ours = timm.create_model(name).eval(), create_model(name).eval()
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, ours.config.image_size, ours.config.image_size)
    with torch.inference_mode():
        expected, logits = theirs(images), ours(images)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_parameter_count_of_the_paper() -> None:
    assert sum(p.numel() for p in create_model("deit_tiny_distilled_patch16_224").parameters()) == 5_910_800


def test_initialisation_is_the_official_one() -> None:
    torch.manual_seed(0)
    model = create_model("deit_tiny_distilled_patch16_224")
    normal = {"cls_token", "pos_embed", "dist_token"}
    for name, value in model.named_parameters():
        if name in normal or (name.endswith("weight") and value.ndim == 2):
            # 4 standard errors of a standard deviation from n normal draws.
            assert value.std().item() == pytest.approx(0.02, rel=4 / (2 * value.numel()) ** 0.5), name
        elif name == "patch_embed.proj.weight":
            bound = 768**-0.5  # torch's default for a convolution with 3·16·16 inputs
            assert 0.99 * bound < value.abs().max().item() <= bound
        elif name.endswith("bias") and name != "patch_embed.proj.bias":
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name


def test_the_distilled_model_draws_the_plain_one_first() -> None:
    # The official class initialises the plain ViT and then adds to it: equal seeds give equal blocks and heads.
    plain, distilled = small(distilled=False), small(distilled=True)
    for name, value in plain.state_dict().items():
        if name != "pos_embed":
            assert torch.equal(value, distilled.state_dict()[name]), name


def test_training_returns_two_heads_and_evaluation_one_tensor() -> None:
    images = torch.randn(2, 3, 32, 32)
    cls_logits, dist_logits = small().train()(images)
    assert cls_logits.shape == dist_logits.shape == (2, 7)
    assert small(distilled=False).train()(images).shape == (2, 7)
    assert small().eval()(images).shape == (2, 7)


def test_fusions() -> None:
    cls_logits, dist_logits = torch.randn(2, 4, 5, dtype=torch.float64).unbind()
    assert torch.equal(fuse(cls_logits, dist_logits, "cls"), cls_logits)
    assert torch.equal(fuse(cls_logits, dist_logits, "dist"), dist_logits)
    assert torch.allclose(fuse(cls_logits, dist_logits, "logits"), (cls_logits + dist_logits) / 2)
    mean = (cls_logits.softmax(-1) + dist_logits.softmax(-1)) / 2
    assert torch.allclose(fuse(cls_logits, dist_logits, "softmax").softmax(-1).double(), mean, atol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_model_evaluates_by_its_fusion(fusion: str) -> None:
    images = torch.randn(2, 3, 32, 32)
    model = small().eval()
    fused = create_model("deit_tiny_distilled_patch16_224", fusion=fusion, **SMALL).eval()
    fused.load_state_dict(model.state_dict())
    assert torch.equal(fused(images), fuse(*model.heads(images), fusion))


def test_patches_are_as_good_as_images() -> None:
    images = torch.randn(2, 3, 32, 32)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(2, 16, 192)
    model = small().eval()
    assert torch.allclose(model(patches), model(images), atol=1e-6)


def test_drop_path_is_a_function_of_seed_step_and_position() -> None:
    rates = [0.0, 0.25, 0.5]
    whole = drop_path_scales(3, 17, range(8), rates)
    assert whole.shape == (3, 2, 8)
    halves = [drop_path_scales(3, 17, range(start, start + 4), rates) for start in (0, 4)]
    assert torch.equal(torch.cat(halves, dim=2), whole)
    for other in (drop_path_scales(4, 17, range(8), rates), drop_path_scales(3, 18, range(8), rates)):
        assert not torch.equal(other, whole)


def test_drop_path_keeps_the_expectation() -> None:
    scales = drop_path_scales(0, 0, range(20_000), [0.0, 0.2])
    assert (scales[0] == 1).all()
    assert set(scales[1].unique().tolist()) == {0.0, 1.25}
    assert scales[1].mean(dim=1).tolist() == pytest.approx([1, 1], abs=0.015)  # 4 standard errors
    assert not torch.equal(scales[1, 0], scales[1, 1])  # attention and MLP are dropped independently


def test_a_dropped_branch_contributes_nothing_and_a_kept_one_is_scaled() -> None:
    model = small(depth=1).eval()
    images = torch.randn(1, 3, 32, 32)
    block, tokens = model.blocks[0], torch.randn(1, 5, 64)
    attention = block.attn(block.norm1(tokens))
    expected = tokens + 2 * attention
    assert torch.allclose(block(tokens, torch.tensor([2.0, 0.0]).view(2, 1, 1, 1)), expected, atol=1e-6)
    assert torch.equal(model.features(images, torch.ones(1, 2, 1)), model.features(images))


@pytest.mark.parametrize("distilled", [False, True])
def test_the_last_block_computes_only_the_tokens_that_the_heads_read(distilled: bool) -> None:
    config = ViTConfig(32, 8, 64, 3, 2, 5, distilled)
    model = VisionTransformer(config).double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    scales = torch.rand(3, 2, 3, dtype=torch.float64)
    tokens = model.features(images, scales)
    whole = [model.head(tokens[:, 0])] + ([model.head_dist(tokens[:, 1])] if distilled else [])
    short = [logits for logits in model.heads(images, scales) if logits is not None]
    for mine, theirs in zip(short, whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    gradients = (torch.autograd.grad(sum(logits.sin().sum() for logits in both), parameters) for both in (short, whole))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model.heads(images)
    with FlopCounterMode(display=False) as everything, torch.no_grad():
        model.features(images)
    left_out = (config.grid**2 * 64 * 64 * (1 + 2 * 4)) * 2 * 3  # projection and MLP of the patches of 3 images
    heads = 3 * 64 * 5 * 2 * (1 + distilled)
    assert everything.get_total_flops() - counted.get_total_flops() == left_out - heads


def test_training_without_a_mask_draws_one() -> None:
    model = small(drop_path_rate=0.5).train()
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model(images)[0], model(images)[0])
    assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize("drop_path", [False, True])
def test_the_graph_is_whole(drop_path: bool) -> None:
    model = small(drop_path_rate=0.1).train()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    images, scales = torch.randn(3, 3, 32, 32), torch.rand(3, 2, 3) if drop_path else torch.ones(3, 2, 3)
    expected, actual = model(images, scales), compiled(images, scales)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("deit_smal_distilled_patch16_224", {}, "deit_small_distilled_patch16_224"),
        ("deit_tiny_patch16_224", {"image_size": 100}, "not a multiple of patch_size 16: use 96"),
        ("deit_tiny_patch16_224", {"heads": 5}, "width 192 is not a multiple of heads 5"),
        ("deit_tiny_patch16_224", {"colour": 5}, "unknown model size colour: the sizes are image_size"),
        ("deit_tiny_patch16_224", {"drop_path_rate": 1.0}, "drop_path_rate is a probability"),
        ("deit_tiny_patch16_224", {"fusion": "dist"}, "no distillation token"),
        ("deit_tiny_distilled_patch16_224", {"fusion": "mean"}, "fusion is one of"),
    ],
)
def test_a_wrong_name_or_size_says_what_to_type(name: str, changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        create_model(name, **changes)
