"""An ONNX file that takes an image prepares it with the bytes of `predict`, whatever its size and kind."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deit_fast.config import Preprocessing
from deit_fast.tools.export.formats import export
from deit_fast.tools.export.graphs import preprocessing_graph
from deit_fast.tools.export.onnx_file import answer_of, open_session
from deit_fast.weights.prediction import Trained
from tests.deit_fast.tools.export.test_card_code import ODD, trained

SIZES = [
    (1, 1),
    (1, 2),
    (3, 1),
    (2, 97),
    (4000, 50),
    (50, 4000),
    (31, 33),
    (256, 256),
    (255, 257),
    (480, 640),
    (900, 7),
]
SETTINGS = [
    Preprocessing(),
    Preprocessing(16),
    Preprocessing(33, 1.0, "bilinear"),
    Preprocessing(48, 0.95, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    dataclasses.replace(ODD, exif_orientation=False),
]


def session(preprocessing: Preprocessing, folder: Path):
    (folder / "graph.onnx").write_bytes(preprocessing_graph(preprocessing).SerializeToString())
    return answer_of(open_session(folder / "graph.onnx"))


def pillows(image: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Pillow's own resize, and torchvision's crop."""
    opened, side = Image.fromarray(image), preprocessing.image_size
    shorter = min(opened.size)
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    opened = opened.resize([int(preprocessing.resized * length / shorter) for length in opened.size], resample)
    left, top = (round((length - side) / 2) for length in opened.size)
    return np.asarray(opened.crop((left, top, left + side, top + side)))


def images(generator: np.random.Generator, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Noise, and edges between black and white, where a bicubic filter overshoots on both sides."""
    noise = generator.integers(0, 256, (height, width, 3), np.uint8)
    yield noise
    yield (noise > 127).astype(np.uint8) * 255


@pytest.mark.parametrize("preprocessing", SETTINGS, ids=[str(number) for number in range(len(SETTINGS))])
def test_every_byte_is_pillows_for_every_size(preprocessing: Preprocessing, tmp_path: Path) -> None:
    run, generator = session(preprocessing, tmp_path), np.random.default_rng(0)
    drawn = [tuple(generator.integers(1, 400, 2).tolist()) for _ in range(15)]
    for height, width in [*SIZES, *drawn]:
        for image in images(generator, height, width):
            got = run({"image": image})
            np.testing.assert_array_equal(got["pixels"], pillows(image, preprocessing), err_msg=f"{height} x {width}")
            model = Trained(torch.nn.Identity(), [], preprocessing, "")
            np.testing.assert_array_equal(got["images"], model.prepare([image]).numpy())


def kinds(folder: Path) -> list[Path]:
    """Files of every kind that `predict` reads: grey, palette, CMYK, alpha, 16 bits, EXIF, long, tiny."""
    photograph = Image.fromarray(skimage.data.chelsea())
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = (np.asarray(photograph.convert("L"), np.uint16) << 8) + 17
    files = {
        "grey.png": (photograph.convert("L"), {}),
        "palette.png": (photograph.quantize(64), {}),
        "palette.gif": (photograph.quantize(16), {}),
        "cmyk.jpg": (photograph.convert("CMYK"), {}),
        "alpha.png": (photograph.convert("RGBA"), {}),
        "deep.png": (Image.fromarray(deep), {}),
        "exif.jpg": (photograph, {"exif": exif}),
        "exif.png": (photograph, {"exif": exif}),
        "bits.png": (photograph.convert("1"), {}),
        "long.jpg": (photograph.resize((4000, 50)), {}),
        "tall.png": (photograph.resize((50, 4000)), {}),
        "one.png": (photograph.resize((1, 1)), {}),
        "webp.webp": (photograph.resize((333, 217)), {}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return [folder / name for name in files]


@pytest.mark.parametrize("turned", [False, True])
def test_files_of_every_kind_give_the_answer_of_predict(tmp_path: Path, turned: bool) -> None:
    model = trained(Preprocessing(24, exif_orientation=turned))
    export(model, "onnx", tmp_path / "out")
    run = answer_of(open_session(tmp_path / "out" / "model.onnx"))
    for file in kinds(tmp_path):
        opened = Image.open(file)
        decoded = np.asarray((ImageOps.exif_transpose(opened) if turned else opened).convert("RGB"))
        got, expected = run({"image": decoded}), model.prepare([model.read(file)])
        with torch.inference_mode():
            logits = model.model(expected)[0]
        ((_, top),) = model.predict([file], top=5)
        np.testing.assert_allclose(got["logits"], logits.numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(got["probabilities"], logits.softmax(-1).numpy(), rtol=0, atol=1e-5)
        assert got["labels"].tolist() == [label for _, label, _ in top], file


@pytest.mark.slow
def test_a_thousand_crops_of_photographs(tmp_path: Path) -> None:
    preprocessing = Preprocessing()
    run, generator = session(preprocessing, tmp_path), np.random.default_rng(1)
    photographs = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    for number in range(1000):
        photograph = photographs[number % 4]
        height, width = (int(generator.integers(20, length + 1)) for length in photograph.shape[:2])
        top, left = (
            int(generator.integers(0, length - size + 1))
            for length, size in zip(photograph.shape[:2], (height, width), strict=True)
        )
        crop = np.ascontiguousarray(photograph[top : top + height, left : left + width])
        assert np.array_equal(run({"image": crop})["pixels"], pillows(crop, preprocessing)), crop.shape
