"""A trained model written for another library, which must give the same logits before the files are handed over."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ExifTags, Image
from safetensors.torch import save_file
from torch import Tensor

from ...command import Ending
from ...files import check_writable, write_folder, write_json
from ...model import CONFIGS, VisionTransformer
from ...weights.exported import EXIF
from ...weights.huggingface import huggingface_config, to_huggingface
from ...weights.prediction import Trained
from ..pixels import pixels_of
from .card import CLASS_MAP, IMAGE_FILES, Differences, class_map, model_card
from .code import Code, code_of, runner
from .int8 import TOLERANCE, Calibration, Cost, judged, measured, quantised
from .onnx_file import FILE, Takes, answer_of, describe, image_model, open_session, tensor_model

BATCHES = (1, 5)  # of the check: two sizes, so that one which was frozen into the file fails


class Disagreement(Ending, RuntimeError):
    """The other library gives other logits; nothing is left behind."""

    code = 1


Read = Callable[[Path], Callable[[Tensor], Tensor]]  # folder -> images to logits


class Form(NamedTuple):
    """One value of --to."""

    library: str
    packages: tuple[str, ...]  # as pip spells them; the extra `export` of pyproject.toml
    tolerance: float  # largest difference of a logit, as a share of the largest logit (or of 1)
    write: Callable[[Trained, Path], None] | None  # the files into a folder; None: `_write_onnx`
    read: Read | None = None  # by that library; None: `_read_onnx`, of a file that takes tensors


def export(
    trained: Trained,
    to: str,
    out: Path,
    takes: Takes = "image",
    calibration: Calibration | None = None,
    accept: bool = False,
) -> Differences:
    """Write into a new or empty folder, check; returns how far the logits of the two libraries are apart.

    Args:
        trained: the model.
        to: one of FORMS.
        out: the folder.
        takes: what an ONNX file takes, a decoded image or a tensor.
        calibration: of an ONNX file in int8; None for float32.
        accept: write int8 also where it loses more than MOST_LOST points of top-1, or is slower.

    Raises:
        ValueError: the form cannot express the model, the folder cannot be written, a package is missing.
        Disagreement: the other library gives other pixels or logits.
        TooCostly: int8 loses more than it may.
    """
    form = FORMS[to]
    if out.suffix in (".onnx", ".safetensors", ".pth"):
        raise ValueError(f"--out {out} is a folder of several files: type --out {out.with_suffix('')}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is there already: type another --out, or remove it")
    check_writable(out, "type another --out", folder=True)
    model = trained.model
    if to != "onnx" and isinstance(model, VisionTransformer) and model.config.distilled and model.fusion != "logits":
        raise ValueError(
            f"{form.library} averages the logits of both tokens, and this run has --fusion {model.fusion}: "
            f"type --to onnx, which keeps that"
        )
    require(form.packages, f"--to {to}")
    found: list[Differences] = []

    def fill(folder: Path) -> None:
        expected: Callable[[Tensor], Any] = model
        cost = None
        if form.write is not None:
            form.write(trained, folder)
        else:
            expected, cost = _write_onnx(trained, folder, takes, calibration, accept)
        checked = form._replace(tolerance=TOLERANCE) if cost is not None else form
        read = _read_onnx if to == "onnx" and takes == "tensor" else form.read
        code = code_of(to, trained.preprocessing, takes)
        differences = _check(trained, checked, read, code, expected, folder)
        found.append(differences._replace(cost=cost))
        card = model_card(trained, to, form.library, found[0], takes)
        (folder / "README.md").write_text(card, errors="backslashreplace")  # of a --data that is not UTF-8

    write_folder(out.absolute(), fill)
    return found[0]


def require(packages: Sequence[str], what: str) -> None:
    """Refuse with the pip line when one of the packages, such as "onnx>=1.18", is missing."""
    names = [package.split(">")[0] for package in packages]
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        line = " ".join(f"'{package}'" for package in packages)
        raise ValueError(f"{what} needs {' and '.join(missing)}, not installed here: type pip install {line}")


def _check(
    trained: Trained, form: Form, read: Read | None, code: Code, expected: Callable[[Tensor], Tensor], folder: Path
) -> Differences:
    side = trained.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    tensors = []
    with torch.inference_mode(), TemporaryDirectory() as temporary:
        if read is not None:
            theirs = read(folder)
            for batch in BATCHES:
                images = torch.randn(batch, 3, side, side, generator=generator)
                tensors.append(_difference(form, expected(images), theirs(images)))
        answer, files, own = runner(code, folder, trained.preprocessing), [], []
        for file in _image_files(Path(temporary), side):
            images = trained.prepare([trained.read(file)])
            logits, given = expected(images), answer(code.images, file)
            _refuse_other_pixels(form, pixels_of(images, trained.preprocessing)[0], given.pixels)
            files.append(_difference(form, logits, given.logits))
            if code.own:
                own.append((logits - answer(code.own, file).logits).abs().max().item())
    return Differences(max(tensors, default=None), max(files), max(own, default=None))


def _refuse_other_pixels(form: Form, expected: NDArray[np.uint8], got: NDArray[np.uint8]) -> None:
    if wrong := int((expected != got).sum()):
        raise Disagreement(
            f"{form.library} gives other logits than the model: {wrong} of {expected.size} bytes of an image differ "
            f"before it sees them, so nothing was written: report this with the versions that pip list shows"
        )


def _difference(form: Form, expected: Tensor, got: Tensor) -> float:
    """The largest difference of a logit; Disagreement where the form's tolerance does not allow it."""
    difference = (expected - got).abs().max().item()
    allowed = form.tolerance * max(1.0, expected.abs().max().item())
    if not difference <= allowed:
        raise Disagreement(
            f"{form.library} gives other logits than the model, by up to {difference:.2g} where {allowed:.2g} is "
            f"allowed, so nothing was written: report this with the versions that pip list shows"
        )
    return difference


def _image_files(folder: Path, side: int) -> Iterator[Path]:
    """Random images of odd sides from half to twice `side`, coarse and fine, with each EXIF orientation in turn."""
    generator = np.random.default_rng(0)
    for number in range(IMAGE_FILES):
        size = tuple((generator.integers(side // 4, side, 2) * 2 + 1).tolist())
        grains = [generator.integers(0, 256, (grain, grain, 3), np.uint8) for grain in (4, 16, 64)]
        image = np.mean([np.asarray(Image.fromarray(grain).resize(size)) for grain in grains], 0).astype(np.uint8)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = number % 8 + 1
        file = folder / f"{number}.png"
        Image.fromarray(image).save(file, exif=exif)
        yield file


def _write_onnx(
    trained: Trained, folder: Path, takes: Takes, calibration: Calibration | None, accept: bool
) -> tuple[Callable[[Tensor], Tensor], Cost | None]:
    """The model that the file must equal, and what int8 costs."""
    import onnx

    model, cost, more = tensor_model(trained), None, {}
    expected: Callable[[Tensor], Tensor] = trained.model
    if calibration is not None:
        small = quantised(model, calibration.images)
        cost = judged(measured(model, small, trained, calibration), model, calibration, accept)
        model = small
        with TemporaryDirectory() as temporary:
            onnx.save_model(model, Path(temporary, FILE))
            expected = _read_onnx(Path(temporary))
        more = {"int8": cost._asdict()}
    if takes == "image":
        model = image_model(model, trained.preprocessing, len(trained.classes))
    describe(model, trained, takes, **more)
    onnx.save_model(model, folder / FILE)
    return expected, cost


def _read_onnx(folder: Path) -> Callable[[Tensor], Tensor]:
    run = answer_of(open_session(folder / FILE))
    return lambda images: torch.from_numpy(run({"images": images.numpy()})["logits"])


def _write_timm(trained: Trained, folder: Path) -> None:
    preprocessing, model = trained.preprocessing, trained.model
    if names := class_map(trained):
        (folder / CLASS_MAP).write_text(names, encoding="utf-8")
    seen = {
        "input_size": [3, preprocessing.image_size, preprocessing.image_size], "crop_pct": preprocessing.crop_ratio,
        "crop_mode": "center", "interpolation": preprocessing.interpolation, "mean": preprocessing.mean,
        "std": preprocessing.std,
    }  # fmt: skip
    turned = {EXIF: preprocessing.exif_orientation}
    if not isinstance(model, VisionTransformer):
        if not hasattr(model, "pretrained_cfg"):
            raise ValueError(
                f"--to timm writes DeiTs and models of timm, and this is a {type(model).__name__}: type --to onnx"
            )
        labels = {"label_names": trained.classes, "pretrained_cfg": seen, **turned}
        timm.models.save_for_hf(model, str(folder), labels, safe_serialization=True)
        return
    sizes = model.config
    # timm's model of the same tokens, and if possible of the same family, width and image size.
    architecture = max(
        (name for name, config in CONFIGS.items() if config.distilled == sizes.distilled and timm.is_model(name)),
        key=lambda name: (
            bool(CONFIGS[name].layer_scale) == bool(sizes.layer_scale),
            CONFIGS[name].width == sizes.width,
            CONFIGS[name].image_size == sizes.image_size,
        ),
    )
    arguments = {
        "img_size": sizes.image_size, "patch_size": sizes.patch_size, "embed_dim": sizes.width, "depth": sizes.depth,
        "num_heads": sizes.heads, "mlp_ratio": sizes.mlp_ratio,
    }  # fmt: skip
    weights = model.state_dict()
    if sizes.layer_scale:
        arguments["init_values"] = sizes.layer_scale
    if sizes.distilled and not sizes.prefix_positions:  # timm's distilled class has positions for both tokens: of 0
        weights["pos_embed"] = F.pad(weights["pos_embed"], (0, 0, sizes.prefix_tokens, 0))
    elif not sizes.prefix_positions:
        arguments["no_embed_class"] = True
    heads = ["head", "head_dist"] if sizes.distilled else "head"
    config = {
        "architecture": architecture,
        "num_classes": sizes.classes,
        "num_features": sizes.width,
        "label_names": trained.classes,
        "model_args": arguments,
        "pretrained_cfg": {
            **seen, "num_classes": sizes.classes, "fixed_input_size": True, "first_conv": "patch_embed.proj",
            "classifier": heads,
        },
        **turned,
    }  # fmt: skip
    _write_weights(weights, folder)
    write_json(folder / "config.json", config)


def _read_timm(folder: Path) -> Callable[[Tensor], Tensor]:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def _write_huggingface(trained: Trained, folder: Path) -> None:
    model, preprocessing = trained.model, trained.preprocessing
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"--to hf writes transformers' DeiT and ViT, and this is a {type(model).__name__}: type --to timm or onnx"
        )
    _write_weights(to_huggingface(model.state_dict(), model.config.prefix_positions), folder)
    write_json(folder / "config.json", huggingface_config(model, trained.classes))
    # CLIP's processor is the one that resizes the shorter side and crops; DeiT's own squeezes the image into a square.
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.resized},
        "resample": {"bilinear": 2, "bicubic": 3}[preprocessing.interpolation],  # Pillow's numbers
        "do_center_crop": True,
        "crop_size": {"height": preprocessing.image_size, "width": preprocessing.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing.mean,
        "image_std": preprocessing.std,
        EXIF: preprocessing.exif_orientation,
    }
    write_json(folder / "preprocessor_config.json", processor)


def _read_huggingface(folder: Path) -> Callable[[Tensor], Tensor]:
    from transformers import AutoModelForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    if wrong := {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]}:
        raise Disagreement(f"transformers does not find the weights it expects ({wrong}), so nothing was written")
    model.eval()
    return lambda images: model(images).logits


def _write_weights(weights: dict[str, Tensor], folder: Path) -> None:
    tensors = {key: value.contiguous() for key, value in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


FORMS = {
    "onnx": Form("onnxruntime", ("onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"), 1e-4, None),
    "timm": Form("timm", ("timm>=1.0.25",), 1e-5, _write_timm, _read_timm),
    "hf": Form("transformers", ("transformers>=5",), 1e-5, _write_huggingface, _read_huggingface),
}
