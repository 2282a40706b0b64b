"""From the bytes of an image file to RGB pixels: what Pillow reads, or one sentence that says why not.

    pixels = decode(path.read_bytes())      # uint8 (H, W, 3)

The format is found by content, never by file name (ImageNet holds a PNG named .JPEG). The pixels are those of
`Image.open(file).convert("RGB")`, which is what torchvision's and timm's loaders give: EXIF orientation is ignored,
alpha is dropped, an animation gives its first frame.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Pillow's own limit against decompression bombs, 1/4 GiB of RGB; above it `Image.open` only warns.
MAX_PIXELS = 1024**3 // 4 // 3

# ImageNet makes Pillow warn of corrupt EXIF blocks and odd palettes, once for each thread and file, into the progress
# bar. Nothing can be done about them and the pixels are right. `warnings.catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(ValueError):
    """A file that holds no readable image; the text is the reason, in one sentence."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """RGB pixels of an encoded image.

    Args:
        data: a whole file, in any format that Pillow reads.
        max_pixels: largest accepted width · height, checked before any pixel is decoded.

    Returns:
        uint8 (H, W, 3), contiguous, possibly read-only.

    Raises:
        BadImage: the data is empty, of no known format, truncated, corrupt or larger than max_pixels.
    """
    if not data:
        raise BadImage("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise BadImage(f"{image.width} × {image.height} is more than the limit of {max_pixels} pixels")
            pixels = np.asarray(image.convert("RGB"))
    except (BadImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("it is not an image of a format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"it is a decompression bomb ({error})") from None
    except Exception as error:
        # The parsers of Pillow's plugins let through whatever the damage made them meet: OSError, SyntaxError,
        # struct.error, zlib.error, IndexError, OverflowError, …
        raise BadImage(f"it is truncated or corrupt ({error})") from error
    if not pixels.size:
        raise BadImage(f"it has no pixels ({pixels.shape[1]} × {pixels.shape[0]})")
    return pixels
