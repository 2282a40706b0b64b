"""What an ONNX file says of itself, the model inside it, and files of other programs."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deit_fast.config import Preprocessing
from deit_fast.tools.export.__main__ import main
from deit_fast.tools.export.formats import export
from deit_fast.tools.export.onnx_file import answer_of, facts_of, inner_model, open_session, own_version
from tests.deit_fast.tools.export.test_card_code import CLASSES, ODD, trained


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("exports"), trained(ODD)
    export(model, "onnx", folder / "image")
    export(model, "onnx", folder / "tensor", takes="tensor")
    export(model, "timm", folder / "timm")
    return folder


@pytest.mark.parametrize("takes", ["image", "tensor"])
def test_the_metadata_is_what_a_user_has_to_know(folders: Path, takes: str) -> None:
    file = folders / takes / "model.onnx"
    facts = facts_of(open_session(file), file)
    own = Preprocessing(**{key: facts.pop(key) for key in dataclasses.asdict(ODD)})
    assert str(own) == str(ODD) and np.array_equal(own.normalisation, ODD.normalisation)
    assert facts == {
        "classes": CLASSES,
        "input": takes,
        "fusion": "logits",
        "version": own_version(),
        "weights_sha256": hashlib.sha256((folders / "timm" / "model.safetensors").read_bytes()).hexdigest(),
    }
    assert [(each.domain, each.version) for each in onnx.load(file).opset_import] == [("", 18)]
    onnx.checker.check_model(onnx.load(file), full_check=True)


def test_the_model_inside_takes_batches_of_any_size(folders: Path, tmp_path: Path) -> None:
    onnx.save_model(inner_model(folders / "image" / "model.onnx"), tmp_path / "inner.onnx")
    inner, outer = (answer_of(open_session(file)) for file in (tmp_path / "inner.onnx", folders / "tensor/model.onnx"))
    for batch in (1, 3):
        images = torch.randn(batch, 3, 24, 24).numpy()
        np.testing.assert_allclose(inner({"images": images})["logits"], outer({"images": images})["logits"], atol=1e-5)


def test_a_file_of_another_program_or_none_is_a_sentence(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "none.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"none\.onnx is no ONNX file that onnxruntime reads: export it again"):
        open_session(tmp_path / "none.onnx")
    model = onnx.load(folders / "tensor" / "model.onnx")
    del model.metadata_props[:]
    onnx.save_model(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"was not written by this version of deit-fast export .* export the model"):
        facts_of(open_session(tmp_path / "other.onnx"), tmp_path / "other.onnx")


def test_a_file_that_was_written_before_images_were_taken_is_known(folders: Path, tmp_path: Path) -> None:
    model = onnx.load(folders / "tensor" / "model.onnx")
    older = {prop.key: prop.value for prop in model.metadata_props if prop.key in ("classes", "image_size", "mean")}
    onnx.helper.set_model_props(model, older)
    onnx.save_model(model, tmp_path / "older.onnx")
    assert facts_of(open_session(tmp_path / "older.onnx"), tmp_path / "older.onnx")["input"] == "tensor"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--to", "timm", "--input", "tensor"], "--input is for --to onnx alone"),
        (["--to", "hf", "--int8"], "--int8 is for --to onnx alone"),
        (["--to", "onnx", "--accept"], "--accept is for --int8 alone"),
        (["--to", "onnx", "--data", "photos"], "--data is for --int8 alone"),
        (["--to", "onnx", "--int8", "--calibration-images", "0"], "--calibration-images is 1 or more, got 0"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], says: str, tmp_path: Path, capsys) -> None:
    assert main(["deit_tiny_patch16_224", *flags, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
