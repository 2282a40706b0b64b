"""Every op gives the pixels of timm's own function on Pillow, in C++ and in NumPy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from augment_cases import needs_extension, noise, photo
from PIL import Image, ImageFilter
from timm.data import auto_augment
from torchvision.transforms import Grayscale

from deit_kernels.augment import OPS, Policy, apply_op, reference, sample_plan, single_op
from deit_kernels.augment.plan import OP

FILL = (124, 116, 104)
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
WITHOUT_ARGUMENT = ("auto_contrast", "equalize", "invert")
INTEGER = ("posterize", "solarize", "solarize_add")
AFFINE = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
# What the recipe draws, both signs, its bounds, and the values at which Pillow takes a way of its own.
ARGUMENTS = {
    **dict.fromkeys(WITHOUT_ARGUMENT, (0.0,)),
    "rotate": (27.3, -13.1, 30.0, -30.0, 0.0, 90.0, -90.0, 180.0, -45.0, 359.9),
    "posterize": (0.0, 1.0, 2.0, 3.0, 4.0, 8.0),
    "solarize": (0.0, 1.0, 26.0, 87.0, 128.0, 256.0),
    "solarize_add": (0.0, 98.0, 110.0, 128.0),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (0.0, 0.1, 0.19, 0.5, 1.0, 1.81, 1.9)),
    **dict.fromkeys(("shear_x", "shear_y"), (0.27, -0.3, 0.0, 1.0, -2.5)),
    **dict.fromkeys(("translate_x", "translate_y"), (90.4, -100.8, 3.0, -0.5, 0.0, 5000.0)),
    # The box's radius is 0, then 1 up to a deviation of 2.45, then more, at last more than a line has pixels.
    "gaussian_blur": (0.0, 1e-9, 0.1, 0.5, 1.4142, 1.4143, 1.9, 2.0, 2.6, 7.3, 40.0, 100.0),
}
TIMM = {name: getattr(auto_augment, name) for name in OPS[1:] if not name.startswith("translate")}
TIMM |= {"translate_x": auto_augment.translate_x_abs, "translate_y": auto_augment.translate_y_abs}


def two_levels(height: int, width: int) -> np.ndarray:
    low = np.random.default_rng(0).random((height, width, 1)) < 0.3
    return np.where(low, np.uint8(20), np.uint8(220)).repeat(3, axis=2)


IMAGES = {
    "photograph": lambda: photo()[100:324, 200:424].copy(),
    "noise": lambda: noise(65, 97),
    "constant": lambda: np.full((30, 31, 3), 77, np.uint8),
    "two levels": lambda: two_levels(33, 34),
    "black": lambda: np.zeros((20, 20, 3), np.uint8),
    "one line": lambda: noise(1, 50),
    "one column": lambda: noise(50, 1),
    "two columns": lambda: noise(9, 2),
    "one pixel": lambda: noise(1, 1),
    "long": lambda: noise(3, 4000),
}


def timm_op(image: np.ndarray, name: str, arg: float, interpolation: str) -> np.ndarray:
    if name == "posterize" and arg == 0:
        return np.zeros_like(image)  # Pillow below 13; from 13 on it raises
    if name == "rotate" and image.shape[:2] == (1, 1) and arg in (90.0, -90.0, 180.0):
        return image
    args = () if name in WITHOUT_ARGUMENT else (int(arg) if name in INTEGER else arg,)
    done = TIMM[name](Image.fromarray(image), *args, fillcolor=FILL, resample=PILLOW[interpolation])
    return np.asarray(done)


def extension(image: np.ndarray, name: str, arg: float, interpolation: str, fast: bool = False) -> np.ndarray:
    images = torch.from_numpy(image)[None].contiguous()
    return apply_op(images, name, arg, interpolation=interpolation, fill=FILL, fast=fast)[0].numpy()


def numpy(image: np.ndarray, name: str, arg: float, interpolation: str, fast: bool = False) -> np.ndarray:
    call = np.zeros((), OP)
    call["op"], call["arg"], call["fill"], call["fast"] = OPS.index(name), arg, FILL, fast
    call["filter"] = interpolation == "bicubic"
    call["matrix"] = single_op.matrix(name, arg, *image.shape[:2])
    return reference.ops.run_call(image, call)


Run = Callable[..., np.ndarray]
implementations = pytest.mark.parametrize("run", [pytest.param(extension, marks=needs_extension), numpy])


@implementations
@pytest.mark.parametrize("name", OPS[1:])
@pytest.mark.parametrize("kind", IMAGES)
def test_pixels_are_those_of_timm(run: Run, kind: str, name: str) -> None:
    image = IMAGES[kind]()
    for interpolation in PILLOW if name in AFFINE else ("bicubic",):
        for arg in ARGUMENTS[name]:
            expected = timm_op(image, name, arg, interpolation)
            assert (run(image, name, arg, interpolation) == expected).all(), f"{arg} {interpolation}"


@implementations
@pytest.mark.parametrize("kind", IMAGES)
def test_colour_0_is_the_grey_of_pillow_and_torchvision(run: Run, kind: str) -> None:
    image = IMAGES[kind]()
    ours = run(image, "color", 0.0, "bicubic")
    assert (ours == np.asarray(Image.fromarray(image).convert("L").convert("RGB"))).all()
    assert (ours == np.asarray(Grayscale(3)(Image.fromarray(image)))).all()


@implementations
def test_any_drawn_blur_is_pillows(run: Run) -> None:
    image = photo()[100:165, 200:297].copy()
    for radius in np.random.default_rng(0).uniform(0.1, 2.0, 60).tolist():
        expected = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
        assert (run(image, "gaussian_blur", radius, "bicubic") == np.asarray(expected)).all(), radius


@implementations
def test_jitter_is_torchvisions(run: Run) -> None:
    adjust = {"brightness": F.adjust_brightness, "contrast": F.adjust_contrast, "color": F.adjust_saturation}
    for image in (photo()[:90, :131].copy(), noise(37, 51)):
        for factor in np.random.default_rng(0).uniform(0.0, 2.5, 12).tolist():
            for name, theirs in adjust.items():
                expected = theirs(Image.fromarray(image), factor)
                assert (run(image, name, factor, "bicubic") == np.asarray(expected)).all(), (name, factor)


@needs_extension
@pytest.mark.parametrize("name", AFFINE)
def test_fast_affine_ops_are_the_same_in_numpy(name: str) -> None:
    for image in (photo()[:100, :150].copy(), noise(31, 65)):
        for interpolation in PILLOW:
            for arg in ARGUMENTS[name]:
                ours = extension(image, name, arg, interpolation, fast=True)
                assert (ours == numpy(image, name, arg, interpolation, fast=True)).all()


def test_fast_affine_ops_differ_by_one_level_on_less_than_a_thousandth_of_the_pixels() -> None:
    image = photo()[100:324, 200:424].copy()
    plan = sample_plan(Policy.deit(224), seed=0, epoch=0, sample=range(600), copy=0, height=9, width=9)
    calls = plan.table["ops"].reshape(-1)
    for name in AFFINE:
        drawn = calls["arg"][calls["op"] == OPS.index(name)][:12]
        images = torch.from_numpy(image).expand(len(drawn), -1, -1, -1).contiguous()
        exact, fast = (apply_op(images, name, drawn, fast=fast).numpy().astype(int) for fast in (False, True))
        assert np.abs(exact - fast).max() <= 1
        assert (exact != fast).any(axis=-1).mean() < 1e-3


@needs_extension
def test_a_drawn_rotation_is_pillows() -> None:
    # Sine and cosine of a plan are our own; a last digit may differ from Python's, a pixel of a photograph does not.
    image = photo()[100:324, 200:424].copy()
    plan = sample_plan(Policy.deit(224), seed=1, epoch=0, sample=range(2000), copy=0, height=9, width=9)
    calls = plan.table["ops"].reshape(-1)
    calls = calls[calls["op"] == OPS.index("rotate")]
    assert len(calls) > 100
    own = np.array([single_op.matrix("rotate", call["arg"], 224, 224) for call in calls])
    assert np.abs(own - calls["matrix"])[:, [0, 1, 3, 4]].max() <= 1.01e-15
    rows = torch.from_numpy(calls[:40].copy().view(np.uint8).reshape(-1, OP.itemsize))
    images = torch.from_numpy(image).expand(40, -1, -1, -1).contiguous()
    rotated = torch.ops.deit_kernels._augment_op(images, rows)
    for result, call in zip(rotated, calls, strict=False):
        assert (result.numpy() == timm_op(image, "rotate", call["arg"], "bicubic")).all()


def test_every_image_has_its_own_argument_and_the_input_stays() -> None:
    images = torch.from_numpy(np.stack([noise(12, 13, seed) for seed in range(3)]))
    before = images.clone()
    factors = torch.tensor([0.1, 1.0, 1.9], dtype=torch.float64)
    result = apply_op(images, "color", factors)
    assert torch.equal(images, before)
    for index, factor in enumerate(factors.tolist()):
        assert torch.equal(result[index], apply_op(images[index : index + 1], "color", factor)[0])


def test_no_images_give_no_images() -> None:
    assert apply_op(torch.zeros(0, 4, 5, 3, dtype=torch.uint8), "invert").shape == (0, 4, 5, 3)


@pytest.mark.parametrize("arg", [float("nan"), float("inf"), -float("inf"), 1e300, -1e300])
def test_a_row_of_any_number_is_harmless(arg: float) -> None:
    # apply_op refuses them; rows on a card cannot be looked at.
    image = noise(20, 21)
    calls = np.zeros(len(OPS), OP)
    calls["op"], calls["arg"], calls["matrix"] = range(len(OPS)), arg, arg
    calls["matrix"][::2, 1:] = [0.0, 0.0, arg, 1.0, 0.0]
    images = torch.from_numpy(image).expand(len(OPS), -1, -1, -1).contiguous()
    torch.ops.deit_kernels._augment_op(images, torch.from_numpy(calls.view(np.uint8).reshape(len(OPS), -1)))
