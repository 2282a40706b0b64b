"""`load`: a model from a run, a file, an exported folder or a name, ready to be used; what is none says so."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import deit_fast
from deit_fast import create_model, load
from deit_fast.config import Config
from deit_fast.data import EvalLoader, open_dataset
from deit_fast.files import sha256_of
from deit_fast.scores import evaluate
from deit_fast.tools.export.card import Differences, model_card
from deit_fast.weights import exported, trained
from deit_fast.weights.build import normalisation
from deit_fast.weights.huggingface import huggingface_config, to_huggingface

NAME = "deit_tiny_distilled_patch16_224"
SMALL = {"image_size": 32, "patch_size": 8, "width": 192, "depth": 2, "heads": 3, "classes": 5}
SAME = Differences(0.0, 0.0, None)
CLASSES = [f"kind {label}" for label in range(5)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model(NAME, **SMALL).eval()


def same_weights(model, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_run_scores_what_its_summary_says(finished_run: Path) -> None:
    loaded = load(finished_run)
    assert loaded.classes == ["class0", "class1", "class2"]
    config = Config.from_json(finished_run / "config.json")
    assert loaded.preprocessing == config.preprocessing(normalisation(loaded.model))
    scores = evaluate(loaded.model, EvalLoader(open_dataset(config.data)[1], loaded.policy, batch_size=15))
    which = "ema" if "moving average" in loaded.source else "student"
    assert scores["fused"]["loss"] == pytest.approx(loaded.summary[which]["fused"]["loss"], rel=1e-6)
    best = max(loaded.summary[part]["fused"]["top1"] for part in ("student", "ema"))
    assert loaded.summary[which]["fused"]["top1"] == best


def test_a_checkpoint_file_of_a_run_knows_its_run(finished_run: Path) -> None:
    (file,) = finished_run.glob("checkpoints/*6/ema.safetensors")
    loaded = load(file)
    assert loaded.classes == ["class0", "class1", "class2"]
    assert "moving average at step 6" in loaded.source
    assert loaded.scores == loaded.summary["ema"]
    assert torch.equal(loaded.model.norm.weight, load_file(file)["norm.weight"])


def test_the_best_weights_of_a_run_know_it_too(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (file,) = run.glob("checkpoints/*6/model.safetensors")
    best = shutil.copy(file, run / "checkpoints" / "best_00000006.safetensors")
    assert load(best).classes == ["class0", "class1", "class2"]
    assert load(best).source.endswith("run, best weights at step 6")
    assert load(best).scores is None


def test_the_scores_of_the_end_are_not_those_of_an_earlier_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (last,) = run.glob("checkpoints/*6")
    earlier = last.with_name("step_00000003")
    assert load(last / "model.safetensors").scores == load(run).summary["student"]
    assert load(earlier / "model.safetensors").scores is None
    assert "None is known for these weights" in model_card(load(earlier / "model.safetensors"), "timm", "timm", SAME)


def test_an_unfinished_run_is_used_and_said_to_be_one(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    assert load(tmp_path / "run").source.endswith("run, last weights at step 6, of an unfinished run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        load(tmp_path / "run")


def test_an_official_file_gives_its_sizes(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, path)
    loaded = load(path)
    assert loaded.model.config == model.config and same_weights(loaded.model, model)
    assert (loaded.policy.size, loaded.policy.crop_ratio, loaded.release) == (32, 0.875, "")
    assert loaded.classes == [f"class {label}" for label in range(5)]


def test_a_release_is_told_by_its_hash(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / f"{NAME}-b40b3cf7.pth"
    torch.save({"model": model.state_dict()}, named)
    with pytest.raises(ValueError, match="is not the released file of that name"):
        load(named)
    digest = sha256_of(named)[:8]
    monkeypatch.setitem(exported.RELEASES, NAME, digest)
    assert load(named.rename(tmp_path / f"{NAME}-{digest}.pth")).release == NAME


def test_a_thousand_classes_are_imagenets() -> None:
    assert exported.class_names(1000)[0].startswith("tench")


def test_heads_that_tensors_do_not_tell_are_asked_for(tmp_path: Path) -> None:
    odd = create_model(NAME, **{**SMALL, "width": 48})
    save_file(odd.state_dict(), tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"48 channels are no official model's: type --heads N"):
        load(tmp_path / "odd.safetensors")
    assert load(tmp_path / "odd.safetensors", heads=3).model.config == odd.config


def test_a_timm_file_by_its_architecture(tmp_path: Path) -> None:
    theirs = timm.create_model("test_efficientnet", num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"holds no DeiT .* type --architecture NAME"):
        load(tmp_path / "net.pth")
    loaded = load(tmp_path / "net.pth", architecture="test_efficientnet")
    assert same_weights(loaded.model, theirs)
    assert (loaded.policy.size, loaded.policy.crop_ratio) == (160, 0.95)


def test_what_tells_its_sizes_is_not_told(finished_run: Path) -> None:
    file = sorted((finished_run / "checkpoints").rglob("*.safetensors"))[0]
    for source, options, says in [
        (finished_run, {"architecture": "resnet18"}, "--architecture is only for a weights file; a run already tells"),
        (file, {"heads": 2}, "--heads is only for a weights file; a checkpoint of a run already tells its sizes"),
        ("deit_tiny_patch16_224", {"architecture": "resnet18", "heads": 2}, "--architecture and --heads are only for"),
    ]:
        with pytest.raises(ValueError, match=f"{says}.*: leave (it|them) out$"):
            load(source, **options)


def test_a_folder_of_transformers(model, tmp_path: Path) -> None:
    save_file(to_huggingface(model.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(model, CLASSES)))
    processor = {
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "size": {"shortest_edge": 40},
        "do_center_crop": True,
        "resample": 2,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load(tmp_path)
    assert same_weights(loaded.model, model) and loaded.classes == CLASSES
    assert (loaded.policy.mean, loaded.policy.std, loaded.policy.crop_ratio) == ((0.5,) * 3, (0.25,) * 3, 0.8)
    assert loaded.policy.interpolation == "bilinear"

    (tmp_path / "config.json").write_text(json.dumps({**huggingface_config(model, CLASSES), "hidden_act": "relu"}))
    with pytest.raises(ValueError, match="computes with relu, ours with gelu"):
        load(tmp_path)


@pytest.mark.parametrize("eps", [0.3, None])
def test_a_folder_of_transformers_keeps_its_layer_norm_eps(model, tmp_path: Path, eps: float | None) -> None:
    """None: the key is left out, and transformers' default counts."""
    transformers = pytest.importorskip("transformers")
    config = huggingface_config(model, CLASSES)
    del config["layer_norm_eps"]
    config |= {} if eps is None else {"layer_norm_eps": eps}
    save_file(to_huggingface(model.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = getattr(transformers, config["architectures"][0]).from_pretrained(tmp_path).eval()
    loaded = load(tmp_path)
    assert loaded.model.config.layer_norm_eps == theirs.config.layer_norm_eps
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.model(images), theirs(images).logits, rtol=1e-5, atol=1e-5)
    assert huggingface_config(loaded.model, CLASSES)["layer_norm_eps"] == theirs.config.layer_norm_eps
    assert load(tmp_path, image_size=48).model.config.layer_norm_eps == theirs.config.layer_norm_eps


@pytest.mark.parametrize("name", [NAME, "test_efficientnet"])
def test_a_folder_of_timm(name: str, tmp_path: Path) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2} if name == NAME else {}
    theirs = timm.create_model(name, num_classes=5, **sizes).eval()
    timm.models.save_for_hf(theirs, tmp_path, {"label_names": CLASSES}, sizes, safe_serialization=True)
    loaded = load(tmp_path)
    assert loaded.classes == CLASSES
    assert isinstance(loaded.model, deit_fast.VisionTransformer) == (name == NAME)
    images = torch.randn(2, 3, loaded.policy.size, loaded.policy.size)
    torch.testing.assert_close(loaded.model(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_images_are_prepared_as_timm_prepares_them(tmp_path: Path) -> None:
    theirs = timm.create_model("test_vit", num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    loaded = load(tmp_path / "vit.pth", architecture="test_vit")
    image = Image.effect_mandelbrot((300, 220), (-2, -1, 1, 1), 30).convert("RGB")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    image.save(tmp_path / "image.png")
    assert torch.equal(loaded.prepare([loaded.read(tmp_path / "image.png")])[0], transform(image))
    ((path, top),) = loaded.predict([tmp_path / "image.png"], top=2)
    expected = theirs(transform(image)[None]).softmax(-1)[0]
    assert path == str(tmp_path / "image.png") and len(top) == 2
    assert top[0][2] == pytest.approx(expected.max().item(), rel=1e-5)
    assert top[0][:2] == (f"class {expected.argmax()}", expected.argmax().item())


def test_a_name_is_fetched_and_its_failure_says_which_file(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, num_classes=1000).eval()
    monkeypatch.setattr(trained, "timm_model", lambda name, **_: theirs)
    loaded = load(NAME)
    assert same_weights(loaded.model, theirs) and loaded.classes[0].startswith("tench")
    monkeypatch.undo()
    monkeypatch.setattr(timm, "create_model", _offline)
    with pytest.raises(ValueError, match=r"huggingface\.co/timm/deit_tiny.*copy it here, and type its path"):
        load(NAME)


def _offline(*arguments, **options):
    raise OSError("no network")


def test_what_is_no_model_says_so(tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    for source, says in [
        ("deit_tiny_distiled_patch16_224", "did you mean deit_tiny_distilled_patch16_224 or deit_[^t]"),
        ("regnety_16", "did you mean regnety_"),
        (tmp_path / "nothing.pth", "there is no file or folder"),
        (tmp_path / "empty", "holds no model: expected a run"),
        (tmp_path / "photo.jpg", "is not a weights file"),
    ]:
        with pytest.raises(ValueError, match=says):
            load(source)
    bare = to_huggingface(create_model(NAME, **SMALL).state_dict())
    save_file({key: value for key, value in bare.items() if "classifier" not in key}, tmp_path / "model.safetensors")
    config = dataclasses.asdict(Config())  # a foreign config.json with our keys does not matter
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "deit", "num_attention_heads": 3}))
    with pytest.raises(ValueError, match="a deit without a classifier"):
        load(tmp_path)


def test_a_run_still_says_what_it_began_with(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"weights": "/somewhere/begun-with.safetensors"}))
    loaded = load(run)
    assert loaded.config.weights == "/somewhere/begun-with.safetensors"
    card = model_card(loaded, "timm", "timm", SAME)
    assert "--weights begun-with.safetensors" in card and "/somewhere" not in card
