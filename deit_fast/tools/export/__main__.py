"""A trained model in the form of another library, checked there before it is handed over, with a model card.

    deit-fast export runs/flowers --to onnx --out flowers-onnx      onnxruntime, images of any size
    deit-fast export runs/flowers --to onnx --input tensor --out a  onnxruntime, tensors, any batch size
    deit-fast export runs/flowers --to onnx --int8 --out flowers-8  the same in int8
    deit-fast export runs/flowers --to timm --out flowers-timm      timm.create_model("local-dir:…")
    deit-fast export deit_tiny.pth --to hf --out deit-tiny-hf       AutoModelForImageClassification

--out becomes a folder: the weights (model.onnx or model.safetensors), what that library needs to read them, and
README.md, the card: recipe, data, metrics with their source, how to load. An ONNX file takes a decoded image, uint8
(H, W, 3), and prepares it with the bytes of `predict`; with --input tensor it takes what is prepared. The other library
then loads the folder, must see those bytes of image files by the code on the card, and must give the same logits, for
tensors too, within 1e-5 of the largest one (ONNX: 1e-4); otherwise nothing is written. What its own preprocessing of
the files changes is printed. --int8 measures top-1 on the validation images and the time before and after; where it
loses more than 0.2 points or is slower, it names the layers that cost most and needs --accept. `deit_fast.load` reads
the folders of timm and Hugging Face back, bit for bit. Exit codes: 0 done, 1 the other library disagrees, or int8 costs
too much, 2 a mistake in the command, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from tyro.conf import Positional, arg

from ... import command
from ...weights.trained import load
from .card import IMAGE_FILES
from .formats import FORMS, export, require
from .int8 import calibration_of

Library: TypeAlias = Literal[tuple(FORMS)]  # type: ignore[valid-type]  # a table decides what may be typed


@dataclass(frozen=True, kw_only=True)
class Settings:
    # The model
    model: Annotated[str, Positional, arg(metavar="RUN_OR_FILE")]  # a run folder, a file of its checkpoints,
    # an exported folder, a weights file, a name, or module:function
    architecture: Annotated[str, arg(metavar="NAME")] = ""  # timm's name of what a weights file fits (default: a DeiT)
    heads: int = 0  # of a DeiT of unusual width (default: as the official)

    # The export
    to: Library  # the library that shall read it
    out: Annotated[str, arg(metavar="PATH")]  # the folder to write, new or empty
    input: Literal["image", "tensor"] = "image"  # of an ONNX file: a decoded image of any size, which it prepares
    # itself, or tensors that are prepared, in batches (default: image)

    # Int8
    int8: bool = False  # quantise an ONNX file, and measure what that costs
    data: Annotated[str, arg(metavar="FOLDER")] = ""  # its training images calibrate, its validation images measure
    # (default: what the run was trained on)
    calibration_images: int = 256  # training images to calibrate on (default: 256, chosen by a fixed seed)
    accept: bool = False  # write it also where it loses more than 0.2 points of top-1 or is slower than float32


@command.entry("export")
def main(arguments: Sequence[str]) -> None:
    given = command.parse(Settings, arguments, program="deit-fast export", description=__doc__)
    form, out = FORMS[given.to], Path(given.out)
    if given.to != "onnx" and (given.int8 or given.input != "image"):
        named = "--int8" if given.int8 else "--input"
        raise ValueError(f"{named} is for --to onnx alone: leave it out, or type --to onnx")
    if not given.int8 and (given.accept or given.data):
        raise ValueError(
            f"{'--accept' if given.accept else '--data'} is for --int8 alone: leave it out, or type --int8"
        )
    if given.calibration_images < 1:
        raise ValueError(f"--calibration-images is 1 or more, got {given.calibration_images}")
    require(form.packages, f"--to {given.to}")  # before the model is loaded
    sizes = {"heads": given.heads} if given.heads else {}
    trained = load(given.model, architecture=given.architecture, **sizes)
    calibration = calibration_of(trained, given.data, given.calibration_images) if given.int8 else None
    differences = export(trained, given.to, out, given.input, calibration, given.accept)
    files = sorted(out.iterdir())
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"exported: {out}/ ({', '.join(file.name for file in files)}; {megabytes:.1f} MB)")
    if differences.cost is not None:
        print(f"int8:     {differences.cost}; calibrated on {differences.cost.calibrated:,} training images")
        for sentence in differences.cost.said:
            print(f"accepted: {sentence}")
    which = "the quantised model" if given.int8 else "the model"
    if differences.tensors is not None:
        print(f"checked:  {form.library} gives the logits of {which} within {differences.tensors:.1e},")
        print("          in batches of 1 and 5")
    print(f"checked:  from {IMAGE_FILES} image files, the code on its card gives the bytes of predict, and the logits")
    print(f"          of {which} within {differences.files:.1e}")
    if differences.own is not None:
        print(f"          (by its own preprocessing within {differences.own:.1e}: README.md, the card, says why)")


if __name__ == "__main__":
    command.leave(main())
