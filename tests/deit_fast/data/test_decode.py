"""Pixels are Pillow's `convert("RGB")` for every kind of file people have; anything else says why in a sentence."""

import base64
import io
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from deit_fast.data import BadImage, decode
from deit_fast.data.decode import _has_one_scan, decode_wanted
from deit_fast.data.jpeg_part import Box

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


def adobe_transform(data: bytes, number: int) -> bytes:
    """A JPEG file whose Adobe block says that its colours were transformed otherwise: 0 CMYK, 2 YCCK."""
    at = data.index(b"Adobe") + 11
    return data[:at] + bytes([number]) + data[at + 1 :]


FILES = {
    "jpeg 4:4:4": encoded(RGB, "JPEG", subsampling=0),
    "jpeg 4:2:2": encoded(RGB, "JPEG", subsampling=1),
    "jpeg 4:2:0": encoded(RGB, "JPEG", subsampling=2),
    "jpeg 4:4:0": simplejpeg.encode_jpeg(np.ascontiguousarray(NOISE[..., :3]), colorsubsampling="440"),
    "jpeg 4:1:1": encoded(RGB, "JPEG", subsampling="4:1:1"),
    "jpeg 4:2:0, coarse": encoded(RGB, "JPEG", subsampling=2, quality=5),
    "jpeg progressive": encoded(RGB, "JPEG", progressive=True),
    "jpeg with restart markers": encoded(RGB, "JPEG", restart_marker_blocks=1),
    "jpeg grey": encoded(GREY, "JPEG"),
    "jpeg stored as RGB": encoded(RGB, "JPEG", keep_rgb=True),
    "jpeg cmyk": encoded(CMYK, "JPEG"),
    "jpeg ycck": adobe_transform(encoded(CMYK, "JPEG"), 2),
    "jpeg of two pictures": encoded(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)]),
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
    "jpeg 2000": encoded(RGB, "JPEG2000", irreversible=False),
}
RAMP = (np.add.outer(6 * np.arange(24), 4 * np.arange(32))[..., None] * [1, 0.5, 0.25]).clip(0, 255).astype(np.uint8)
# RAMP as a JPEG file of quality 75 and 4:2:0, its coefficients arithmetically coded by libjpeg-turbo; Pillow does not
# write such files.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAx"
    "NDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
    "MjIyMjIyMjL/yQARCAAYACADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANLvHLAaPNdVm02HKb+CMWHl/oXC"
    "GECXJnTOoyZu63w5X/eK3LMzheCfu10WzfhblAyMfNobGuXvSi/m4P/Z"
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FILES)
def test_pixels_equal_pillows_conversion_to_rgb(kind):
    pixels = decode(FILES[kind])
    assert pixels.dtype == np.uint8
    assert pixels.shape == (23, 31, 3)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(FILES[kind])).convert("RGB")))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "440"])
def test_jpegs_of_every_small_size_have_pillows_pixels(subsampling):
    """Sizes at and round the 8 and 16 pixel blocks, where the chroma of the last column and row is made up."""
    for height in (1, 2, 7, 8, 9, 15, 16, 17):
        for width in (1, 2, 7, 8, 9, 15, 16, 17, 33):
            pixels = NOISE[:height, :width, :3].copy()
            if subsampling == "440":  # which Pillow reads and does not write
                data = simplejpeg.encode_jpeg(pixels, colorsubsampling="440")
            else:
                data = encoded(Image.fromarray(pixels), "JPEG", subsampling=subsampling)
            assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)))), (height, width)


def test_sound_jpegs_do_not_take_the_slow_way(monkeypatch):
    monkeypatch.setattr(sys.modules[decode.__module__], "_decode_with_pillow", None)
    kinds = [kind for kind in FILES if kind.startswith("jpeg ") and kind not in ("jpeg cmyk", "jpeg ycck", "jpeg 2000")]
    assert len(kinds) > 10
    for kind in kinds:
        decode(FILES[kind])


def test_ycck_is_another_picture_than_cmyk():
    """The two of FILES have the same bytes but for the transform: a decoder that overlooks it gives equal pixels."""
    assert not np.array_equal(decode(FILES["jpeg ycck"]), decode(FILES["jpeg cmyk"]))


def test_an_arithmetically_coded_jpeg_is_bad_or_has_the_pixels_of_its_coefficients():
    whole = decode(encoded(Image.fromarray(RAMP), "JPEG", quality=75, subsampling=2))
    box = Box(4, 0, 8, 16)
    try:
        assert np.array_equal(decode(ARITHMETIC), whole)
        part = decode_wanted(ARITHMETIC, lambda height, width: box)
        top = box.top - part.top
        assert np.array_equal(part.pixels[top : top + 8, :16], whole[4:12, :16])
    except BadImage as error:
        assert str(error).startswith("it is truncated or corrupt")


@pytest.mark.parametrize("start_of_frame", [b"\xff\xc1", b"\xff\xc2"])
def test_a_jpeg_of_12_bits_a_sample_is_bad(start_of_frame):
    """Sequential and progressive; 8-bit decoders would give a grey fog."""
    data = FILES["jpeg progressive" if start_of_frame == b"\xff\xc2" else "jpeg 4:4:4"]
    at = data.index(b"\xff\xc2" if start_of_frame == b"\xff\xc2" else b"\xff\xc0")
    with pytest.raises(BadImage, match="it is "):
        decode(data[:at] + start_of_frame + data[at + 2 : at + 4] + b"\x0c" + data[at + 5 :])


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


@pytest.mark.parametrize(
    ("format", "orientation"),
    [*(("JPEG", number) for number in range(10)), ("PNG", 6), ("TIFF", 6), ("TIFF", 3), ("WEBP", 8)],
)
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
        (b"<html>404 not found</html>", r"it is not an image of a format that is read here \(JPEG, PNG, GIF"),
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


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 31 23
%%EndComments
0.5 setgray 0 0 31 23 rectfill
%%EOF
"""


@pytest.mark.parametrize(
    "data",
    [
        POSTSCRIPT,
        b"\xc5\xd0\xd3\xc6"
        + (32).to_bytes(4, "little")
        + len(POSTSCRIPT).to_bytes(4, "little")
        + bytes(20)
        + POSTSCRIPT,
        encoded(RGB, "EPS"),
        encoded(RGB, "PDF"),
        b"\xd7\xcd\xc6\x9a" + bytes(100),
        encoded(RGB, "TGA"),
        encoded(RGB, "ICO"),
        encoded(RGB, "SGI"),
    ],
    ids=["ps", "binary eps", "pillow's eps", "pdf", "wmf", "tga", "ico", "sgi"],
)
def test_formats_that_start_a_process_or_that_no_data_set_holds_are_bad(data, monkeypatch):
    def start(*command, **options):
        raise AssertionError(f"a process was started: {command}")

    monkeypatch.setattr(subprocess, "Popen", start)
    for options in ({}, {"exif_orientation": True}):
        with pytest.raises(BadImage, match="it is not an image of a format that is read here"):
            decode(data, **options)


@pytest.mark.parametrize("size", [(2**24, 1), (1, 17_000_000)])
def test_a_side_that_no_plan_takes_is_refused(size):
    """Few enough pixels, but the augmentation keeps coordinates in float32."""
    with pytest.raises(BadImage, match=f"{size[0]} × {size[1]} has a side above the limit of 16777215 pixels"):
        decode(encoded(Image.new("1", size), "PNG"))


def of_scans(side: int, scans: int) -> bytes:
    """A square progressive JPEG file with so many more scans, each of which passes over all blocks."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scans * last + data[-2:]


def test_a_jpeg_of_too_many_scans_is_refused_before_its_pixels_are_decoded(monkeypatch):
    def load(*arguments):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", load)
    monkeypatch.setattr(Image.Image, "convert", load)
    data = of_scans(1024, 20_000)
    for read in (decode, lambda data: decode_wanted(data, lambda height, width: Box(0, 0, 32, 32))):
        with pytest.raises(BadImage, match="it has 20006 scans, too many to decode in 1024 × 1024 pixels"):
            read(data)


def test_bytes_that_look_like_scans_in_metadata_and_behind_the_end_are_no_reason_to_refuse():
    image = Image.new("L", (2048, 2048), 128)
    data = encoded(image, "JPEG", comment=b"\xff\xda" * 500, progressive=True) + b"\xff\xda" * 1000
    data += bytes(2**16)  # so that scans are looked for
    assert np.array_equal(decode(data), np.asarray(image.convert("RGB")))


def test_only_a_sequential_file_with_all_components_in_its_first_scan_is_sure_to_have_one():
    """Progressive, arithmetic, one component a scan, or a header that two parsers could read differently: not sure."""
    sound = FILES["jpeg 4:2:0"]
    start = sound.index(b"\xff\xda")
    unsure = {
        "progressive": FILES["jpeg progressive"],
        "arithmetic": ARITHMETIC,
        "one component": sound[: start + 4] + b"\x01" + sound[start + 5 :],
        "byte between segments": sound[:start] + b"\0" + sound[start:],
        "filling": sound[:start] + b"\xff" + sound[start:],
        "restart marker": sound[:start] + b"\xff\xd0" + sound[start:],
        "no length": sound[:start] + b"\xff\xfe\0\0" + sound[start:],
    }
    assert {kind: _has_one_scan(data) for kind, data in unsure.items()} == dict.fromkeys(unsure, False)
    assert not any(_has_one_scan(sound[:length]) for length in range(start + 5))
    for kind in ("jpeg 4:2:0", "jpeg grey", "jpeg with orientation", "jpeg with restart markers", "jpeg cmyk"):
        assert _has_one_scan(FILES[kind]), kind


def test_a_second_scan_of_a_sequential_file_with_all_components_in_the_first_is_not_decoded():
    data = FILES["jpeg 4:2:0"]
    start = data.index(b"\xff\xda")
    with pytest.raises(BadImage, match="truncated or corrupt"):
        decode(data[:-2] + data[start:-2] + data[-2:])


def test_photographs_are_not_searched_for_scans(monkeypatch):
    monkeypatch.setattr(np, "count_nonzero", None)
    for height, width in ((375, 500), (768, 1024), (3000, 4000)):
        picture = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        decode(encoded(Image.fromarray(picture).resize((width, height)), "JPEG", quality=80))


def test_the_limit_of_pixels_can_be_lowered():
    assert decode(FILES["png"], max_pixels=23 * 31).shape == (23, 31, 3)
    with pytest.raises(BadImage, match="31 × 23 is more than the limit of 712 pixels"):
        decode(FILES["png"], max_pixels=23 * 31 - 1)
