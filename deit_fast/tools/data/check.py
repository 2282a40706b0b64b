"""Read every image of a data set and list, by name, those that are broken, odd, duplicates or left out.

broken: not readable as an image; training would skip it or stop (`--bad-images`). Also an animation that is damaged
after its first frame, the only one that training reads; and what training would not begin with: an unreadable shard,
parquet file or folder, a class folder without images, a class or label that the training images lack.
odd: readable, but of another format than its name says, or not plain RGB or grey: CMYK, a palette, alpha, 16 bits, more
than one frame, an EXIF orientation (ignored without --exif-orientation), damage that a decoder tolerates, or of sides
of which a crop shows almost nothing: fewer than 8 pixels, or one more than ten times the other.
left out: a file in a class folder whose suffix is no image's, or an image beside the class folders.
duplicate: the same bytes as another; worth a look if the labels differ or a training image is a validation image too.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from PIL import ExifTags, Image

from deit_kernels.augment.plan import MAX_SIDE

from ...data import BadImage, Dataset, decode
from ...data.decode import decode_jpeg, opened
from ...data.sources.dataset import ahead
from ...data.sources.folder import is_image
from ...data.sources.open import Splits
from ...files import shown
from .parts import Broken

DIGEST_BYTES = 16
ELONGATED = MAX_SIDE / 1024  # longer side / shorter; crops of up to 1024 pixels accept any image below it
LONG = 10  # longer side / shorter
FEWEST_PIXELS = 8  # of a side; as many as scikit-learn's digits have
PLAIN_MODES = {"RGB", "L"}
SIXTEEN = "16 bits of grey, which become white: save it with 8"
MODES = {
    "I;16": SIXTEEN,
    "I;16B": SIXTEEN,
    "CMYK": "CMYK",
    "P": "a palette",
    "PA": "a palette with alpha",
    "RGBA": "alpha",
    "LA": "grey with alpha",
}


@dataclass
class Report:
    """What `check` found, by the name of the image, folder, shard or parquet file."""

    images: int = 0
    broken: Broken = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)  # (name, what is odd, joined by commas)
    duplicates: list[tuple[list[str], str]] = field(default_factory=list)  # names with the same bytes, a remark or ""
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (name, why it is not read)

    def lines(self) -> list[str]:
        lines = [f"broken: {name}: {reason}" for name, reason in self.broken]
        lines += [f"odd: {name}: {what}" for name, what in self.odd]
        lines += [f"left out: {name}: {why}" for name, why in self.left_out]
        for names, remark in self.duplicates:
            lines.append(f"duplicate{f' ({remark})' if remark else ''}: {' = '.join(names)}")
        return [
            *lines,
            f"{self.images:,} images: {len(self.broken):,} broken, {len(self.odd):,} odd, "
            f"{len(self.duplicates):,} groups of duplicates, {len(self.left_out):,} left out",
        ]


def check(
    splits: Splits, threads: int, advance: Callable[[int], None] = lambda images: None, broken: Broken | None = None
) -> Report:
    """Read and decode all images.

    Args:
        advance: called with the number of images done since its last call.
        broken: what could not be opened, which the report names first.
    """
    report = Report(broken=list(broken or ()))
    digests: dict[str, list[bytes | None]] = {split: [] for split in splits}
    with ThreadPoolExecutor(threads, "deit_fast-check") as pool:
        for split, dataset in splits.items():
            report.left_out += [(shown(file), _why_left_out(file)) for file in dataset.left_out]
            found = ahead(pool, partial(_inspect, dataset), range(len(dataset)), 4 * threads)
            for index, (digest, reason, odd) in enumerate(found):
                digests[split].append(digest)
                if reason:
                    report.broken.append((dataset.path(index), reason))
                elif odd:
                    report.odd.append((dataset.path(index), odd))
                report.images += 1
                advance(1)
    report.duplicates = _duplicates(splits, digests)
    return report


def _why_left_out(file: str) -> str:
    if is_image(file):
        return "it lies beside the class folders"
    suffix = os.path.splitext(file)[1]
    return f"{shown(suffix)} is no suffix of an image" if suffix else "its name has no suffix"


def _inspect(dataset: Dataset, index: int) -> tuple[bytes | None, str, str]:
    """(digest if it can be read, why it is broken or "", what is odd or "")."""
    try:
        data = dataset.read(index)
    except OSError as error:
        return None, f"it cannot be read ({error.strerror or error})", ""
    content = data if isinstance(data, bytes) else data.tobytes()
    digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
    if not isinstance(data, bytes):
        return digest, "", ""
    try:
        sound = decode_jpeg(data) is not None
        if not sound:
            decode(data)
        return digest, "", ", ".join(_oddities(data, dataset.path(index), sound))
    except BadImage as error:
        return digest, str(error), ""


def _oddities(data: bytes, path: str, sound: bool) -> list[str]:
    """What is odd about a readable image; `sound`: a JPEG that the strict decoder accepts without a warning."""
    odd = []
    with opened(data) as image:
        suffix = os.path.splitext(path)[1].lower()
        named = "JPEG" if suffix == ".mpo" else Image.registered_extensions().get(suffix)
        kind = "JPEG" if image.format == "MPO" else image.format
        if named is not None and named not in (kind, "JPEG2000" if kind == "JPEG" else kind):
            odd.append(f"{kind}, named {suffix}")
        if sides := _odd_sides(min(image.size), max(image.size)):
            odd.append(f"{image.width} × {image.height} pixels, {sides}")
        if image.mode not in PLAIN_MODES:
            odd.append(MODES.get(image.mode, f"mode {image.mode}"))
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            odd.append(f"{frames} frames")
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # Pillow's parser raises anything
            odd.append("damaged EXIF block")
        else:
            if orientation != 1:
                odd.append(f"EXIF orientation {orientation}")
        if kind == "JPEG" and not sound and image.mode in PLAIN_MODES:
            odd.append("damaged in part")
    return odd


def _odd_sides(short: int, long: int) -> str:
    """What a crop of such an image lacks, or ""."""
    if long >= ELONGATED * short:
        return "which some crops refuse"
    if short < FEWEST_PIXELS:
        return "too few to show anything"
    return f"of which a square crop sees {100 * short / long:.2g} %" if long > LONG * short else ""


def _duplicates(splits: Splits, digests: dict[str, list[bytes | None]]) -> list[tuple[list[str], str]]:
    times = Counter(chain.from_iterable(digests.values()))
    members: dict[bytes, list[tuple[str, int]]] = {}
    for split, every in digests.items():
        for index, digest in enumerate(every):
            if digest and times[digest] > 1:
                members.setdefault(digest, []).append((split, index))
    found = []
    for each in members.values():
        labels = {int(splits[split].labels[index]) for split, index in each}
        remarks = ["in different classes"] * (len(labels) > 1) + ["in train and val"] * (len(dict(each)) > 1)
        found.append(([splits[split].path(index) for split, index in each], ", ".join(remarks)))
    return found
