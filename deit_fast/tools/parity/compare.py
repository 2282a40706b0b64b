"""Image files through `predict` and through other ways, beside each other: what differs, and where it begins to.

rows = compare(reference, ways, ["new.jpg", …])
rows[1].bytes, rows[1].agreement
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...config import Preprocessing
from ...data import BadImage, decode
from ...data.sources.folder import read_file
from ...weights.prediction import Trained
from ..export.code import Answer
from ..pixels import evaluation_crop, pixels_of
from .ways import Way

SAME_LOGITS = 1e-4  # as a share of the largest logit, or of 1: what a float32 export may differ by


@dataclass
class Row:
    """One way over all files. Differences are those to `predict`."""

    way: Way | None  # None: `predict` itself
    files: int = 0
    other: int = 0  # files of which a byte differs
    bytes: int = 0  # that differ, of all
    total: int = 0
    level: int = 0  # the largest difference of a byte
    logit: float = 0.0  # the largest difference of a logit
    relative: float = 0.0  # the same as a share of the file's largest logit, or of 1
    agreed: int = 0  # files of the same likeliest class
    seconds: list[float] = field(default_factory=list)  # a file
    parts: Counter[str] = field(default_factory=Counter)  # what a file's pixels, or else its logits, differ by -> files
    refused: dict[str, str] = field(default_factory=dict)  # file -> why this way gave no answer

    @property
    def name(self) -> str:
        return "predict" if self.way is None else f"{self.way.export}: {self.way.how}"

    @property
    def milliseconds(self) -> float:
        """The median of a file, from the disk to the logits; NaN without a file."""
        return 1000 * float(np.median(self.seconds)) if self.seconds else float("nan")

    @property
    def kept(self) -> bool:
        """Whether the way keeps what an export promises: all bytes, and of float32 all answers."""
        if self.way is None or not self.way.promises:
            return True
        same = self.way.int8 or (self.agreed == self.files and self.relative <= SAME_LOGITS)
        return not self.bytes and not self.refused and same

    def add(self, expected: Answer, got: Answer, reason: str) -> None:
        """Count a file; `reason` is what its pixels differ by."""
        apart = np.abs(expected.pixels.astype(np.int16) - got.pixels)
        self.files += 1
        self.total += apart.size
        self.bytes += int(np.count_nonzero(apart))
        self.other += bool(apart.any())
        self.level = max(self.level, int(apart.max()))
        logit = (expected.logits - got.logits).abs().max().item()
        self.logit = max(self.logit, logit)
        relative = logit / max(1.0, expected.logits.abs().max().item())
        self.relative = max(self.relative, relative)
        self.agreed += int(expected.logits.argmax() == got.logits.argmax())
        if not reason and relative > SAME_LOGITS:
            reason = "computes other logits from the same pixels"
        if reason:
            self.parts[reason] += 1

    def as_json(self) -> dict[str, Any]:
        way = self.way
        return {
            "way": self.name, "export": way and way.export, "files": self.files, "files_with_other_pixels": self.other,
            "bytes_that_differ": self.bytes, "bytes": self.total, "largest_level": self.level,
            "largest_logit_difference": self.logit, "same_top1": self.agreed, "milliseconds": self.milliseconds,
            "where": dict(self.parts.most_common()), "refused": self.refused, "kept": self.kept,
            "other_weights": bool(way and way.stale),
        }  # fmt: skip


def compare(reference: Trained, ways: Sequence[Way], files: Iterable[str]) -> tuple[list[Row], dict[str, str]]:
    """(a row for `predict` and one for each way, file -> why `predict` reads no image from it)."""
    own, rows, unreadable = Row(None), [Row(way) for way in ways], {}
    for file in files:
        began = time.perf_counter()
        try:
            images = reference.prepare([reference.read(file)])
        except BadImage as error:
            unreadable[file] = str(error)
            continue
        with torch.inference_mode():
            logits = reference.model(images).float()
        own.seconds.append(time.perf_counter() - began)
        expected = Answer(logits, pixels_of(images, reference.preprocessing)[0])
        own.add(expected, expected, "")
        for way, row in zip(ways, rows, strict=True):
            began = time.perf_counter()
            try:
                got = way.answer(Path(file))
            except Exception as error:  # of the other library, which has its own
                row.refused[file] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            row.seconds.append(time.perf_counter() - began)
            if got.pixels.shape != expected.pixels.shape or got.logits.shape != logits.shape:
                row.refused[file] = f"it sees {got.pixels.shape[0]} pixels and gives {got.logits.shape[1]} logits"
                continue
            row.add(expected, got, where(file, reference.preprocessing, expected.pixels, got.pixels))
    return [own, *rows], unreadable


def where(file: str, preprocessing: Preprocessing, expected: NDArray[np.uint8], got: NDArray[np.uint8]) -> str:
    """What the other pixels differ by: the steps that, changed in `predict`, come nearest to them; "" if equal."""
    if np.array_equal(expected, got):
        return ""
    data, turned = read_file(file), preprocessing.exif_orientation
    upright, other = (decode(data, exif_orientation=orientation) for orientation in (turned, not turned))
    candidates: list[tuple[int, list[str], NDArray[np.uint8]]] = []
    for pixels, words in [(upright, ""), (other, "turns no image" if turned else "turns the image as EXIF says")]:
        if words and pixels.shape == upright.shape and np.array_equal(pixels, upright):
            continue
        for up, left in ((0, 0), (1, 0), (0, 1), (1, 1)):
            shift = " and ".join(word for word, moved in (("higher", up), ("further left", left)) if moved)
            crop = f"crops a pixel {shift}" if shift else ""
            seen = evaluation_crop(pixels, preprocessing.policy, up, left)
            distance = int(np.abs(seen.astype(np.int16) - got).sum(dtype=np.int64))
            candidates.append((distance, [part for part in (words, crop) if part], seen))
    _, parts, seen = min(candidates, key=lambda candidate: (candidate[0], len(candidate[1])))
    level = int(np.abs(seen.astype(np.int16) - got).max())
    if level:
        parts = [*parts, "resizes otherwise" if level <= 8 else "prepares it in another way"]
    return ", ".join(parts)
