"""The forms in which models are compared: PyTorch as it is and compiled, ONNX in float32 and in int8.

for form in forms_of("runs/flowers", FORMS, Path("temporary"), data=""):
    model = form.open(threads=2)
    logits = model(images)                  # float32 (B, 3, S, S) -> (B, C)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from ...config import Preprocessing
from ...data.sources.open import open_evaluation
from ...weights.exported import class_names, knows_classes
from ...weights.trained import load
from ..data.labels import classes_of_data
from ..export import formats, onnx_file
from ..export.int8 import calibration_of, quantised

FormName = Literal["eager", "compiled", "onnx", "int8"]
FORMS: tuple[FormName, ...] = get_args(FormName)
ONNX_FORMS = ("onnx", "int8")
CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class Form:
    """One form of one model. Its values go to other processes."""

    model: str  # as it was typed
    form: str  # one of FORMS
    spec: str  # what PyTorch loads; the file for ONNX
    megabytes: float  # of its file: model.onnx, or the weights as safetensors
    classes: list[str]  # index = label
    known: bool  # whether these are the names of its data, which weights alone do not tell
    preprocessing: Preprocessing
    architecture: str = ""

    @property
    def name(self) -> str:
        return f"{self.model} {self.form}"

    def of_data(self, data: str) -> Form:
        """The same with the classes of a data set, where its own are not known.

        Raises:
            ValueError: the data set cannot be opened, or has other classes.
        """
        classes = self.classes if self.known else classes_of_data(data, len(self.classes))
        open_evaluation(data, classes)
        return replace(self, classes=classes)

    def open(self, threads: int) -> nn.Module:
        """Images as `Trained.prepare` gives them -> logits."""
        if self.form in ONNX_FORMS:
            return onnx_file.TensorModel(Path(self.spec), threads)
        torch.set_num_threads(threads)
        model: Any = load(self.spec, architecture=self.architecture).model
        if self.form == "compiled":
            model = torch.compile(model)
        return model


def forms_of(
    model: str, wanted: Sequence[str], folder: Path, data: str, architecture: str = ""
) -> tuple[list[Form], list[str]]:
    """(its forms, ONNX files written to `folder`; sentences on those that are left out).

    An exported ONNX file has the one form that it is; the int8 form of another model is calibrated on training images.
    """
    path = Path(model)
    file = path / onnx_file.FILE if path.is_dir() else path
    if file.suffix == ".onnx" and file.is_file():
        return [_exported(model, file, folder)], []
    trained = load(model, architecture=architecture)
    weights = sum(value.numel() * value.element_size() for value in trained.model.state_dict().values()) / 1e6
    own = trained.config.data.data if trained.config is not None else ""
    common = (trained.classes, knows_classes(trained), trained.preprocessing, architecture)
    found = [Form(model, form, model, weights, *common) for form in wanted if form in ("eager", "compiled")]
    left_out: list[str] = []
    if not {*ONNX_FORMS} & {*wanted}:
        return found, left_out
    try:
        formats.require(formats.FORMS["onnx"].packages, "an ONNX file")
        exact = onnx_file.tensor_model(trained)
    except ValueError as error:
        return found, [f"{model} has no ONNX form: {error}"]
    if "onnx" in wanted:
        found.append(_written(exact, Form(model, "onnx", "", 0.0, *common), folder))
    if "int8" in wanted:
        try:
            images = calibration_of(trained, data if not own else "", CALIBRATION_IMAGES).images
            found.append(_written(quantised(exact, images), Form(model, "int8", "", 0.0, *common), folder))
        except ValueError as error:
            left_out.append(f"{model} has no int8 form: {error}")
    return found, left_out


def _written(model: Any, form: Form, folder: Path) -> Form:
    import onnx

    file = folder / f"{len(list(folder.iterdir()))}.onnx"
    onnx.save_model(model, file)
    return replace(form, spec=str(file), megabytes=file.stat().st_size / 1e6)


def _exported(model: str, file: Path, folder: Path) -> Form:
    """The model inside an exported file, without the preprocessing, in batches of any size."""
    formats.require(formats.FORMS["onnx"].packages, "an ONNX file")
    facts = onnx_file.facts_of(onnx_file.open_session(file), file)
    preprocessing = Preprocessing(**{key: facts[key] for key in Preprocessing.__dataclass_fields__ if key in facts})
    kind = "int8" if facts.get("int8") else "onnx"
    classes = facts["classes"]
    known = classes != class_names(len(classes))
    form = Form(model, kind, str(file), file.stat().st_size / 1e6, classes, known, preprocessing)
    if facts["input"] == "tensor":
        return form
    inner = _written(onnx_file.inner_model(file), form, folder)
    return replace(inner, megabytes=form.megabytes)
