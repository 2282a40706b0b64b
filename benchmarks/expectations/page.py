"""What users of other libraries expect of our ops, each tried end to end: what agrees, what does not apply, and why.

    python -m benchmarks.expectations            # writes docs/agreement.md

Every line of the page is computed by a function below, on a CPU, in seconds: a patched model against the model as it
was, a loss against the library's own, an augmented image against the library's pixels. Nothing is quoted.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
import transformers
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from timm.data import auto_augment
from timm.loss import SoftTargetCrossEntropy
from timm.task import TokenDistillationTask as TimmTask
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import to_tensor
from torchvision.transforms.v2 import functional as tv

from benchmarks.measure.peers import Fixed
from deit_kernels.augment import OPS as OP_NAMES
from deit_kernels.augment import AugmentPlan, ImageBatch, Policy, apply, apply_op, resized_crop, sample_mix, sample_plan
from deit_kernels.augment.mix import MODES
from deit_kernels.augment.policy import FILTERS, IMAGENET_MEAN, IMAGENET_STD
from deit_kernels.integrations import patch_timm, register_huggingface
from deit_kernels.integrations.criterion import DistillationLoss
from deit_kernels.integrations.timm_task import TokenDistillationTask

PAGE = Path(__file__).parents[2] / "docs" / "agreement.md"
SIZES: dict[str, Any] = {"img_size": 32, "num_classes": 7}
TIMM_MODELS: dict[str, dict[str, Any]] = {
    "deit_tiny_distilled_patch16_224": {"patch_size": 8, "depth": 2},
    "vit_tiny_patch16_224": {"patch_size": 8, "depth": 2},
    "deit3_small_patch16_224": {"patch_size": 8, "depth": 2},
    "vit_small_patch14_reg4_dinov2": {"patch_size": 8, "depth": 2},
    "vit_tiny_patch16_224, qk_norm": {"patch_size": 8, "depth": 2, "qk_norm": True},
    "eva02_tiny_patch14_224": {"patch_size": 8, "depth": 2},
    "cait_xxs24_224": {"patch_size": 8, "depth": 2},
}


class Line(NamedTuple):
    """One expectation.

    Attributes:
        library, what: whose, and what was tried.
        agrees: "yes", "nearly", "no" or "does not apply".
        difference: largest, measured now.
        why: the reason where it is not "yes".
    """

    library: str
    what: str
    agrees: str
    difference: str
    why: str


def judged(library: str, what: str, difference: float, allowed: float, why: str = "") -> Line:
    return Line(library, what, "yes" if difference <= allowed else "no", f"{difference:.1e}", why)


def logits_and_gradient(model: nn.Module, images: Tensor) -> list[Tensor]:
    logits = model(images)
    logits = getattr(logits, "logits", logits)
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def largest(first: list[Tensor], second: list[Tensor]) -> float:
    """Difference relative to the largest value of each tensor."""
    pairs = zip(first, second, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-6)).item() for a, b in pairs)


def attention_in_timm() -> Iterator[Line]:
    images = torch.randn(2, 3, 32, 32)
    for name, changes in TIMM_MODELS.items():
        torch.manual_seed(0)
        model = timm.create_model(name.split(",")[0], **SIZES, **changes).eval()
        patched = copy.deepcopy(model)
        patch = patch_timm(patched)
        if not patch.changed:
            reason = next(iter(patch.skipped.values()), "it has no attention of timm's")
            yield Line("timm", f"{name}: patch_timm", "does not apply", "–", f"left as it was: {reason}")
            continue
        difference = largest(logits_and_gradient(patched, images), logits_and_gradient(model, images))
        what = f"{name}: patch_timm changes {patch.changed} blocks; logits and gradients"
        yield judged("timm", what, difference, 1e-4)


def attention_in_hugging_face() -> Iterator[Line]:
    for family in ("DeiT", "ViT"):
        config = getattr(transformers, f"{family}Config")(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=32,
            patch_size=8, num_labels=7, attn_implementation="sdpa",
        )  # fmt: skip
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForImageClassification")(config).eval()
        patched, images = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
        patched.set_attn_implementation(register_huggingface())
        difference = largest(logits_and_gradient(patched, images), logits_and_gradient(model, images))
        yield judged("transformers", f"{family}: attn_implementation; logits and gradients", difference, 1e-4)


def losses() -> Iterator[Line]:
    torch.manual_seed(0)
    cls, dist, teacher = torch.randn(3, 16, 100)
    target, images = torch.randn(16, 100).softmax(1), torch.zeros(16, 3, 4, 4)
    soft = F.kl_div((dist / 3).log_softmax(1), (teacher / 3).log_softmax(1), reduction="sum", log_target=True) * 9
    official: dict[Any, Tensor] = {"soft": soft / dist.numel(), "hard": F.cross_entropy(dist, teacher.argmax(1))}
    base = -(target * cls.log_softmax(1)).sum(1).mean()
    for mode, term in official.items():
        loss = DistillationLoss(SoftTargetCrossEntropy(), Fixed(teacher), mode, alpha=0.5, tau=3.0)
        difference = (loss(images, (cls, dist), target) - (base + term) / 2).abs().item()
        yield judged("facebookresearch/deit", f"DistillationLoss, {mode}, against its formulas", difference, 1e-5)
        settings: dict[str, Any] = {
            "criterion": SoftTargetCrossEntropy(),
            "distill_type": mode,
            "temperature": 3.0,
            "verbose": False,
        }
        values = [
            task(Fixed(cls, dist), Fixed(teacher), device=torch.device("cpu"), **settings)(images, target)["loss"]
            for task in (TokenDistillationTask, TimmTask)
        ]
        difference = (values[0] - values[1]).abs().item()
        yield judged("timm", f"TokenDistillationTask, {mode}, against timm's own", difference, 1e-5)


def photo() -> np.ndarray:
    return load_sample_images().images[0][:375, :500].copy()


def compared(library: str, what: str, ours: Tensor, theirs: Tensor, why: str) -> Line:
    """A line about two uint8 images."""
    away = (ours.int() - theirs.int()).abs()
    if not away.any():
        return Line(library, what, "yes", "equal in every byte", "")
    most, share = int(away.max()), (away > 0).float().mean().item()
    agrees = "nearly" if most <= 2 else "no"
    return Line(library, what, agrees, f"{most} of 255 at most, in {100 * share:.1f} % of values", why)


WITHOUT_ARGUMENT = ("auto_contrast", "equalize", "invert")
# Our op: (argument, timm's op on a Pillow image, torchvision's on a uint8 tensor where it has one of that meaning)
OPS: dict[str, tuple[float, Callable[..., Image.Image], Callable[[Tensor], Tensor] | None]] = {
    "auto_contrast": (0.0, auto_augment.auto_contrast, tv.autocontrast),
    "equalize": (0.0, auto_augment.equalize, tv.equalize),
    "invert": (0.0, auto_augment.invert, tv.invert),
    "posterize": (3.0, lambda image, bits, **_: auto_augment.posterize(image, int(bits)), lambda x: tv.posterize(x, 3)),
    "solarize": (100.0, auto_augment.solarize, lambda x: tv.solarize(x, 100)),
    "color": (1.7, auto_augment.color, lambda x: tv.adjust_saturation(x, 1.7)),
    "contrast": (1.7, auto_augment.contrast, lambda x: tv.adjust_contrast(x, 1.7)),
    "brightness": (1.7, auto_augment.brightness, lambda x: tv.adjust_brightness(x, 1.7)),
    "sharpness": (1.7, auto_augment.sharpness, lambda x: tv.adjust_sharpness(x, 1.7)),
    "rotate": (21.0, auto_augment.rotate, None),
    "shear_x": (0.2, auto_augment.shear_x, None),
    "translate_x": (31.0, auto_augment.translate_x_abs, None),
    "gaussian_blur": (1.3, auto_augment.gaussian_blur, lambda x: tv.gaussian_blur(x, [9, 9], [1.3, 1.3])),
}
ROUNDS_OTHERWISE = "torchvision computes on tensors in another order or rounding than Pillow; ours is Pillow's"
TRUE_GAUSSIAN = "torchvision weighs by a Gaussian, cut off at the kernel's side; Pillow's blur is three boxes, as ours"


FILL = (124, 116, 104)  # timm's fill: ImageNet's mean


def by_timm(image: Image.Image, row: np.void) -> Tensor:
    """One image through timm's own crop, flip, ops on Pillow and normalisation, with the numbers of a row of a plan.

    A row that reflects pixels has DeiT III's simple random crop, torchvision's.
    """
    mode, pad = InterpolationMode(FILTERS[row["filter"]]), int(row["pad"])
    if pad:
        padded = tv.pad(tv.resize(image, [224], mode), [pad], padding_mode="reflect")
        cropped = tv.crop(padded, *(row["window"] + pad).tolist(), 224, 224)
    else:
        cropped = tv.resized_crop(image, *row["box"].tolist(), [224, 224], mode)
    cropped = tv.horizontal_flip(cropped) if row["flip"] else cropped
    for call in row["ops"][row["ops"]["op"] > 0]:
        name, filter = OP_NAMES[call["op"]], Image.Resampling[FILTERS[call["filter"]].upper()]
        function = getattr(auto_augment, f"{name}_abs" if name.startswith("translate") else name)
        integer = name in ("posterize", "solarize", "solarize_add")
        argument = [] if name in WITHOUT_ARGUMENT else [int(call["arg"]) if integer else float(call["arg"])]
        cropped = function(cropped, *argument, fillcolor=FILL, resample=filter)
    return tv.normalize(to_tensor(cropped), IMAGENET_MEAN, IMAGENET_STD)


RECIPES = {
    "crop, flip, RandAugment rand-m9-mstd0.5-inc1, normalised": ("timm", Policy.deit()),
    "DeiT III: crop, flip, 3-Augment, colour jitter, normalised": ("facebookresearch/deit", Policy.deit3()),
    "the same with the simple random crop": ("facebookresearch/deit", Policy.deit3(src=True)),
    "crop, flip, AutoAugment original, normalised": ("timm", Policy.parse("original")),
    "crop, flip, AutoAugment v0, normalised": ("timm", Policy.parse("v0")),
}


def recipe() -> Iterator[Line]:
    """The whole way from decoded photographs to the mixed batch; both sides use the plan's random numbers."""
    count = 32
    images = [photo()[:, offset:] for offset in range(count)]
    batch = ImageBatch.from_images(images)

    def planned(policy: Policy) -> AugmentPlan:
        return sample_plan(
            policy, seed=1, epoch=0, sample=range(count), copy=0, height=batch.height, width=batch.width
        )  # fmt: skip

    for name, (library, policy) in RECIPES.items():
        plan = planned(policy)
        theirs = [by_timm(Image.fromarray(image), row) for image, row in zip(images, plan.table, strict=True)]
        away = (apply(batch, plan) - torch.stack(theirs)).abs()
        for image, row in zip(away, plan.table, strict=True):
            top, left, height, width = row["erased"].tolist() if row["erase"] else (0, 0, 0, 0)
            image[:, top : top + height, left : left + width] = 0
        outside = ", outside the erased boxes" if policy.erase else ""
        yield judged(library, f"{name}: {count} images{outside}", away.max().item(), 0.0)
    policy = Policy.deit()
    mix = sample_mix(policy, seed=1, step=0, start=0, count=count, group=count)
    alone, lam, mode = apply(batch, planned(policy)), float(mix.lam[0]), MODES[mix.table["mode"][0]]
    expected, partners = alone.clone(), alone.roll(-count // 2, 0)
    top, left, height, width = mix.table["box"][0].tolist()
    if mode == "cutmix":
        window = (..., slice(top, top + height), slice(left, left + width))
        expected[window] = partners[window]
    else:
        expected.mul_(lam).add_(partners.mul(1 - lam))
    away = (apply(batch, planned(policy), mix) - expected).abs()
    yield judged("timm", f"{mode} of that batch, by timm's formula", away.max().item(), 0.0)
    yield Line(
        "timm", "the random numbers themselves", "does not apply", "–",
        "timm draws from Python's and NumPy's global generators; ours are a function of seed, epoch, sample and copy, "
        "of the same distributions; erasing's noise is drawn on the device",
    )  # fmt: skip


def augmentation() -> Iterator[Line]:
    source = photo()
    crop = source[:224, :224].copy()
    pixels = torch.from_numpy(crop)
    planes = pixels.permute(2, 0, 1).contiguous()
    box = torch.tensor([[10, 20, 300, 400]])
    image = Image.fromarray(source)
    cropped = image.crop((20, 10, 420, 310)).resize((224, 224), Image.Resampling.BICUBIC)
    ours = resized_crop(ImageBatch.from_images([source]), box, 224)[0]
    yield compared("timm", "resized crop, bicubic (Pillow)", ours, torch.from_numpy(np.array(cropped)), "")
    whole = torch.from_numpy(source).permute(2, 0, 1)
    theirs = tv.resized_crop(whole, 10, 20, 300, 400, [224, 224], interpolation=InterpolationMode.BICUBIC)
    yield compared("torchvision v2", "resized crop, bicubic", ours, theirs.permute(1, 2, 0), ROUNDS_OTHERWISE)
    options = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
    for name, (argument, timms, torchvisions) in OPS.items():
        ours = apply_op(pixels[None], name, argument)[0]
        theirs = timms(Image.fromarray(crop), *([] if name in WITHOUT_ARGUMENT else [argument]), **options)
        yield compared("timm", f"{name} {argument:g}", ours, torch.from_numpy(np.array(theirs)), "")
        if torchvisions is not None:
            result = torchvisions(planes).permute(1, 2, 0)
            why = TRUE_GAUSSIAN if name == "gaussian_blur" else ROUNDS_OTHERWISE
            yield compared("torchvision v2", f"{name} {argument:g}", ours, result, why)
    theirs = torch.from_numpy(np.array(ImageOps.grayscale(Image.fromarray(crop)).convert("RGB")))
    yield compared("facebookresearch/deit", "greyscale, color 0", apply_op(pixels[None], "color", 0.0)[0], theirs, "")
    yield Line(
        "torchvision v2", "RandAugment as a recipe", "does not apply", "–",
        "another distribution: other ops and magnitudes, one draw a call; timm's strings are ours",
    )  # fmt: skip


def lines() -> list[Line]:
    return [*attention_in_timm(), *attention_in_hugging_face(), *losses(), *recipe(), *augmentation()]


def page(found: list[Line]) -> str:
    names = ("timm", "torch", "torchvision", "transformers", "pillow")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    counts = ", ".join(
        f"{sum(line.agrees == word for line in found)} {word}" for word in ("yes", "nearly", "no", "does not apply")
    )
    head = [
        "# Whose results our ops give", "",
        f"Written by `python -m benchmarks.expectations` on a CPU with {versions}: each line was computed there, and "
        f"[test_expectations.py](../tests/benchmarks/test_expectations.py) computes it again. {counts}. On a CPU our "
        "attention is PyTorch's SDPA, so those lines show that the models are patched rightly; the kernels' own "
        "numbers are tested by [Triton's interpreter](../tests/kernels/attention/interpreter). "
        "Not yet measured on a GPU.",
        "",
        "| library | what was tried | agrees | largest difference | why not |", "|---|---|---|---|---|",
    ]  # fmt: skip
    return "\n".join([*head, *("| " + " | ".join(line) + " |" for line in found)]) + "\n"


def main() -> None:
    found = lines()
    PAGE.write_text(page(found))
    print(f"{PAGE.name}: {len(found)} lines")
