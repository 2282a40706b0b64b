"""A trained model written for another library, which must give the same logits before the files are handed over."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from safetensors.torch import save_file
from torch import Tensor

from ..command import Ending
from ..files import check_writable, write_folder, write_json
from ..model import CONFIGS, VisionTransformer
from ..weights.exported import EXIF
from ..weights.huggingface import huggingface_config, to_huggingface
from ..weights.prediction import Trained
from .card import CLASS_MAP, IMAGE_FILES, Differences, class_map, model_card
from .code import code_of, runner

BATCHES = (1, 5)  # of the check: two sizes, so that one which was frozen into the file fails


class Disagreement(Ending, RuntimeError):
    """The other library gives other logits; nothing is left behind."""

    code = 1


class Form(NamedTuple):
    """One value of --to."""

    library: str
    packages: tuple[str, ...]  # as pip spells them; the extra `export` of pyproject.toml
    tolerance: float  # largest difference of a logit, as a share of the largest logit (or of 1)
    write: Callable[[Trained, Path], None]  # the files into a folder
    read: Callable[[Path], Callable[[Tensor], Tensor]]  # folder -> images to logits, by that library


def export(trained: Trained, to: str, out: Path) -> Differences:
    """Write into a new or empty folder, check; returns how far the logits of the two libraries are apart."""
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
        form.write(trained, folder)
        found.append(_check(trained, to, folder))
        card = model_card(trained, to, form.library, found[0])
        (folder / "README.md").write_text(card, errors="backslashreplace")  # of a --data that is not UTF-8

    write_folder(out.absolute(), fill)
    return found[0]


def require(packages: Sequence[str], what: str) -> None:
    """Refuse with the pip line when one of the packages, such as "onnx>=1.18", is missing."""
    names = [package.split(">")[0] for package in packages]
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        line = " ".join(f"'{package}'" for package in packages)
        raise ValueError(f"{what} needs {' and '.join(missing)}, not installed here: type pip install {line}")


def _check(trained: Trained, to: str, folder: Path) -> Differences:
    form, code, side = FORMS[to], code_of(to, trained.preprocessing), trained.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(batch, 3, side, side, generator=generator) for batch in BATCHES]
    with torch.inference_mode(), TemporaryDirectory() as temporary:
        theirs = form.read(folder)
        tensors = [_difference(form, trained.model(images), theirs(images)) for images in batches]
        answer, files, own = runner(code, folder), [], []
        for file in _image_files(Path(temporary), side):
            logits = trained.model(trained.prepare([trained.read(file)]))
            files.append(_difference(form, logits, answer(code.images, file)))
            if code.own:
                own.append((logits - answer(code.own, file)).abs().max().item())
    return Differences(max(tensors), max(files), max(own, default=None))


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
        image = np.mean([Image.fromarray(grain).resize(size) for grain in grains], 0).astype(np.uint8)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = number % 8 + 1
        file = folder / f"{number}.png"
        Image.fromarray(image).save(file, exif=exif)
        yield file


def _write_onnx(trained: Trained, folder: Path) -> None:
    import onnx

    preprocessing, side = trained.preprocessing, trained.preprocessing.image_size
    try:
        program = torch.onnx.export(
            trained.model,
            (torch.zeros(2, 3, side, side),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"torch.onnx cannot export a {type(trained.model).__name__} ({reason})") from error
    model = program.model_proto
    facts = {"classes": trained.classes, **dataclasses.asdict(preprocessing)}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save_model(model, folder / "model.onnx")


def _read_onnx(folder: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


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
        timm.models.save_for_hf(model, folder, labels, safe_serialization=True)
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
    "onnx": Form("onnxruntime", ("onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"), 1e-4, _write_onnx, _read_onnx),
    "timm": Form("timm", ("timm>=1.0.25",), 1e-5, _write_timm, _read_timm),
    "hf": Form("transformers", ("transformers>=5",), 1e-5, _write_huggingface, _read_huggingface),
}
