"""The ways from an image file to logits through an exported folder, each as a function.

for way in ways_of("flowers-hf", deit_fast.load("runs/flowers")):
    way.answer(Path("new.jpg")).logits
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...config import Preprocessing
from ...files import read_json
from ...weights.exported import from_folder
from ...weights.prediction import Trained
from ..export.code import Answer, code_of, runner
from ..export.formats import FORMS, require
from ..export.onnx_file import FILE, facts_of, open_session, weights_digest
from ..pixels import pixels_of

BY_CARD = "by the code on its card"


class Way(NamedTuple):
    """One way through an export."""

    export: str  # the folder as it was typed
    how: str  # in words
    promises: bool  # the pixels and, if not int8, the answers of `predict`
    int8: bool
    answer: Callable[[Path], Answer]
    stale: bool = False  # it holds other weights than the model


def ways_of(spec: str, reference: Trained) -> list[Way]:
    """All ways through one exported folder.

    Raises:
        ValueError: it is no export, one of another version or of other classes, or its library is missing.
    """
    folder = Path(spec)
    if folder.name == FILE:
        folder = folder.parent
    if (folder / FILE).is_file():
        return [_of_onnx(spec, folder, reference)]
    if not folder.is_dir():
        raise ValueError(f"there is no exported folder {spec}: write one, deit-fast export --to onnx --out …")
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "architecture" in config:
        return _of_library("timm", spec, folder, reference)
    if "model_type" in config:
        ways = _of_library("hf", spec, folder, reference)
        return [*ways, Way(spec, "transformers' pipeline", False, False, _pipeline(folder, reference.preprocessing))]
    raise ValueError(
        f"{spec} is no exported folder: it holds neither {FILE} nor the config.json of timm or transformers; write "
        f"one, deit-fast export"
    )


def _of_onnx(spec: str, folder: Path, reference: Trained) -> Way:
    require(FORMS["onnx"].packages, "an ONNX file")
    facts = facts_of(open_session(folder / FILE), folder / FILE)
    _refuse_other(spec, facts["classes"], reference)
    own = Preprocessing(**{name: facts[name] for name in Preprocessing.__dataclass_fields__ if name in facts})
    code = code_of("onnx", own, facts["input"])
    how = {"image": "onnxruntime, which prepares the image", "tensor": f"onnxruntime, {BY_CARD}"}[facts["input"]]
    int8 = "int8" in facts
    answer = partial(runner(code, folder, own), code.images)
    digest = weights_digest(reference.model)
    stale = facts.get("weights_sha256", digest) != digest
    return Way(spec, how + (", int8" if int8 else ""), True, int8, answer, stale)


def _of_library(to: str, spec: str, folder: Path, reference: Trained) -> list[Way]:
    form = FORMS[to]
    require(form.packages, f"a folder for {form.library}")
    own = from_folder(folder)
    _refuse_other(spec, own.classes, reference)
    code = code_of(to, own.preprocessing)
    if to == "hf":
        from transformers.utils import logging

        logging.disable_progress_bar()
    answer = runner(code, folder, own.preprocessing)
    stale = weights_digest(own.model) != weights_digest(reference.model)
    ways = [Way(spec, f"{form.library}, {BY_CARD}", True, False, partial(answer, code.images), stale)]
    own_name = {"timm": "timm's create_transform", "hf": "transformers' image processor"}[to]
    if not code.own:  # which is the code on the card
        return [ways[0]._replace(how=f"{own_name}, which is the code on its card")]
    ways.append(Way(spec, own_name, False, False, partial(answer, code.own)))
    if to == "hf":  # Pillow's resize, which preprocessor_config.json cannot ask for
        opened = "AutoImageProcessor.from_pretrained(folder"
        pillow = replace(code, model=code.model.replace(opened, f'{opened}, backend="pil"'))
        how = f'{own_name}, backend="pil"'
        ways.append(Way(spec, how, False, False, partial(runner(pillow, folder, own.preprocessing), code.own)))
    return ways


def _refuse_other(spec: str, classes: list[str], reference: Trained) -> None:
    if len(classes) != len(reference.classes):
        raise ValueError(
            f"{spec} knows {len(classes)} classes, {reference.source} {len(reference.classes)}: compare a model with "
            f"its own exports"
        )


def _pipeline(folder: Path, preprocessing: Preprocessing) -> Callable[[Path], Answer]:
    from transformers import pipeline

    pipe: Any = pipeline("image-classification", model=str(folder), device="cpu")

    def answer(file: Path) -> Answer:
        seen = pipe.preprocess(str(file))
        with torch.no_grad():
            logits: Tensor = pipe.model(**seen).logits
        return Answer(logits, pixels_of(seen["pixel_values"], preprocessing)[0])

    return answer
