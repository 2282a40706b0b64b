"""From the bytes of an image file to RGB pixels, as Pillow reads them, or a BadImage with the reason in one sentence.

    pixels = decode(path.read_bytes())                          # uint8 (H, W, 3)
    pixels = decode(path.read_bytes(), reserve=arena.reserve)   # the same, in memory of the caller's choice

The format is one of FORMATS and found by content, never by file name (ImageNet holds a PNG named .JPEG). The pixels
are those of `Image.open(file).convert("RGB")`, as in torchvision's and timm's loaders: EXIF orientation is ignored
(but Pillow applies that of a TIFF), alpha is dropped, an animation gives its first frame.

JPEG goes through simplejpeg: libjpeg-turbo with Pillow's settings (exact DCT, smooth chroma), so equal pixels in half
the time, written straight into the reserved memory without the interpreter's lock. Pillow decodes every other format
and every JPEG file that simplejpeg does not accept without a warning (CMYK, damage).

`decode_wanted` decodes a box of a JPEG file only. A file without its end marker is decoded whole, so truncation is
found; other damage behind the box is not.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]  # it has no stubs
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, features

from deit_kernels.augment.plan import MAX_SIDE

from ..command import OfOneRank
from .jpeg_part import Box, decodable, decode_part

# Pillow's own limit against decompression bombs, 1/4 GiB of RGB; above it `Image.open` only warns.
MAX_PIXELS = 1024**3 // 4 // 3

# What data sets hold. Of Pillow's forty others, EPS starts Ghostscript, some have no signature and claim other files
# (TGA), and each is one more parser to attack. JPEG includes MPO.
FORMATS = ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000"]
if "avif" in features.modules:  # from Pillow 11.3 on; `Image.open` refuses a name that it does not know
    FORMATS.append("AVIF")

# Pixels times scans of a JPEG file: ten seconds of decoding. Progressive files have about ten scans, cjpeg and jpegtran
# write at most 100, and an image of 12 megapixels may have 1400 here.
MOST_SCANNED = 2**34
SCAN_BYTES = 10  # in the shortest scan

START_OF_IMAGE, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"  # of JPEG
START_OF_SCAN = 0xDAFF  # its marker, as a number of two bytes
SEQUENTIAL = {0xC0, 0xC1}  # markers of the start of a frame
SEGMENTS = {0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}  # tables, restart interval, application's blocks, comments
LARGE_PART = 0.8  # share of an image from which on all of it is decoded as fast
TURNED = range(2, 9)  # EXIF orientations of an image that is not stored upright

# Pillow warns of ImageNet's corrupt EXIF blocks and odd palettes, once for each thread and file, into the progress bar.
# The pixels are right, and nobody can act on it. `warnings.catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

Reserve = Callable[[int, int], NDArray[np.uint8]]  # (height, width) → memory for an image
Wanted = Callable[[int, int], Box | None]  # (height, width) → the box of it that is wanted, None for all of it


class Part(NamedTuple):
    """Pixels of an image, or of a box that holds the wanted one."""

    pixels: NDArray[np.uint8]  # (h, w, 3)
    top: int  # where in the image they begin
    left: int
    height: int  # of the whole image
    width: int

    @classmethod
    def whole(cls, pixels: NDArray[np.uint8]) -> Part:
        return cls(pixels, 0, 0, *pixels.shape[:2])

    def refuse_elongated(self, limit: float) -> None:
        """Raise BadImage if the longer side is not below `limit` (`ratio_limit`) times the shorter."""
        if max(self.height, self.width) >= limit * min(self.height, self.width):
            size = f"{self.width} × {self.height} pixels"
            raise BadImage(f"the crop needs sides of less than {limit:,.0f} to 1, and it has {size}")


class BadImage(OfOneRank):
    """A file that holds no readable image; the text is the reason, in one sentence."""


def new_array(height: int, width: int) -> NDArray[np.uint8]:
    return np.empty((height, width, 3), np.uint8)


def decode(
    data: bytes, max_pixels: int = MAX_PIXELS, *, exif_orientation: bool = False, reserve: Reserve = new_array
) -> NDArray[np.uint8]:
    """RGB pixels of an encoded image.

    Args:
        data: a whole file, in one of FORMATS.
        max_pixels: largest accepted width · height, checked before any pixel is decoded.
        exif_orientation: turn the image as its EXIF orientation says. timm and torchvision do not.
        reserve: called with (height, width) once the header is read; returns the contiguous uint8 (H, W, 3) that the
            pixels are written to. It is called a second time if Pillow has to take over.

    Returns:
        the last array from `reserve`, filled.

    Raises:
        BadImage: the data is empty, of no known format, truncated, corrupt, larger than max_pixels, of a side above
            MAX_SIDE, or a JPEG file with so many scans that decoding would not end.
    """
    if not data:
        raise BadImage("the file is empty")
    if exif_orientation and (orientation := _orientation(data)) in TURNED:
        image = Image.fromarray(decode(data, max_pixels))
        image.getexif()[ExifTags.Base.Orientation] = orientation
        return copied(np.asarray(ImageOps.exif_transpose(image)), reserve)
    pixels = decode_jpeg(data, max_pixels, reserve)
    return copied(_decode_with_pillow(data, max_pixels), reserve) if pixels is None else pixels


def decode_wanted(
    data: bytes, wanted: Wanted | None, *, exif_orientation: bool = False, reserve: Reserve = new_array
) -> Part:
    """`decode` of the box that is wanted, or of more if that is as fast or the file is unusual.

    BadImage as from `decode`, as far as the box shows it.
    """
    whole_jpeg = data.startswith(START_OF_IMAGE) and data.endswith(END_OF_IMAGE)
    turned = whole_jpeg and exif_orientation and _orientation(data) in TURNED
    if wanted is not None and whole_jpeg and not turned and (size := _jpeg_size(data, MAX_PIXELS)):
        box = wanted(*size)
        if box is not None and box.height * box.width <= LARGE_PART * size[0] * size[1]:
            box = decodable(box, size[1])
            pixels = reserve(box.height, box.width)
            if decode_part(data, box, pixels):
                return Part(pixels, box.top, box.left, *size)
    return Part.whole(decode(data, exif_orientation=exif_orientation, reserve=reserve))


def copied(pixels: NDArray[np.uint8], reserve: Reserve) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) in memory that `reserve` gives."""
    place = reserve(*pixels.shape[:2])
    place[:] = pixels
    return place


def decode_jpeg(data: bytes, max_pixels: int = MAX_PIXELS, reserve: Reserve = new_array) -> NDArray[np.uint8] | None:
    """`decode` for a JPEG file that simplejpeg accepts without a warning; None for any other."""
    if not data.startswith(START_OF_IMAGE) or (size := _jpeg_size(data, max_pixels)) is None:
        return None
    pixels = reserve(*size)
    try:
        simplejpeg.decode_jpeg(data, buffer=pixels)
    except ValueError:
        return None
    return pixels


def _jpeg_size(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """(height, width) of a JPEG file with a plain header; None for any other."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    pixels = height * width
    if colours in ("CMYK", "YCCK") or not 0 < pixels <= max_pixels or pixels * _scans(data, pixels) > MOST_SCANNED:
        return None
    return height, width


def _scans(data: bytes, pixels: int) -> int:
    """An upper bound of the scans in a JPEG file; 1 if they cannot be too many, so that photographs take no time.

    It counts markers, including bytes of metadata that look like one; pixel data has none.
    """
    if pixels * (len(data) // SCAN_BYTES) <= MOST_SCANNED or _has_one_scan(data):
        return 1
    # Pairs of bytes at even and at odd places: ten times as fast as bytes.count.
    pairs = (np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1))
    return sum(int(np.count_nonzero(each == START_OF_SCAN)) for each in pairs)


def _has_one_scan(data: bytes) -> bool:
    """Whether a JPEG file is sequential with all its components in the first scan, so that libjpeg refuses a second.

    False for anything unusual, such as bytes between two segments.
    """
    at, components = len(START_OF_IMAGE), None
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == START_OF_SCAN >> 8:
            return data[at + 4] == components
        if marker in SEQUENTIAL:
            components = data[at + 9]
        elif marker not in SEGMENTS or length < 2:
            return False
        at += 2 + length
    return False


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """An encoded image for Pillow, its header read. What is wrong with it, now or in the body, raises BadImage."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except (BadImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(f"it is not an image of a format that is read here ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"it is a decompression bomb ({error})") from None
    except Exception as error:
        # On damage, Pillow's parsers raise anything: OSError, SyntaxError, struct.error, zlib.error, IndexError, …
        raise BadImage(f"it is truncated or corrupt ({error})") from error


def _decode_with_pillow(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    with opened(data) as image:
        size, count = f"{image.width} × {image.height}", image.width * image.height
        if count > max_pixels:
            raise BadImage(f"{size} is more than the limit of {max_pixels} pixels")
        if max(image.size) > MAX_SIDE:
            raise BadImage(f"{size} has a side above the limit of {MAX_SIDE} pixels")
        if data.startswith(START_OF_IMAGE) and count * (scans := _scans(data, count)) > MOST_SCANNED:
            raise BadImage(f"it has {scans} scans, too many to decode in {size} pixels")
        pixels = np.asarray(image.convert("RGB"))
    if not pixels.size:
        raise BadImage(f"it has no pixels ({size})")
    return pixels


def _orientation(data: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 (as stored) if there is none or its block is damaged."""
    try:
        with opened(data) as image:
            # Pillow has turned a TIFF by the time its pixels are loaded.
            return 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as above; decoding finds what is wrong with the image itself
        return 1
