"""The code on the card of every export gives the pixels of `predict` for image files of any size, bit for bit."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from deit_fast import create_model, load
from deit_fast.config import Preprocessing
from deit_fast.tools.export import formats, graphs
from deit_fast.tools.export.code import Code, code_of
from deit_fast.tools.export.formats import FORMS, Disagreement, export
from deit_fast.tools.export.graphs import preprocessing_graph
from deit_fast.tools.pixels import pixels_of
from deit_fast.weights.prediction import Trained

USUAL = Preprocessing(16)
ODD = Preprocessing(24, 0.83, "bilinear", (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), exif_orientation=True)
CLASSES = ["ant", "bee", "cat", "dog", "elk"]


def trained(preprocessing: Preprocessing) -> Trained:
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "width": 32, "depth": 1, "heads": 2, "classes": len(CLASSES)}
    model = create_model("deit_tiny_distilled_patch16_224", image_size=preprocessing.image_size, **sizes)
    for layer in (model.patch_embed.proj, model.head, model.head_dist):  # so that images differ in their class
        torch.nn.init.normal_(layer.weight)
    return Trained(model.eval(), CLASSES, preprocessing, "made up")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """100 files with sides of 5 to 81 pixels, each with an EXIF orientation."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    files = [folder / f"{number}.{'jpg' if number % 2 else 'png'}" for number in range(100)]
    for number, file in enumerate(files):
        height, width = generator.integers(2, 41, 2) * 2 + 1
        exif[0x0112] = number % 8 + 1
        colours = generator.integers(0, 200, 3)
        Image.fromarray(generator.integers(colours, colours + 56, (height, width, 3), np.uint8)).save(file, exif=exif)
    return files


def test_every_field_of_the_preprocessing_is_tried() -> None:
    assert not [name for name, value in dataclasses.asdict(ODD).items() if value == getattr(USUAL, name)]


@pytest.mark.parametrize("preprocessing", [USUAL, ODD], ids=["usual", "odd"])
@pytest.mark.parametrize(("to", "takes"), [*((to, "image") for to in FORMS), ("onnx", "tensor")])
def test_the_code_on_the_card_gives_the_pixels_and_answers_of_predict(
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    to: str,
    takes: str,
    preprocessing: Preprocessing,
) -> None:
    model = trained(preprocessing)
    export(model, to, tmp_path / "out", takes)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), flags=re.DOTALL)
    begin, each = re.split(r"\n\n(?=image)", code)  # the model is loaded once
    monkeypatch.chdir(tmp_path / "out")
    names: dict = {}
    exec(compile(begin, "README.md", "exec"), names)
    assert names["file"] == "image.jpg"
    capsys.readouterr()
    each = compile(each, "README.md", "exec")
    for file in images:
        names["file"] = str(file)
        exec(each, names)
        expected = model.prepare([model.read(file)])
        if (to, takes) == ("onnx", "image"):
            assert np.array_equal(names["pixels"], pixels_of(expected, preprocessing)[0]), file
        else:
            assert torch.equal(torch.as_tensor(names["images"]), expected), file
    expected = [row.top[0][0] for row in model.predict(images, top=1)]
    assert len(set(expected)) > 1
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("preprocessing", [USUAL, ODD], ids=["usual", "odd"])
@pytest.mark.parametrize("to", ["timm", "hf"])
def test_an_exported_folder_that_is_loaded_sees_the_same_pixels(
    images: list[Path], tmp_path: Path, to: str, preprocessing: Preprocessing
) -> None:
    model = trained(preprocessing)
    export(model, to, tmp_path / "out")
    back = load(tmp_path / "out")
    assert torch.equal(
        back.prepare([back.read(file) for file in images]), model.prepare([model.read(file) for file in images])
    )


@pytest.mark.parametrize(
    ("to", "preprocessing", "says"),
    [
        ("onnx", ODD, None),
        ("timm", USUAL, None),
        ("timm", ODD, "timm's transform alone turns no image"),
        ("hf", USUAL, "moves it by a pixel for a quarter of all sizes or more"),
    ],
)
def test_what_the_librarys_own_preprocessing_changes_is_measured_and_on_the_card(
    tmp_path: Path, to: str, preprocessing: Preprocessing, says: str | None
) -> None:
    differences = export(trained(preprocessing), to, tmp_path / "out")
    card = " ".join((tmp_path / "out" / "README.md").read_text().split())
    assert differences.files < 1e-4 and f"within {differences.files:.1e} for 10 image files" in card
    assert (differences.own is None) == (says is None) == ("alone turns" not in card and "alone resizes" not in card)
    if says:
        assert differences.own > 1e-2
        assert says in card and f"differ from those of the code by up to {differences.own:.2g}" in card


@pytest.mark.parametrize("to", ["onnx", "hf"])
def test_code_that_crops_elsewhere_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    def floored(*arguments: object) -> Code:
        code = code_of(*arguments)
        assert "round((side - size) / 2)" in code.images
        return dataclasses.replace(code, images=code.images.replace("round((side - size) / 2)", "(side - size) // 2"))

    monkeypatch.setattr(formats, "code_of", floored)
    with pytest.raises(Disagreement, match="gives other logits than the model"):
        export(trained(USUAL), to, tmp_path / "out", "tensor")
    assert not (tmp_path / "out").exists()


def test_a_graph_that_crops_elsewhere_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wider(preprocessing: Preprocessing) -> onnx.ModelProto:
        return preprocessing_graph(dataclasses.replace(preprocessing, crop_ratio=0.8))

    monkeypatch.setattr(graphs, "preprocessing_graph", wider)
    with pytest.raises(Disagreement, match=r"bytes of an image differ before it sees them, so nothing was written"):
        export(trained(USUAL), "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
