"""Exports: the other library loads them and agrees, the way back is bitwise, the card is true and its code runs."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch import Tensor, nn

from deit_fast import create_model, load
from deit_fast.data import open_dataset
from deit_fast.recipes.named import parse
from deit_fast.tools.export import card as model_card
from deit_fast.tools.export import formats as export
from deit_fast.tools.export.__main__ import main
from deit_fast.tools.export.card import Differences, class_map
from deit_fast.tools.export.formats import FORMS
from deit_fast.weights import pretrained
from tests.deit_fast.conftest import write_images

ROOT = Path(__file__).parents[4]
NAME = "deit_tiny_distilled_patch16_224"
SAME = Differences(0.0, 0.0, None)
SMALL = {"image_size": 32, "patch_size": 8, "depth": 2, "classes": 5}


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The finished run in all three forms, by the command; and in ONNX for tensors."""
    folder = tmp_path_factory.mktemp("exported")
    for to in FORMS:
        assert main([str(finished_run), "--to", to, "--out", str(folder / to)]) == 0
    assert main([str(finished_run), "--to", "onnx", "--input", "tensor", "--out", str(folder / "tensor")]) == 0
    return {to: folder / to for to in (*FORMS, "tensor")}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A file as the official code saves it."""
    torch.manual_seed(0)
    torch.save({"model": create_model(NAME, **SMALL).state_dict()}, tmp_path / "official.pth")
    return tmp_path / "official.pth"


@pytest.mark.parametrize("to", ["tensor", "timm", "hf"])
def test_the_other_library_agrees(exported: dict[str, Path], finished_run: Path, to: str) -> None:
    read = export._read_onnx if to == "tensor" else FORMS[to].read
    model, theirs = load(finished_run).model, read(exported[to])
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 16, 16)
        torch.testing.assert_close(theirs(images), model(images), rtol=0, atol=1e-4 if to == "tensor" else 1e-5)


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_the_way_back_is_bitwise(exported: dict[str, Path], finished_run: Path, to: str) -> None:
    back, origin = load(exported[to]), load(finished_run)
    assert same_weights(back.model, origin.model)
    assert back.classes == origin.classes
    assert back.model.config == dataclasses.replace(origin.model.config, drop_path_rate=0.0)
    # Hugging Face keeps the resized side, timm the ratio.
    assert int(16 / back.policy.crop_ratio) == int(16 / origin.policy.crop_ratio) == 18
    assert dataclasses.replace(back.policy, crop_ratio=origin.policy.crop_ratio) == origin.policy


@pytest.mark.parametrize("name", [NAME, "deit_tiny_patch16_224"])
def test_official_to_timm_to_hugging_face_and_back_changes_no_bit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(name, **SMALL).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "official.pth")
    chain = [tmp_path / "official.pth", tmp_path / "timm", tmp_path / "hf", tmp_path / "timm-again"]
    for to, source, target in zip(("timm", "hf", "timm"), chain, chain[1:], strict=False):
        export.export(load(source), to, target)
        assert same_weights(load(target).model, model)
    weights = load_file(chain[-1] / "model.safetensors")
    assert same_weights(timm.create_model(f"local-dir:{chain[-1]}", pretrained=True), model)
    assert weights.keys() == model.state_dict().keys()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(load(chain[2]).model(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("to", FORMS)
def test_the_cards_code_runs_and_gives_the_answer_of_predict(
    exported: dict[str, Path], finished_run: Path, to: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    Image.effect_mandelbrot((40, 31), (-2, -1, 1, 1), 30).convert("RGB").save(tmp_path / "image.jpg")
    for file in exported[to].iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    ((_, top),) = load(finished_run).predict(["image.jpg"], top=1)
    assert capsys.readouterr().out.splitlines()[-1] == top[0][0]


def test_what_an_onnx_file_says_of_itself(exported: dict[str, Path]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported["tensor"] / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 16, 16]
    session = onnxruntime.InferenceSession(exported["onnx"] / "model.onnx")
    assert session.get_inputs()[0].shape == ["height", "width", 3]
    assert [each.name for each in session.get_outputs()] == ["probabilities", "labels", "logits", "pixels"]
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["classes"] == ["class0", "class1", "class2"]
    assert (facts["image_size"], facts["crop_ratio"], facts["mean"]) == (16, 0.875, [0.485, 0.456, 0.406])


def test_the_processor_of_hugging_face_prepares_images_alike(exported: dict[str, Path], finished_run: Path) -> None:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(exported["hf"])
    image = Image.effect_mandelbrot((300, 220), (-2, -1, 1, 1), 30).convert("RGB")
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    ours = load(finished_run).prepare([image])
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() <= 2.01 / 255 / 0.224, "two levels: its tensors are resized by torch, not Pillow"


def test_the_card_of_a_run(exported: dict[str, Path], finished_run: Path) -> None:
    card = (exported["timm"] / "README.md").read_text()
    origin = load(finished_run)
    which = "ema" if "moving average" in origin.source else "student"
    for head, label in (("cls", "class token"), ("dist", "distillation token"), ("fused", "fused, mean logits")):
        scores = origin.summary[which][head]
        assert f"| {label} | {scores['top1']:.2f} % | {scores['top5']:.2f} % | {scores['loss']:.4f} |" in card
    assert (
        "15 validation images, measured by the trainer" in card and f"{origin.summary['teacher']['top1']:.2f} %" in card
    )
    assert "24 training and 15 validation images of 3 classes (class0, class1, class2)" in card
    assert str(finished_run.parent) not in card and str(origin.config.data) not in card, "no path of this machine"
    (command,) = re.findall(r"python -m deit_fast\.train (.*)", card)
    config = parse(shlex.split(command), "")
    expected = {**origin.config.identity(), "data": Path(origin.config.data).name}
    assert config.identity() == expected


@pytest.mark.parametrize("folders", [["1", "2", "10"], ["Apple", "banana", "Cherry"]])
def test_timm_numbers_class_folders_as_we_do_by_the_exported_class_map(
    folders: list[str], finished_run: Path, tmp_path: Path
) -> None:
    root = write_images(tmp_path / "data", train=2, val=1)
    for number, name in enumerate(folders):
        for split in ("train", "val"):
            (root / split / f"class{number}").rename(root / split / name)
    for images in open_dataset(str(root)):
        labels = {images.path(index): label for index, label in enumerate(images.labels.tolist())}
        folder = str(Path(images.path(0)).parents[1])
        assert dict(ReaderImageFolder(folder).samples) != labels, "timm's own order is another"
        out = tmp_path / Path(folder).name
        export.export(dataclasses.replace(load(finished_run), classes=images.classes), "timm", out)
        assert dict(ReaderImageFolder(folder, class_map=str(out / "class_map.txt")).samples) == labels


def test_no_class_map_is_written_that_timm_would_read_otherwise() -> None:
    trained = SimpleNamespace(classes=["a", " b"], data=object())
    assert class_map(trained) == ""  # timm strips its lines
    trained.classes = ["a", "b"]
    assert class_map(trained) == "a\nb\n"


def test_the_card_passes_the_class_map_where_the_classes_are_known(
    exported: dict[str, Path], official: Path, tmp_path: Path
) -> None:
    cards = {to: (folder / "README.md").read_text() for to, folder in exported.items()}
    assert [to for to, card in cards.items() if "--class-map class_map.txt" in card] == ["timm"]
    assert (exported["timm"] / "class_map.txt").read_text() == "class0\nclass1\nclass2\n"
    export.export(load(official), "timm", tmp_path / "out")
    assert not (tmp_path / "out" / "class_map.txt").exists()
    assert "--class-map" not in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_a_release_quotes_its_published_accuracy(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = dataclasses.replace(load(official), release=NAME)
    card = model_card.model_card(loaded, "timm", "timm", SAME)
    assert "Top-1 74.5 %, top-5 91.9 %" in card and "Not measured again here" in card
    assert "None is known" in model_card.model_card(load(official), "timm", "timm", SAME)
    assert model_card.PUBLISHED.keys() == pretrained.RELEASES.keys()


def test_a_convnet_goes_to_timm_but_not_to_hugging_face(tmp_path: Path, capsys) -> None:
    net = timm.create_model("test_efficientnet", num_classes=3).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    command = [str(tmp_path / "net.pth"), "--architecture", "test_efficientnet", "--out", str(tmp_path / "out"), "--to"]
    assert main([*command, "hf"]) == 2
    assert "transformers' DeiT and ViT, and this is a EfficientNet: type --to timm or onnx" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pth"]
    assert main([*command, "timm"]) == 0
    assert same_weights(load(tmp_path / "out").model, net)


class Wavering(nn.Module):
    """A model whose path depends on what it sees."""

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        return means if means.sum() > 0 else -means


def test_a_model_that_onnx_cannot_hold_is_a_sentence(official: Path, tmp_path: Path) -> None:
    wavering = dataclasses.replace(load(official), model=Wavering().eval())
    with pytest.raises(ValueError, match=r"torch\.onnx cannot export a Wavering \(.*\)"):
        export.export(wavering, "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [official]


@pytest.mark.parametrize("fusion", ["softmax", "cls"])
def test_a_fusion_that_others_do_not_know_goes_to_onnx_only(official: Path, tmp_path: Path, fusion: str) -> None:
    trained = load(official)
    trained.model.fusion = fusion
    for to in ("timm", "hf"):
        with pytest.raises(ValueError, match=f"--fusion {fusion}: type --to onnx"):
            export.export(trained, to, tmp_path / to)
    assert export.export(trained, "onnx", tmp_path / "onnx").files < 1e-4
    assert "logits are averaged" not in (tmp_path / "onnx" / "README.md").read_text()


def test_a_wrong_export_is_noticed_and_not_handed_over(official: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def rounded(weights: dict[str, Tensor], folder: Path) -> None:
        write({key: value.half().float() for key, value in weights.items()}, folder)

    write = export._write_weights
    monkeypatch.setattr(export, "_write_weights", rounded)
    for to in ("timm", "hf"):
        assert main([str(official), "--to", to, "--out", str(official.parent / "out")]) == 1
        assert "gives other logits than the model, by up to" in capsys.readouterr().err
    assert list(official.parent.iterdir()) == [official]


def test_a_missing_library_names_the_pip_line_of_the_extra(
    official: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (extra,) = re.findall(r"^export = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert sorted(json.loads(extra)) == sorted({"deit-fast[train]", *FORMS["onnx"].packages, *FORMS["hf"].packages})
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    for to, form in FORMS.items():
        assert main([str(official), "--to", to, "--out", "nowhere"]) == 2
        line = " ".join(f"'{package}'" for package in form.packages)
        assert f"not installed here: type pip install {line}" in capsys.readouterr().err


def test_a_mistake_is_a_sentence_and_loses_nothing(official: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    for arguments, says in [
        ([str(official), "--to", "timm", "--out", str(tmp_path / "taken")], "is there already: type another --out"),
        ([str(official), "--to", "onnx", "--out", str(tmp_path / "a.onnx")], "type --out "),
        ([str(official), "--to", "timm", "--out", str(tmp_path / "taken" / "notes.txt" / "x")], "is not a folder that"),
        (["deit_tny_patch16_224", "--to", "timm", "--out", "out"], "did you mean deit_tiny_patch16_224"),
    ]:
        assert main(arguments) == 2
        assert says in capsys.readouterr().err
    assert (tmp_path / "taken" / "notes.txt").read_text() == "mine"
    with pytest.raises(SystemExit, match="2"):
        main([str(official), "--to", "tflite", "--out", "out"])


def test_a_run_of_a_recipe_that_is_gone_keeps_its_card(finished_run: Path) -> None:
    origin = load(finished_run)
    renamed = dataclasses.replace(origin, config=dataclasses.replace(origin.config, recipe="older"))
    assert "--recipe older" in model_card.model_card(renamed, "hf", "transformers", SAME)
