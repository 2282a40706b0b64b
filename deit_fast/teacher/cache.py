"""The teacher's labels on disk, for other runs, other students and other numbers of processes.

    cache = LabelCache.open(folder, settings, rows, classes=1000, say=print, repair=True)
    cache.lookup(step, positions)           # labels of some rows of a step, or None
    cache.add(step, positions, labels); cache.flush()

Order, augmentation and mixing are functions of (data seed, epoch, sample, copy) and (data seed, step, group): the image
at a position of a step is always the same, and so is its label. A hard label takes 2 bytes, a top-K 4·K. Everything
that the labels depend on stands in `settings.json`; if the settings differ, the cache is refused and they are named.

    DIR/settings.json                                        what the labels depend on
    DIR/00000000-00000256_0-1024-1.safetensors               labels of steps 0 … 255, positions range(0, 1024, 1)
    DIR/teacher.json                                         the teacher's weights, a digest, and its scores

Each file is a piece, written whole or not at all, with a checksum. A piece that is cut off or damaged is removed, and
its labels are computed again. Pieces may overlap: equal settings give equal labels.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deit_kernels import TopK

from .. import files
from ..config import changes

FORMAT = "deit_fast labels 1"
PIECE_STEPS = 256  # no piece crosses a multiple of it
_SETTINGS, _TEACHER = "settings.json", "teacher.json"


class Labels(NamedTuple):
    """Labels of n rows, in host memory: hard labels (n,), or K classes and probabilities (n, K) each."""

    classes: NDArray[np.uint16]
    probs: NDArray[np.float16] | None


class Piece(NamedTuple):
    """A file: labels of `rows` (positions in the global batch) in each of `steps`."""

    path: Path
    steps: range
    rows: range

    @property
    def chunk(self) -> int:
        """Its steps lie between this multiple of PIECE_STEPS and the next one."""
        return self.steps.start // PIECE_STEPS


class LabelCache:
    """Labels by step and position; see the module. Made by `open`.

    `writes` is False in a dry run, and after a piece could not be written: nothing is written then.
    """

    def __init__(self, folder: Path, rows: range, say: Callable[[str], None]) -> None:
        self.folder, self.writes, self._rows, self._say = folder, True, rows, say
        self._pieces: dict[int, list[Piece]] = defaultdict(list)  # by chunk
        self._read: dict[Piece, Labels] = {}
        # By step, not on disk yet: positions, classes, probs, and the event after which the two have left the device.
        self._pending: dict[int, list[tuple[NDArray, Tensor, Tensor | None, torch.cuda.Event | None]]] = {}
        for piece in _pieces(folder):
            self._pieces[piece.chunk].append(piece)

    @classmethod
    def open(
        cls, folder: Path, settings: dict[str, Any], rows: range, *, classes: int, say: Callable[[str], None],
        repair: bool,
    ) -> LabelCache:  # fmt: skip
        """The cache in `folder`, which is created when it is missing.

        Args:
            settings: everything that the labels depend on, JSON values; nested dictionaries are compared by name.
            rows: this process's positions in every global batch.
            repair: check every piece and remove damaged ones. One process does so before the others open the cache.

        Raises:
            ValueError: other settings (says which differ), not a cache, cannot be written, or more than 65,536 classes.
        """
        if classes > 1 << 16:
            raise ValueError(f"a label cache holds up to 65,536 classes, the teacher knows {classes}: leave it out")
        known, wanted = folder / _SETTINGS, {"format": FORMAT, **settings}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not known.exists():
                if any(not path.name.startswith(".") for path in folder.iterdir()):
                    raise ValueError(f"{folder} holds something else than labels: type another --teacher-cache")
                files.write_json(known, wanted)
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be written to ({error.strerror}): type another --teacher-cache"
            ) from error
        differing = changes(files.read_json(known), json.loads(json.dumps(wanted)))
        if said := ", ".join(f"{name} {before!r} -> {after!r}" for name, before, after in differing):
            raise ValueError(
                f"{folder} holds labels of other settings: {said}. Type the old values or another --teacher-cache"
            )
        for piece in _pieces(folder) if repair else ():
            try:
                _load(piece.path, "it is removed, and its labels are computed again")
            except ValueError as error:
                say(str(error))
                piece.path.unlink()
        return cls(folder, rows, say)

    def missing(self, steps: Iterable[int], rows: range) -> list[int]:
        """The steps in which one of `rows` has no label on disk."""
        wanted: dict[int, list[int]] = defaultdict(list)
        for step in steps:
            wanted[step // PIECE_STEPS].append(step)
        positions, missing = np.array(rows), []
        for chunk, members in wanted.items():
            there = np.zeros((PIECE_STEPS, len(positions)), bool)
            for piece in self._pieces.get(chunk, ()):
                covered = _places(positions, piece.rows) >= 0
                there[piece.steps.start % PIECE_STEPS :][: len(piece.steps)] |= covered
            missing += [step for step in members if not there[step % PIECE_STEPS].all()]
        return missing

    def lookup(self, step: int, positions: NDArray[np.int64]) -> Labels | None:
        """The labels at `positions` (n,) of a step's global batch; None when one of them is not on disk."""
        found: list[tuple[NDArray, NDArray, NDArray | None]] = []
        left = np.ones(len(positions), bool)
        for piece in tuple(self._pieces.get(step // PIECE_STEPS, ())):  # a copy: `_content` removes a damaged piece
            if step not in piece.steps or (content := self._content(piece)) is None:
                continue
            places = _places(positions, piece.rows)
            here = places >= 0
            row = (step - piece.steps.start, places[here])
            found.append((here, content.classes[row], None if content.probs is None else content.probs[row]))
            left &= ~here
            if not left.any():
                return _merged(len(positions), found)
        return None

    def add(self, step: int, positions: NDArray[np.int64], labels: Tensor | TopK) -> None:
        """Keep labels of a step, on any device; the host does not wait for it. A new chunk writes the one before."""
        if not self.writes:
            return
        if any(other // PIECE_STEPS != step // PIECE_STEPS for other in self._pending):
            self.flush()
        classes, probs = (labels, None) if isinstance(labels, Tensor) else (labels.indices, labels.probs)
        copies = _to_host(classes), None if probs is None else _to_host(probs)
        event = torch.cuda.current_stream().record_event() if classes.device.type == "cuda" else None
        self._pending.setdefault(step, []).append((positions, *copies, event))

    def flush(self) -> None:
        """Write every pending step of which all rows of this process have arrived."""
        if not self.writes:
            return
        whole = [
            step
            for step, parts in self._pending.items()
            if {position for positions, *_ in parts for position in positions.tolist()} == set(self._rows)
        ]
        for steps in runs(sorted(whole), PIECE_STEPS):
            rows = [_merged(len(self._rows), self._arrived(step)) for step in steps]
            probs = [row.probs for row in rows if row.probs is not None]
            stacked = Labels(np.stack([row.classes for row in rows]), np.stack(probs) if probs else None)
            try:
                piece = _write(self.folder, steps, self._rows, stacked)
            except (OSError, SafetensorError) as error:
                self.writes = False
                self._pending.clear()
                self._say(
                    f"the labels of steps {steps.start} to {steps.stop - 1} could not be written to {self.folder} "
                    f"({error}): the run goes on without writing more; what was written stays"
                )
                return
            self._pieces[piece.chunk].append(piece)
            for step in steps:
                del self._pending[step]

    def check_weights(self, digest: str) -> None:
        """Raises ValueError unless the loaded teacher has the weights that gave the cached labels."""
        known = self._teacher().get("weights", digest)
        if known != digest:
            raise ValueError(
                f"{self.folder} holds labels of other weights: weights {known} -> {digest}, under the same name. Bring "
                f"the old ones back, or type another --teacher-cache"
            )
        self._keep(weights=digest)

    def scores(self, evaluation: dict[str, Any]) -> dict[str, float] | None:
        """The teacher's scores in this evaluation; None if they were not kept."""
        kept = self._teacher()
        return kept.get("scores") if kept.get("evaluation") == json.loads(json.dumps(evaluation)) else None

    def keep_scores(self, evaluation: dict[str, Any], scores: dict[str, float]) -> None:
        """Keep the teacher's scores for runs that will not load it."""
        self._keep(evaluation=evaluation, scores=scores)

    def _teacher(self) -> dict[str, Any]:
        path = self.folder / _TEACHER
        return files.read_json(path) if path.exists() else {}

    def _keep(self, **facts: Any) -> None:
        if not self.writes:
            return
        try:
            files.write_json(self.folder / _TEACHER, {**self._teacher(), **facts})
        except OSError as error:
            self._say(f"{self.folder / _TEACHER} could not be written ({error.strerror}): the run goes on")

    def _arrived(self, step: int) -> Iterator[tuple[NDArray, NDArray, NDArray | None]]:
        """The pending parts of a step as (index into this process's rows, classes, probs), waiting for the device."""
        for positions, classes, probs, event in self._pending[step]:
            if event is not None:
                event.synchronize()
            yield _places(positions, self._rows), classes.numpy(), None if probs is None else probs.numpy()

    def _content(self, piece: Piece) -> Labels | None:
        """A piece's labels, kept until another chunk is read; None, with a message, if it has become unreadable."""
        if piece not in self._read:
            if any(other.chunk != piece.chunk for other in self._read):
                self._read.clear()
            try:
                self._read[piece] = _load(piece.path, "its labels are computed again")
            except ValueError as error:
                self._say(str(error))
                self._pieces[piece.chunk].remove(piece)
                return None
        return self._read[piece]


def _merged(rows: int, parts: Iterable[tuple[NDArray, NDArray, NDArray | None]]) -> Labels:
    """Labels of all rows from parts of (index of their rows, classes, probs)."""
    classes: NDArray | None = None
    probs: NDArray | None = None
    for where, some_classes, some_probs in parts:
        if classes is None:
            classes = np.empty((rows, *some_classes.shape[1:]), np.uint16)
            probs = None if some_probs is None else np.empty(classes.shape, np.float16)
        classes[where] = some_classes
        if probs is not None:
            probs[where] = some_probs
    assert classes is not None  # a step has rows
    return Labels(classes, probs)


def _places(positions: NDArray[np.int64], rows: range) -> NDArray[np.int64]:
    """Index of each position in `rows`, −1 where it is not there."""
    places, rest = np.divmod(positions - rows.start, rows.step)
    return np.where((rest == 0) & (places >= 0) & (places < len(rows)), places, -1)


def _to_host(values: Tensor) -> Tensor:
    if values.device.type != "cuda":
        return values.clone()
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def runs(steps: Iterable[int], unit: int) -> Iterator[range]:
    """Ascending steps as ranges of consecutive ones; no range crosses a multiple of `unit`."""
    for _, run in groupby(enumerate(steps), key=lambda pair: (pair[1] - pair[0], pair[1] // unit)):
        members = [step for _, step in run]
        yield range(members[0], members[-1] + 1)


def _pieces(folder: Path) -> list[Piece]:
    pieces = []
    for path in sorted(folder.glob("[0-9]*.safetensors")):
        steps, _, rows = path.stem.partition("_")
        pieces.append(Piece(path, range(*map(int, steps.split("-"))), range(*map(int, rows.split("-")))))
    return pieces


def _write(folder: Path, steps: range, rows: range, labels: Labels) -> Piece:
    tensors = {name: torch.from_numpy(part) for name, part in labels._asdict().items() if part is not None}
    path = folder / f"{steps.start:08}-{steps.stop:08}_{rows.start}-{rows.stop}-{rows.step}.safetensors"
    metadata = {"checksum": str(_checksum(labels))}
    files.write_file(path, lambda temporary: save_file(tensors, temporary, metadata))
    return Piece(path, steps, rows)


def _load(path: Path, then: str) -> Labels:
    """Raises ValueError, which ends in `then`: the file is cut off or damaged. PermissionError: it may be whole."""
    with files.reading_tensors(path, then), safe_open(path, "numpy") as file:
        labels = Labels(file.get_tensor("classes"), file.get_tensor("probs") if "probs" in file.keys() else None)
        checksum = (file.metadata() or {}).get("checksum")
    if checksum != str(_checksum(labels)):
        raise ValueError(f"{path} is damaged (its checksum is wrong): {then}")
    return labels


def _checksum(labels: Labels) -> int:
    return zlib.crc32(labels.probs.tobytes() if labels.probs is not None else b"", zlib.crc32(labels.classes.tobytes()))
