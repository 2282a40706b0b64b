"""A trained model written for another library, which must give the same logits before the files are handed over."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..command import Ending
from ..files import check_writable, write_folder, write_json
from ..model import CONFIGS, VisionTransformer
from ..weights.exported import knows_classes
from ..weights.huggingface import huggingface_config, to_huggingface
from ..weights.prediction import Trained
from .card import CLASS_MAP, model_card

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


def export(trained: Trained, to: str, out: Path) -> float:
    """Write into a new or empty folder, check; returns the largest difference of a logit between the two libraries."""
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
    difference = 0.0

    def fill(folder: Path) -> None:
        nonlocal difference
        form.write(trained, folder)
        difference = _check(trained, form, folder)
        card = model_card(trained, to, form.library, difference)
        (folder / "README.md").write_text(card, errors="backslashreplace")  # of a --data that is not UTF-8

    write_folder(out.absolute(), fill)
    return difference


def require(packages: Sequence[str], what: str) -> None:
    """Refuse with the pip line when one of the packages, such as "onnx>=1.18", is missing."""
    names = [package.split(">")[0] for package in packages]
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        line = " ".join(f"'{package}'" for package in packages)
        raise ValueError(f"{what} needs {' and '.join(missing)}, not installed here: type pip install {line}")


def _check(trained: Trained, form: Form, folder: Path) -> float:
    theirs, side, worst = form.read(folder), trained.policy.size, 0.0
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        images = torch.randn(batch, 3, side, side, generator=generator)
        with torch.inference_mode():
            expected, got = trained.model(images), theirs(images)
        difference = (expected - got).abs().max().item()
        allowed = form.tolerance * max(1.0, expected.abs().max().item())
        if not difference <= allowed:
            raise Disagreement(
                f"{form.library} gives other logits than the model, by up to {difference:.2g} where {allowed:.2g} is "
                f"allowed, so nothing was written: report this with the versions that pip list shows"
            )
        worst = max(worst, difference)
    return worst


def _write_onnx(trained: Trained, folder: Path) -> None:
    import onnx

    side, policy = trained.policy.size, trained.policy
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
    facts = {"classes": trained.classes, "image_size": side}
    facts |= {name: getattr(policy, name) for name in ("crop_ratio", "interpolation", "mean", "std")}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save_model(model, folder / "model.onnx")


def _read_onnx(folder: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_timm(trained: Trained, folder: Path) -> None:
    policy, model = trained.policy, trained.model
    if knows_classes(trained):
        names = "".join(f"{name}\n" for name in trained.classes)
        (folder / CLASS_MAP).write_text(names, encoding="utf-8")
    seen = {
        "input_size": [3, policy.size, policy.size], "crop_pct": policy.crop_ratio, "crop_mode": "center",
        "interpolation": policy.interpolation, "mean": policy.mean, "std": policy.std,
    }  # fmt: skip
    if not isinstance(model, VisionTransformer):
        if not hasattr(model, "pretrained_cfg"):
            raise ValueError(
                f"--to timm writes DeiTs and models of timm, and this is a {type(model).__name__}: type --to onnx"
            )
        labels = {"label_names": trained.classes, "pretrained_cfg": seen}
        timm.models.save_for_hf(model, folder, labels, safe_serialization=True)
        return
    sizes = model.config
    # The official model of the same tokens, and if possible of the same width and image size.
    architecture = max(
        (name for name, config in CONFIGS.items() if config.distilled == sizes.distilled),
        key=lambda name: (CONFIGS[name].width == sizes.width, CONFIGS[name].image_size == sizes.image_size),
    )
    arguments = {
        "img_size": sizes.image_size, "patch_size": sizes.patch_size, "embed_dim": sizes.width, "depth": sizes.depth,
        "num_heads": sizes.heads, "mlp_ratio": sizes.mlp_ratio,
    }  # fmt: skip
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
    }  # fmt: skip
    _write_weights(model.state_dict(), folder)
    write_json(folder / "config.json", config)


def _read_timm(folder: Path) -> Callable[[Tensor], Tensor]:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def _write_huggingface(trained: Trained, folder: Path) -> None:
    model, policy = trained.model, trained.policy
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"--to hf writes transformers' DeiT and ViT, and this is a {type(model).__name__}: type --to timm or onnx"
        )
    _write_weights(to_huggingface(model.state_dict()), folder)
    write_json(folder / "config.json", huggingface_config(model, trained.classes))
    # CLIP's processor is the one that resizes the shorter side and crops; DeiT's own squeezes the image into a square.
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": int(policy.size / policy.crop_ratio)},
        "resample": {"bilinear": 2, "bicubic": 3}[policy.interpolation],  # Pillow's numbers
        "do_center_crop": True,
        "crop_size": {"height": policy.size, "width": policy.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": policy.mean,
        "image_std": policy.std,
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
