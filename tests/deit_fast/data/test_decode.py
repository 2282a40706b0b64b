"""Pixels are Pillow's `convert("RGB")` for every kind of file people have; anything else says why in a sentence."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

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
    "jpeg 4:2:0, coarse": encoded(RGB, "JPEG", subsampling=2, quality=5),
    "jpeg progressive": encoded(RGB, "JPEG", progressive=True),
    "jpeg with restart markers": encoded(RGB, "JPEG", restart_marker_blocks=1),
    "jpeg grey": encoded(GREY, "JPEG"),
    "jpeg stored as RGB": encoded(RGB, "JPEG", keep_rgb=True),
    "jpeg cmyk": encoded(CMYK, "JPEG"),
    "jpeg with bytes after its end": encoded(RGB, "JPEG") + b"camera maker's block",
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


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpegs_of_every_small_size_have_pillows_pixels(subsampling):
    """Sizes at and round the 8 and 16 pixel blocks, where the chroma of the last column and row is made up."""
    for height in (1, 2, 7, 8, 9, 15, 16, 17):
        for width in (1, 2, 7, 8, 9, 15, 16, 17, 33):
            data = encoded(Image.fromarray(NOISE[:height, :width, :3].copy()), "JPEG", subsampling=subsampling)
            assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)))), (height, width)


def test_sound_jpegs_do_not_take_the_slow_way(monkeypatch):
    monkeypatch.setattr(sys.modules[decode.__module__], "_decode_with_pillow", None)
    kinds = [kind for kind in FILES if kind.startswith("jpeg") and kind != "jpeg cmyk"]
    assert len(kinds) > 8
    for kind in kinds:
        decode(FILES[kind])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_written_where_the_caller_says(kind):
    memory = np.zeros(31 * 23 * 3 + 2, np.uint8)

    def reserve(height, width):
        assert (height, width) == (23, 31)
        return memory[1:-1].reshape(height, width, 3)

    pixels = decode(FILES[kind], reserve=reserve)
    assert np.shares_memory(pixels, memory)
    assert np.array_equal(pixels, decode(FILES[kind]))
    assert memory[0] == memory[-1] == 0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied_on_request_as_pillow_does(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, format, exif=exif)
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data, exif_orientation=True), np.asarray(turned))


def test_a_damaged_exif_block_turns_nothing():
    data = FILES["jpeg with corrupt exif"]
    assert np.array_equal(decode(data, exif_orientation=True), decode(data))


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


def header_says(data: bytes, height: int, width: int) -> bytes:
    """A JPEG file whose header has another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        header_says(FILES["jpeg 4:2:0"], 0, 31),
        header_says(FILES["jpeg 4:2:0"], 23, 0),
        b"P6\n0 0\n255\n",
        FILES["png"][:16] + bytes(8) + FILES["png"][24:],
    ],
)
def test_an_image_without_pixels_is_bad(data):
    with pytest.raises(BadImage, match=r"it (is|has) "):
        decode(data)


def test_a_jpeg_that_says_it_is_huge_is_refused_before_memory_is_taken():
    def reserve(height, width):
        raise AssertionError("memory was asked for")

    with pytest.raises(BadImage, match=r"65000 × 65000 is more than the limit|decompression bomb"):
        decode(header_says(FILES["jpeg 4:2:0"], 65_000, 65_000), reserve=reserve)


def test_a_bomb_is_refused_before_its_pixels_are_decoded():
    """A 20 000 × 20 000 image of 49 kB would fill 1.2 GB."""
    with pytest.raises(BadImage, match="it is a decompression bomb"):
        decode(encoded(Image.new("1", (20_000, 20_000)), "PNG"))


def test_the_limit_of_pixels_can_be_lowered():
    assert decode(FILES["png"], max_pixels=23 * 31).shape == (23, 31, 3)
    with pytest.raises(BadImage, match="31 × 23 is more than the limit of 712 pixels"):
        decode(FILES["png"], max_pixels=23 * 31 - 1)
