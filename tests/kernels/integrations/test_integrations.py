"""Our attention inside timm's and Hugging Face's models: the outputs and gradients of the model that it replaces."""

import copy
import importlib
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from deit_kernels import integrations
from deit_kernels.integrations import models, patch_timm, register_huggingface

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}


def make_timm(name: str = "deit_tiny_distilled_patch16_224", **changes) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **changes})


def outputs_and_gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    model.zero_grad()
    logits = model(images)
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our functions, as a model calls them."""
    made: list[str] = []
    for name in ("attention", "attention_qkvpacked"):
        original = getattr(models, name)

        def counted(*args, name=name, original=original, **kwargs):
            made.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(models, name, counted)
    return made


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
def test_a_patched_timm_model_computes_the_same(name: str, calls: list[str]) -> None:
    model, images = make_timm(name), torch.randn(2, 3, 32, 32)
    expected, state = outputs_and_gradients(model, images), set(model.state_dict())
    assert patch_timm(model) == (2, {})
    assert set(model.state_dict()) == state
    torch.testing.assert_close(outputs_and_gradients(model, images), expected)
    assert calls == ["attention_qkvpacked"] * 2
    assert patch_timm(model) == (0, {}), "a second call changes nothing"


def test_timm_modules_that_are_left_alone_say_why() -> None:
    normed = make_timm("vit_tiny_patch16_224", qk_norm=True)
    patch = patch_timm(normed)
    assert patch.changed == 0
    assert patch.skipped == {f"blocks.{i}.attn": "it normalises queries and keys" for i in range(2)}
    windows = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24)
    patch = patch_timm(windows)
    assert patch.changed == 0 and len(patch.skipped) == 4
    assert all("WindowAttention is not timm.layers.Attention" in reason for reason in patch.skipped.values())


def test_strict_refuses_a_model_with_an_attention_that_must_stay(calls: list[str]) -> None:
    model = make_timm()
    model.blocks[1].attn.q_norm = nn.LayerNorm(16)
    with pytest.raises(ValueError, match=r"so none was\. blocks\.1\.attn: it normalises queries and keys"):
        patch_timm(model, strict=True)
    model(torch.randn(1, 3, 32, 32))
    assert calls == [], "nothing was changed"
    with pytest.raises(ValueError, match="a EfficientNet has no attention module"):
        patch_timm(timm.create_model("test_efficientnet"), strict=True)
    whole = make_timm()
    assert patch_timm(whole, strict=True) == (2, {}) and patch_timm(whole, strict=True) == (0, {})


def test_masks_and_dropout_go_timms_way(calls: list[str]) -> None:
    model = make_timm()
    attention = model.blocks[0].attn
    tokens, mask = torch.randn(2, 5, 48), torch.ones(5, 5, dtype=torch.bool).tril()
    expected = attention(tokens, attn_mask=mask)
    patch_timm(model)
    assert torch.equal(attention(tokens, attn_mask=mask), expected)
    attention.attn_drop.p = 0.5
    attention.train()(tokens)
    assert calls == []
    attention.eval()(tokens)
    assert calls == ["attention_qkvpacked"]


def test_a_patched_model_is_copied_saved_and_compiled() -> None:
    model, images = make_timm(), torch.randn(2, 3, 32, 32)
    patch_timm(model.eval())
    expected = model(images)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(model), loaded, torch.compile(model, fullgraph=True, backend="aot_eager")):
        torch.testing.assert_close(other(images), expected)
    packed = integrations.PackedTimmAttention
    assert type(loaded.blocks[0].attn) is packed
    assert (packed.__module__, packed.__qualname__) == ("deit_kernels.integrations", "PackedTimmAttention"), (
        "in pickles"
    )


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "crossvit_9_240"])
def test_a_feature_extractor_of_a_patched_model_calls_our_attention(name: str, calls: list[str]) -> None:
    model, side, node = (timm.create_model(name), 240, "mean") if "cross" in name else (make_timm(name), 32, "truediv")
    images = torch.randn(2, 3, side, side)
    expected = model.eval()(images)  # the logits, which the node gives
    changed = patch_timm(model).changed
    extractor = timm.models.create_feature_extractor(model, [node])
    assert calls == [], "tracing computes nothing"
    torch.testing.assert_close(extractor.eval()(images)[node], expected)
    assert calls == ["attention_qkvpacked"] * changed


def test_a_traced_graph_is_pickled_and_takes_a_mask(calls: list[str]) -> None:
    model, images = make_timm(), torch.randn(2, 3, 32, 32)
    mask = torch.ones(18, 18, dtype=torch.bool).tril()
    expected, masked = model.eval()(images), model(images, attn_mask=mask)
    patch_timm(model)
    graph = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(model)))
    torch.testing.assert_close(graph(images), expected)
    assert calls == ["attention_qkvpacked"] * 2
    torch.testing.assert_close(graph(images, mask), masked)
    assert len(calls) == 2, "with a mask SDPA runs"


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_patched_model_is_scripted_and_computes_the_same(calls: list[str]) -> None:
    model, images = make_timm(), torch.randn(2, 3, 32, 32)
    expected = outputs_and_gradients(model.eval(), images)
    patch_timm(model)
    scripted = torch.jit.script(model)
    torch.testing.assert_close(outputs_and_gradients(scripted, images), expected)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(images), expected[0])
    assert calls == []
    model(images)
    assert calls == ["attention_qkvpacked"] * 2, "the model itself keeps our attention"


@pytest.mark.parametrize("family", ["ViT", "DeiT"])
def test_a_hugging_face_model_computes_the_same(family: str, calls: list[str]) -> None:
    config = getattr(transformers, f"{family}Config")(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=32, patch_size=8,
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images).last_hidden_state
    assert calls == []
    model.set_attn_implementation(register_huggingface())
    torch.testing.assert_close(model(images).last_hidden_state, expected)
    assert calls == ["attention"] * 2


def test_a_causal_hugging_face_model_stays_causal(calls: list[str]) -> None:
    config = transformers.GPT2Config(n_embd=48, n_layer=1, n_head=3, vocab_size=11, attn_implementation="sdpa")
    model = transformers.GPT2Model(config).eval()
    ids = torch.arange(10)[None]
    expected = model(ids).last_hidden_state
    model.set_attn_implementation(register_huggingface())
    torch.testing.assert_close(model(ids).last_hidden_state, expected)
    assert calls == []


def test_only_a_known_name_is_made_on_demand() -> None:
    module = importlib.import_module("deit_kernels.integrations")
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = module.Nothing
