"""The same files through `predict` and every export: what the table says is so, and a broken promise is noticed."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from rich.console import Console

from deit_fast import load
from deit_fast.config import Preprocessing
from deit_fast.tools.export.formats import FORMS, export
from deit_fast.tools.parity.__main__ import main, show
from deit_fast.tools.parity.compare import compare, where
from deit_fast.tools.parity.ways import ways_of
from tests.deit_fast.tools.export.test_card_code import ODD, USUAL, trained
from tests.deit_fast.tools.export.test_onnx_pixels import kinds, pillows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that turns no image in all forms, and files of many kinds and sizes, some turned by EXIF."""
    root = tmp_path_factory.mktemp("parity")
    for to in FORMS:
        export(trained(USUAL), to, root / to)
    export(trained(USUAL), "onnx", root / "tensor", takes="tensor")
    (root / "files").mkdir()
    kinds(root / "files")
    generator = np.random.default_rng(0)
    for number in range(20):
        sides = generator.integers(2, 41, 2) * 2 + 1
        Image.fromarray(generator.integers(0, 256, (*sides, 3), np.uint8)).save(root / "files" / f"odd{number}.png")
    return root


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    export(trained(USUAL), "timm", folder / "model")  # which `load` reads again
    exports = [str(folder / name) for name in ("onnx", "tensor", "timm", "hf")]
    out = tmp_path_factory.mktemp("json") / "parity.json"
    arguments = [str(folder / "model"), *exports, "--data", str(folder / "files"), "--json", str(out)]
    assert main(arguments) == 0
    return json.loads(out.read_text())


def ways(results: dict, name: str) -> dict[str, dict]:
    """How -> row, of one export."""
    rows = [row for row in results["ways"] if row["export"] and Path(row["export"]).name == name]
    return {row["way"].partition(": ")[2]: row for row in rows}


def test_onnx_and_the_code_on_cards_show_the_model_the_same_bytes(results: dict) -> None:
    kept = [row for row in results["ways"] if row["export"] and "by the code on its card" in row["way"]]
    kept += ways(results, "onnx").values()
    assert len(kept) == 3 and results["files"] == 33
    for row in kept:
        assert row["bytes_that_differ"] == 0 and row["files_with_other_pixels"] == 0 and row["kept"]
        assert row["same_top1"] == row["files"] == 33 and row["largest_logit_difference"] < 1e-4
        assert row["bytes"] == 33 * 16 * 16 * 3 and row["milliseconds"] > 0


def test_timms_transform_is_the_code_on_its_card_where_no_image_is_turned(results: dict) -> None:
    ((how, row),) = ways(results, "timm").items()
    assert "which is the code on its card" in how and row["bytes_that_differ"] == 0


def test_the_table_says_what_transformers_does_otherwise(results: dict) -> None:
    rows = ways(results, "hf")
    processor, pipeline = rows["transformers' image processor"], rows["transformers' pipeline"]
    assert processor["files_with_other_pixels"] > 0 and processor["bytes_that_differ"] > 0
    assert any("crops a pixel" in reason for reason in processor["where"])
    assert not any("EXIF" in reason for reason in processor["where"])
    turned = [files for reason, files in pipeline["where"].items() if "turns the image as EXIF says" in reason]
    assert sum(turned) == 2
    assert sum(processor["where"].values()) == processor["files_with_other_pixels"]
    pillow = rows['transformers\' image processor, backend="pil"']
    assert set(pillow["where"]) <= {
        f"crops a pixel {way}" for way in ("higher", "further left", "higher and further left")
    }


def test_the_step_that_differs_is_named(tmp_path: Path) -> None:
    generator, preprocessing = np.random.default_rng(0), Preprocessing(16)
    image = generator.integers(0, 256, (40, 61, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    expected = pillows(image, preprocessing)

    def name(got: np.ndarray) -> str:
        return where(str(tmp_path / "a.png"), preprocessing, expected, got)

    assert name(expected) == ""
    assert name(expected ^ 1) == "resizes otherwise"
    assert name(pillows(image[::-1, ::-1], preprocessing)) == "turns the image as EXIF says"
    resized = np.asarray(Image.fromarray(image).resize((27, 18), Image.Resampling.BICUBIC))
    top, left = 1, round((27 - 16) / 2)
    assert np.array_equal(resized[top : top + 16, left : left + 16], expected)
    assert name(resized[top : top + 16, left - 1 : left + 15]) == "crops a pixel further left"
    assert name(resized[top - 1 : top + 15, left - 1 : left + 15] ^ 1) == (
        "crops a pixel higher and further left, resizes otherwise"
    )
    assert name(np.zeros_like(expected)).endswith("prepares it in another way")


def test_a_file_that_crops_elsewhere_breaks_its_promise(folder: Path, tmp_path: Path, capsys) -> None:
    """An ONNX file with the preprocessing of a larger crop ratio."""
    other = trained(Preprocessing(16, 0.95))
    export(other, "onnx", tmp_path / "other")
    arguments = [str(folder / "timm"), str(tmp_path / "other"), "--data", str(folder / "files"), "--limit", "5"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert f"not the same: {tmp_path / 'other'}: onnxruntime, which prepares the image" in said.err


def test_an_export_of_other_weights_is_named(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "onnx" / "model.onnx")
    for weight in model.graph.initializer:
        if weight.name.endswith("head.weight"):
            weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    (tmp_path / "out").mkdir()
    onnx.save_model(model, tmp_path / "out" / "model.onnx")
    reference = load(folder / "timm")
    (_, row), _ = compare(reference, ways_of(str(tmp_path / "out"), reference), [str(folder / "files" / "grey.png")])
    assert row.bytes == 0 and row.relative > 1e-4 and not row.kept
    assert row.parts == {"computes other logits from the same pixels": 1}


def test_an_export_of_an_earlier_run_is_stale(folder: Path, capsys) -> None:
    reference = load(folder / "timm")
    exports = [str(folder / name) for name in FORMS]
    assert not any(way.stale for spec in exports for way in ways_of(spec, reference))
    with torch.no_grad():
        reference.model.head.bias += 1
    assert all(ways_of(spec, reference)[0].stale for spec in exports)
    rows, _ = compare(reference, ways_of(exports[0], reference), [str(folder / "files" / "grey.png")])
    show(rows, "the run", Console(width=200))
    assert "it holds other weights than the model, export it again; 1 files: computes" in capsys.readouterr().out


def test_turned_images(tmp_path: Path) -> None:
    model = trained(ODD)
    exports = {to: tmp_path / to for to in FORMS}
    for to, out in exports.items():
        export(model, to, out)
    (tmp_path / "files").mkdir()
    files = [str(file) for file in kinds(tmp_path / "files") if "exif" in file.name]
    rows, unreadable = compare(model, [way for out in exports.values() for way in ways_of(str(out), model)], files)
    assert not unreadable and all(row.kept for row in rows)
    for row in rows:
        if row.name.endswith(("create_transform", "image processor", '"pil"')):
            assert any("turns no image" in reason for reason in row.parts), row.name
        assert row.files == 2


def test_files_without_an_image_are_named_and_the_others_compared(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (30, 20)).save(tmp_path / "good.png")
    assert main([str(folder / "timm"), str(folder / "onnx"), "--data", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "broken.png holds no image" in said.err and "1 files" in said.out
    (tmp_path / "good.png").unlink()
    assert main([str(folder / "timm"), str(folder / "onnx"), "--data", str(tmp_path)]) == 2
    assert "none of the files holds an image" in capsys.readouterr().err


def test_mistakes_are_sentences(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    model, files = str(folder / "timm"), str(folder / "files")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.onnx").write_bytes(b"none")
    for arguments, says in [
        ([model, "nowhere", "--data", files], "there is no exported folder nowhere"),
        ([model, str(tmp_path / "empty"), "--data", files], "is no exported folder"),
        ([model, str(tmp_path / "bad"), "--data", files], "is no ONNX file that onnxruntime reads: export it again"),
        ([model, str(folder / "onnx"), "--data", "nowhere"], "there is no image or folder nowhere"),
        ([model, str(folder / "onnx"), "--data", files, "--limit", "-1"], "--limit is 1 or more"),
        ([model, str(folder / "onnx"), "--data", files, "--json", "no/such/folder/x.json"], "type --json"),
    ]:
        assert main(arguments) == 2
        assert says in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([model, str(folder / "onnx"), "--data", files]) == 2
    assert "not installed here: type pip install 'onnx>=" in capsys.readouterr().err
