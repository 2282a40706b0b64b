"""An ONNX model in int8, and what that costs: accuracy, time, and which layers cost most.

    calibration = calibration_of(trained, "", count=256)
    small = quantised(model, calibration.images)            static, QDQ, weights per output channel
    cost = measured(model, small, trained, calibration)     top-1 before and after, milliseconds an image
    worst(model, calibration)                               the layers that change the logits most, alone in int8

Products with weights become int8: patch embedding, qkv, projections, the two of the MLP, the heads. The products inside
attention, softmax, GELU, LayerNorm and what is added up stay in float32.
"""

from __future__ import annotations

import ast
import inspect
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...command import Ending
from ...data import BadImage, Dataset, EvalLoader
from ...data.sources.open import open_dataset
from ...run.timing import alternate
from ...weights.prediction import Trained
from ..pixels import image_of
from .onnx_file import answer_of, open_session

if TYPE_CHECKING:
    import onnx

MOST_LOST = 0.2  # points of top-1 that int8 may cost without --accept
# Relative to the largest logit: a float32 sum in another order sometimes rounds an activation to the next int8 level.
TOLERANCE = 0.02
PRODUCTS = ("Conv", "Gemm", "MatMul")
BATCH = 32  # images at a time, of an evaluation
NAMED = 5  # layers that are named as the worst
TRIED = 16  # images on which layers are compared
ROUNDS = 9
SCOPES = "pkg.torch.onnx.name_scopes"  # torch's note on a node: the modules that it comes from


class TooCostly(Ending, RuntimeError):
    """int8 loses more than it may; nothing is left behind."""

    code = 1


class Cost(NamedTuple):
    """What int8 changes; float32 first."""

    top1: tuple[float, float]  # per cent
    images: int  # that it was measured on
    milliseconds: tuple[float, float]  # an image, batches of one
    calibrated: int  # training images
    data: str  # the data set of both
    seed: int  # of their choice
    said: tuple[str, ...] = ()  # what was accepted

    @property
    def lost(self) -> float:
        """Points of top-1."""
        return self.top1[0] - self.top1[1]

    @property
    def slower(self) -> bool:
        return self.milliseconds[1] > self.milliseconds[0]

    def __str__(self) -> str:
        before, after = self.top1
        return (
            f"top-1 {before:.2f} % -> {after:.2f} % on {self.images:,} validation images, "
            f"{self.milliseconds[0]:.1f} -> {self.milliseconds[1]:.1f} ms an image"
        )


class Calibration(NamedTuple):
    """Images that show how large activations become.

    Attributes:
        data: the data set, as it was named.
        images: each as `Trained.prepare` gives it, float32 (1, 3, S, S).
        seed: of their choice.
        validation: the images to measure top-1 on.
    """

    data: str
    images: list[NDArray[np.float32]]
    seed: int
    validation: Dataset


def calibration_of(trained: Trained, data: str, count: int, seed: int = 0) -> Calibration:
    """`count` training images of a data set ("": the one that the model was trained on), chosen by the seed.

    Raises:
        ValueError: no data set is known, it has other classes, or too few of its images are readable.
    """
    data = data or (trained.config.data.data if trained.config is not None else "")
    if not data:
        raise ValueError(
            "--int8 is calibrated on training images, and these weights do not say which: type --data FOLDER"
        )
    training, validation = open_dataset(data)
    if len(training.classes) != len(trained.classes):
        raise ValueError(
            f"{data} has {len(training.classes)} classes, the model {len(trained.classes)}: type --data and the images "
            f"that it was trained on"
        )
    found: list[NDArray[np.float32]] = []
    for index in np.random.default_rng(seed).permutation(len(training)).tolist():
        with suppress(BadImage):
            image = image_of(training, index, trained.policy, trained.preprocessing.exif_orientation)
            found.append(trained.prepare([image]).numpy())
        if len(found) == count:
            break
    if not found:
        raise ValueError(f"none of the training images of {data} is readable: deit-fast data check says why")
    return Calibration(data, found, seed, validation)


def quantised(
    model: onnx.ModelProto,
    images: Sequence[NDArray[np.float32]],
    layers: Sequence[str] = (),
    ranges: Path | None = None,
) -> onnx.ModelProto:
    """A model of tensors in int8.

    Args:
        model: images (batch, 3, S, S) -> logits (batch, C).
        images: to calibrate on, (1, 3, S, S) each.
        layers: names of the nodes to quantise; () for all products with weights.
        ranges: a file that keeps the calibration, read if it is there.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._rest, None)
            return None if image is None else {"images": image}

    if "calibration_cache_path" not in inspect.signature(quantize_static).parameters:
        raise ValueError("--int8 needs a newer onnxruntime: type pip install 'onnxruntime>=1.32'")
    with TemporaryDirectory() as temporary, _quiet():
        onnx.save_model(model, f"{temporary}/float32.onnx")  # a model in memory would be changed
        quantize_static(
            f"{temporary}/float32.onnx",
            f"{temporary}/int8.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_quantize=list(layers) or list(layers_of(model)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # What a product gives is added up or normalised in float32.
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": list(PRODUCTS)},
            calibration_cache_path=ranges,
        )
        return onnx.load(f"{temporary}/int8.onnx")


def layers_of(model: onnx.ModelProto) -> dict[str, str]:
    """Node -> the model's name of the layer, such as "blocks.3.mlp.fc1", of every product with weights."""
    weights = {each.name for each in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS and node.input[1] in weights:
            scopes = next((prop.value for prop in node.metadata_props if prop.key == SCOPES), "")
            modules = [name for name in (ast.literal_eval(scopes) if scopes else []) if name]
            found[node.name] = modules[-2] if len(modules) > 1 else node.name
    return found


def measured(exact: onnx.ModelProto, small: onnx.ModelProto, trained: Trained, calibration: Calibration) -> Cost:
    """Top-1 of both on the validation images, and their times in turn."""
    with TemporaryDirectory() as temporary:
        sessions = [_session(model, Path(temporary, f"{number}.onnx")) for number, model in enumerate((exact, small))]
        preprocessing, right, count = trained.preprocessing, [0, 0], 0
        loader = EvalLoader(
            calibration.validation, preprocessing.policy, batch_size=BATCH,
            exif_orientation=preprocessing.exif_orientation,
        )  # fmt: skip
        for batch in loader:
            good = batch.labels >= 0
            count += int(good.sum())
            for number, session in enumerate(sessions):
                logits = torch.from_numpy(session({"images": batch.images.numpy()})["logits"])
                right[number] += int((logits.argmax(1) == batch.labels)[good].sum())
        inputs = {"images": calibration.images[0]}
        turns = {str(number): (lambda session=session: session(inputs)) for number, session in enumerate(sessions)}
        seconds = alternate(turns, rounds=ROUNDS, clock=time.perf_counter, warmup=3)
    before, after = (100 * hits / max(1, count) for hits in right)
    slow, fast = (1000 * float(np.median(times)) for times in seconds.values())
    data, seed = Path(calibration.data).name, calibration.seed
    return Cost((before, after), count, (slow, fast), len(calibration.images), data, seed)


def worst(model: onnx.ModelProto, calibration: Calibration) -> list[tuple[str, float]]:
    """(layer, share of the logits' energy that is lost when it alone is int8), the worst first."""
    images, layers = calibration.images[:TRIED], layers_of(model)
    with TemporaryDirectory() as temporary:
        ranges = Path(temporary, "ranges.json")
        exact = _logits(_session(model, Path(temporary, "0.onnx")), images)
        lost = {}
        for number, (node, layer) in enumerate(layers.items(), 1):
            alone = quantised(model, calibration.images, [node], ranges)
            got = _logits(_session(alone, Path(temporary, f"{number}.onnx")), images)
            Path(temporary, f"{number}.onnx").unlink()
            lost[layer] = float(((got - exact) ** 2).sum() / (exact**2).sum())
    return sorted(lost.items(), key=lambda item: -item[1])


def judged(cost: Cost, model: onnx.ModelProto, calibration: Calibration, accept: bool) -> Cost:
    """The cost with what is accepted of it in words; TooCostly where it is too large and not accepted."""
    said = []
    if cost.lost > MOST_LOST:
        named = ", ".join(f"{layer} ({100 * share:.2g} %)" for layer, share in worst(model, calibration)[:NAMED])
        said.append(
            f"int8 loses {cost.lost:.2f} points of top-1 ({cost}), more than {MOST_LOST}; the layers that change the "
            f"logits most, each alone in int8: {named}"
        )
    if cost.slower:
        said.append(f"int8 is slower than float32 on this machine ({cost})")
    if said and not accept:
        raise TooCostly(f"{'; '.join(said)}: nothing was written; type --accept to have it all the same")
    return cost._replace(said=tuple(said))


def _session(model: onnx.ModelProto, file: Path) -> Any:
    import onnx

    onnx.save_model(model, file)
    return answer_of(open_session(file))


def _logits(session: Any, images: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.concatenate([session({"images": image})["logits"] for image in images]).astype(np.float64)


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime logs advice by the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
