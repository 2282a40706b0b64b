"""A trained model as an ONNX file: of decoded images, with evaluation's preprocessing inside, or of tensors.

model = tensor_model(trained)                       images, float32 (batch, 3, S, S) -> logits (batch, C)
model = image_model(model, trained.preprocessing)   image, uint8 (H, W, 3) -> probabilities, labels, logits, pixels
describe(model, trained)                            the metadata
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import NDArray
from safetensors.torch import save

from ...config import Preprocessing
from ...model import VisionTransformer
from ...weights.prediction import Trained
from .code import OPSET

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Takes = Literal["image", "tensor"]
Arrays = dict[str, NDArray[Any]]
FILE = "model.onnx"
MODEL = "model."  # in front of the names of the model's own tensors, where other graphs surround it


def tensor_model(trained: Trained) -> onnx.ModelProto:
    """images, float32 (batch, 3, S, S) as `Trained.prepare` gives them -> logits (batch, C)."""
    from .graphs import IR

    side = trained.preprocessing.image_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                trained.model,
                (torch.zeros(2, 3, side, side),),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"torch.onnx cannot export a {type(trained.model).__name__} ({reason})") from error
    assert program is not None  # dynamo=True
    model = program.model_proto
    model.ir_version = IR
    return model


def image_model(model: onnx.ModelProto, preprocessing: Preprocessing, classes: int) -> onnx.ModelProto:
    """A model of tensors between its preprocessing and its answer.

    image, uint8 (H, W, 3), RGB, of any size -> probabilities (C) by label; labels (C), the likeliest first;
    logits (C); pixels, uint8 (S, S, 3), what the model sees before they are normalised.
    """
    import onnx
    from onnx import compose

    from .graphs import answer_graph, preprocessing_graph

    ends = {"rename_inputs": False, "rename_outputs": False}
    before = compose.add_prefix(preprocessing_graph(preprocessing), "before.", **ends)
    behind = compose.add_prefix(answer_graph(classes), "behind.", **ends)
    named = compose.add_prefix(model, MODEL)
    del named.graph.value_info[:]  # shapes of any batch
    seen = compose.merge_models(before, named, [("images", f"{MODEL}images")])
    whole = compose.merge_models(seen, behind, [(f"{MODEL}logits", "batch_logits")])
    opsets = {each.domain: each.version for each in whole.opset_import}  # each graph brought its own
    del whole.opset_import[:]
    whole.opset_import.extend(onnx.helper.make_opsetid(*each) for each in opsets.items())
    outputs = {output.name: output for output in whole.graph.output}
    del whole.graph.output[:]
    whole.graph.output.extend(outputs[name] for name in ("probabilities", "labels", "logits", "pixels"))
    return whole


def describe(model: onnx.ModelProto, trained: Trained, takes: Takes, **more: object) -> None:
    """Write what a user has to know into the metadata, each value as JSON."""
    import onnx

    facts = {
        "classes": trained.classes,
        **dataclasses.asdict(trained.preprocessing),
        "input": takes,
        "fusion": trained.model.fusion if isinstance(trained.model, VisionTransformer) else None,
        "weights_sha256": weights_digest(trained.model),
        "version": own_version(),
        **more,
    }
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})


def weights_digest(model: torch.nn.Module) -> str:
    """sha256 of the weights as safetensors, which for a DeiT is that of the model.safetensors of `--to timm`."""
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    return hashlib.sha256(save(weights, metadata={"format": "pt"})).hexdigest()


def own_version() -> str:
    """Of deit-fast; "" for a clone that is not installed."""
    try:
        return version("deit-fast")
    except PackageNotFoundError:
        return ""


def open_session(file: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """On the CPU. `threads` 0: onnxruntime's choice.

    Raises:
        ValueError: the file is none that onnxruntime reads.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds, each with a paragraph
        raise ValueError(f"{file} is no ONNX file that onnxruntime reads: export it again") from error


def facts_of(session: onnxruntime.InferenceSession, file: Path) -> dict[str, Any]:
    """The metadata that `describe` wrote.

    Raises:
        ValueError: a file of another program, or of a version that this one does not know.
    """
    try:
        found = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    except ValueError:
        found = {}
    inputs = [each.name for each in session.get_inputs()]
    takes = {"image": "image", "images": "tensor"}.get(inputs[0]) if len(inputs) == 1 else None
    if takes is None or "classes" not in found or found.setdefault("input", takes) != takes:
        raise ValueError(
            f"{file} was not written by this version of deit-fast export (it takes {', '.join(inputs)}): export the "
            f"model again, deit-fast export RUN --to onnx --out FOLDER"
        )
    return found


def answer_of(session: onnxruntime.InferenceSession) -> Callable[[Mapping[str, NDArray[Any]]], Arrays]:
    """Inputs by name -> outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


class TensorModel(torch.nn.Module):
    """A file that takes tensors, as a model: images (B, 3, S, S) -> logits (B, C)."""

    def __init__(self, file: Path, threads: int = 0) -> None:
        super().__init__()
        self._run = answer_of(open_session(file, threads))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._run({"images": images.numpy()})["logits"])


def inner_model(file: Path) -> onnx.ModelProto:
    """The model of tensors inside a file that takes images: images (batch, 3, S, S) -> logits (batch, C)."""
    import onnx

    whole, single = onnx.load(file), onnx.TensorProto.FLOAT
    shapes = {output.name: output.type.tensor_type.shape.dim for output in whole.graph.output}
    side, classes = shapes["pixels"][0].dim_value, shapes["logits"][0].dim_value
    ends = {"images": ["batch", 3, side, side], f"{MODEL}logits": ["batch", classes]}
    del whole.graph.value_info[:]
    whole.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, single, shape) for name, shape in ends.items()
    )
    inner = onnx.utils.Extractor(whole).extract_model(["images"], [f"{MODEL}logits"])
    inner.graph.output[0].name = "logits"
    inner.graph.node.append(onnx.helper.make_node("Identity", [f"{MODEL}logits"], ["logits"]))
    return inner
