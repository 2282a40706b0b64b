"""Pixels are Pillow's `convert("RGB")` for every kind of file people have; anything else says why in a sentence."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deit_fast.data import BadImage, decode

NOISE = np.random.default_rng(0).integers(0, 256, (23, 31, 4), dtype=np.uint8)
RGB = Image.fromarray(NOISE[..., :3])
GREY = RGB.convert("L")
PALETTE = RGB.quantize(16)
CMYK = Image.frombytes("CMYK", RGB.size, NOISE.tobytes())
SIXTEEN_BIT = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # orientation: the camera was held sideways


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


FILES = {
    "jpeg 4:4:4": encoded(RGB, "JPEG", subsampling=0),
    "jpeg 4:2:2": encoded(RGB, "JPEG", subsampling=1),
    "jpeg 4:2:0": encoded(RGB, "JPEG", subsampling=2),
    "jpeg progressive": encoded(RGB, "JPEG", progressive=True),
    "jpeg grey": encoded(GREY, "JPEG"),
    "jpeg cmyk": encoded(CMYK, "JPEG"),
    "jpeg with orientation": encoded(RGB, "JPEG", exif=ROTATED),
    "jpeg with corrupt exif": encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"),
    "png": encoded(RGB, "PNG"),
    "png alpha": encoded(Image.fromarray(NOISE), "PNG"),
    "png grey and alpha": encoded(Image.fromarray(NOISE).convert("LA"), "PNG"),
    "png palette": encoded(PALETTE, "PNG"),
    "png palette, one transparent colour": encoded(PALETTE, "PNG", transparency=3),
    "png palette, alpha for each colour": encoded(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "png 16-bit": encoded(SIXTEEN_BIT, "PNG"),
    "png 1-bit": encoded(GREY.convert("1"), "PNG"),
    "tiff cmyk": encoded(CMYK, "TIFF"),
    "tiff 16-bit": encoded(SIXTEEN_BIT, "TIFF"),
    "gif animated": encoded(PALETTE, "GIF", save_all=True, append_images=[GREY.quantize(4)], transparency=3),
    "webp": encoded(RGB, "WEBP"),
    "webp animated": encoded(RGB, "WEBP", save_all=True, append_images=[GREY.convert("RGB")]),
    "bmp": encoded(RGB, "BMP"),
    "ppm": encoded(RGB, "PPM"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FILES)
def test_pixels_equal_pillows_conversion_to_rgb(kind):
    pixels = decode(FILES[kind])
    assert pixels.dtype == np.uint8
    assert pixels.shape == (23, 31, 3)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(FILES[kind])).convert("RGB")))


def test_nothing_is_written_to_the_console_even_for_files_that_make_pillow_warn(tmp_path):
    """In a fresh interpreter, as a run would be: the test runner has its own way with warnings."""
    for number, data in enumerate(FILES.values()):
        (tmp_path / f"{number:02}").write_bytes(data)
    plain = "from PIL import Image; Image.open(path).convert('RGB')"
    ours = "from deit_fast.data import decode; decode(path.read_bytes())"
    spoken = {}
    for statement in (plain, ours):
        imported, use = statement.split("; ")
        program = f"{imported}\nfrom pathlib import Path\nfor path in sorted(Path({str(tmp_path)!r}).iterdir()): {use}"
        result = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        spoken[statement] = result.stderr + result.stdout
    assert "transparency" in spoken[plain].lower(), "the files no longer make Pillow warn: this test shows nothing"
    assert "PIL" not in spoken[ours]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_anywhere_is_a_bad_image_or_still_an_image(kind):
    """Never another exception, whatever parser the cut falls into."""
    for length in range(1, len(FILES[kind]), max(1, len(FILES[kind]) // 40)):
        try:
            assert decode(FILES[kind][:length]).shape == (23, 31, 3)
        except BadImage as error:
            assert str(error).startswith("it is ")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404 not found</html>", "it is not an image of a format that Pillow reads"),
        (FILES["jpeg 4:2:0"][:-200], r"it is truncated or corrupt \(image file is truncated"),
        (FILES["png"][:-200], r"it is truncated or corrupt \(image file is truncated"),
        (FILES["ppm"][:6], r"it is truncated or corrupt \(Reached EOF while reading header"),
    ],
)
def test_what_is_no_image_says_why(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode(data)


def test_a_bomb_is_refused_before_its_pixels_are_decoded():
    """A 20 000 × 20 000 image of 49 kB would fill 1.2 GB."""
    with pytest.raises(BadImage, match="it is a decompression bomb"):
        decode(encoded(Image.new("1", (20_000, 20_000)), "PNG"))


def test_the_limit_of_pixels_can_be_lowered():
    assert decode(FILES["png"], max_pixels=23 * 31).shape == (23, 31, 3)
    with pytest.raises(BadImage, match="31 × 23 is more than the limit of 712 pixels"):
        decode(FILES["png"], max_pixels=23 * 31 - 1)
