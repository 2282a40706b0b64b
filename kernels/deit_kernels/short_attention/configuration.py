"""Which kernel form, block sizes and warps serve a shape on a card: a table, looked up, never searched at run time.

The table is keyed by what decides it: the family of the card (compute capability, and whether a block can take more
than 99 KB of shared memory), head dim and sequence length. `python -m benchmarks.compiled` shows what every row
compiles to. Registers spill on sm_90 where a limit lets a third program onto the multiprocessor (forward, N = 145 to
208), and outside of the loop (backward, N = 129 to 256). On sm_80, sm_89 and sm_120 most kernels of 128 rows and four
warps spill at 64 features, the backward of two phases most: 48, 36 and 109 instructions. There some forwards of wider
heads spill too, and on sm_80 the forward at N = 145 to 208. sm_120 takes sm_89's rows. No row is measured on a GPU yet.

`python -m deit_kernels.tune` measures the candidates on a card and writes a table; the environment variable
DEIT_KERNELS_TABLE names it, and its rows go before these.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch

from ..dispatch import constant_to_dynamo

Direction = Literal["forward", "backward"]
Form = Literal["resident", "two_phase", "tiled"]

LONGEST = 1040
"""Tokens: 1024 patches of a 512-pixel image at patch 16, and up to 16 class, distillation or register tokens."""
WIDEST = 128
"""Features of a head."""


@dataclass(frozen=True)
class Config:
    """One way to run a pass.

    Attributes:
        form: "resident" (one program per (batch, head), which holds all keys), "two_phase" (backward only: one program
            per (batch, head), in tiles of block_m rows) or "tiled" (one program per tile of block_m rows).
        block_m: query rows a step; in a backward of tiles the rows that stay, queries or keys.
        block_n: key rows a step; in a backward of tiles the rows that stream by; 0 in the resident form.
        num_warps, num_stages: Triton's launch options.
        max_registers: of a thread, so that more programs fit on a multiprocessor; None leaves it to the compiler.
    """

    form: Form
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None


@dataclass(frozen=True)
class Row:
    """A table row: `config` serves min_length to max_length tokens and up to max_features features of a head."""

    max_length: int
    max_features: int
    config: Config
    min_length: int = 0  # a measured row holds for its own range only: the table may have no other yet
    microseconds: float | None = None  # measured, and by PyTorch's SDPA
    sdpa_microseconds: float | None = None


class Range(NamedTuple):
    """Whether our forward and backward together are ahead of SDPA's, for a head dim and min_length to max_length."""

    features: int
    min_length: int
    max_length: int
    ahead: bool


# Until a card has measured it: for wider heads and longer sequences cuDNN and FlashAttention-3 are predicted ahead.
_EXPECTED = Range(64, 1, 578, True)


def _rows(*rows: tuple) -> list[Row]:
    return [Row(length, features, Config(*config)) for length, features, *config in rows]


# max_length, max_features, then a Config's fields in their order; the first row that fits is taken.
_SHORT_FORWARD = [(16, 128, "resident", 16, 0, 1, 1), (32, 128, "resident", 32, 0, 2, 1)]
_SHORT_BACKWARD = [(16, 128, "resident", 16, 0, 1, 1), (32, 128, "resident", 32, 0, 4, 1)]
# At N <= 208 four warps of 168 registers and 60 KB leave room for three programs a multiprocessor, so that two compute
# while one loads. Above, tiles of 64 rows have four, but read K and V again for each 64 queries: in long sequences
# they would wait for L2.
_FORWARD_90 = [
    *_SHORT_FORWARD,
    (128, 64, "resident", 64, 0, 4, 2),
    (208, 64, "resident", 64, 0, 4, 1, 168),
    (320, 64, "tiled", 64, 64, 4, 3),
    (128, 128, "resident", 64, 0, 4, 2),
    (LONGEST, 64, "tiled", 128, 64, 8, 3),
    (LONGEST, 128, "tiled", 64, 32, 4, 3),
]
# 32 query rows halve the passes over K and V in shared memory against 16, and are the most that 255 registers hold.
# Three stages are the fewest that load a block while another is computed: at two, Triton 3.8 loads at the loop's end
# and waits at its beginning. Tiles of 64 x 32 with four warps take 167 registers at 64 features, 255 at 128, no spill:
# three programs a multiprocessor, or two.
_BACKWARD_90 = [
    *_SHORT_BACKWARD,
    (64, 64, "resident", 32, 0, 4, 2),
    (256, 64, "resident", 32, 0, 8, 3),
    (128, 128, "resident", 16, 0, 8, 2),
    (LONGEST, 128, "tiled", 64, 32, 4, 3),
]
# mma.sync: each warp reads the streamed rows from shared memory for itself, so it owns 32 rows, not 16: half the reads.
# With four warps and 48 KB two programs fit on a multiprocessor, of cards of 99 KB too.
_BACKWARD_80 = [
    *_SHORT_BACKWARD,
    (64, 64, "resident", 32, 0, 4, 2),
    (256, 64, "two_phase", 128, 32, 4, 3),
    (LONGEST, 64, "tiled", 128, 32, 4, 3),
]
TABLE: dict[tuple[Direction, int], list[Row]] = {
    ("forward", 90): _rows(*_FORWARD_90),
    ("backward", 90): _rows(*_BACKWARD_90),
    # Accumulators live in tensor memory, 512 columns a multiprocessor: a program that takes them all runs alone.
    ("forward", 100): _rows(
        *_SHORT_FORWARD,
        (208, 64, "resident", 64, 0, 4, 1),
        (128, 128, "resident", 64, 0, 4, 2),
        (LONGEST, 64, "tiled", 128, 64, 8, 3),
        (LONGEST, 128, "tiled", 128, 64, 8, 2),
    ),
    ("backward", 100): _rows(
        *_SHORT_BACKWARD,
        (64, 64, "resident", 32, 0, 4, 2),
        (256, 64, "resident", 32, 0, 8, 2),
        (128, 128, "resident", 16, 0, 8, 2),
        (LONGEST, 64, "tiled", 128, 32, 8, 2),
        (LONGEST, 128, "tiled", 64, 64, 8, 2),
    ),
    # Four blocks of 64 rows and two of 128 cover 193 to 208 tokens alike; 16 warps hide more latency than 8.
    ("forward", 80): _rows(
        *_SHORT_FORWARD,
        (192, 64, "resident", 64, 0, 4, 2),
        (208, 64, "resident", 128, 0, 8, 1, 128),
        (LONGEST, 64, "tiled", 128, 64, 4, 3),
        (LONGEST, 128, "tiled", 128, 64, 8, 2),
    ),
    ("backward", 80): _rows(*_BACKWARD_80, (LONGEST, 128, "tiled", 64, 32, 4, 3)),
    # 99 KB: of a tiled forward two programs fit on a multiprocessor, of a resident one for N > 128 one.
    ("forward", 89): _rows(
        *_SHORT_FORWARD,
        (64, 64, "resident", 64, 0, 4, 2),
        (LONGEST, 64, "tiled", 128, 64, 4, 3),
        (LONGEST, 128, "tiled", 128, 64, 8, 2),
    ),
    ("backward", 89): _rows(*_BACKWARD_80, (LONGEST, 128, "tiled", 64, 64, 8, 2)),
}

_KEY_PIECES = (
    (16, (16, 0, 0)), (32, (32, 0, 0)), (64, (64, 0, 0)), (80, (64, 16, 0)), (128, (128, 0, 0)), (144, (128, 16, 0)),
    (192, (128, 64, 0)), (208, (128, 64, 16)), (256, (256, 0, 0)), (272, (256, 16, 0)),
)  # fmt: skip


def key_pieces(length: int) -> tuple[int, int, int]:
    """Powers of two that cover `length` keys, only the last of them partly: 198 is 128 + 64 + 16 instead of 256."""
    return next(pieces for longest, pieces in _KEY_PIECES if length <= longest)


def family(capability: tuple[int, int], shared_bytes: int) -> int:
    """The table's key for a card: 80, 90 or 100 by its major version, 89 for all whose blocks take 99 KB at most."""
    if shared_bytes < 128 * 1024:
        return 89
    return min(capability[0] * 10, 100)


@functools.cache
def choose(direction: Direction, card: int, length: int, features: int, pairs: int, multiprocessors: int) -> Config:
    """The configuration of the first row that fits.

    Args:
        card: a `family`.
        pairs: batch times heads. A backward of one program per pair needs enough of them to fill the card, or the tiled
            one takes its place: half the multiprocessors in the resident form, and in two phases, whose programs of
            four warps share a multiprocessor by twos, twice the multiprocessors. A resident forward is split over
            queries instead (`splits`).
    """
    rows = [*_rows_on_request(direction, card), *TABLE[direction, card]]
    fits = [row.config for row in rows if row.min_length <= length <= row.max_length and features <= row.max_features]
    if direction == "backward":
        fewest = {"resident": multiprocessors / 2, "two_phase": 2 * multiprocessors, "tiled": 0}
        fits = [config for config in fits if pairs >= fewest[config.form]]
    return fits[0]


def splits(config: Config, length: int, pairs: int, multiprocessors: int) -> int:
    """Programs that share one (batch, head) in the resident forward, so that every multiprocessor has two programs."""
    return max(1, min(-(-length // config.block_m), 2 * multiprocessors // pairs))


@functools.cache
def _rows_on_request(direction: Direction, card: int) -> list[Row]:
    path = os.environ.get("DEIT_KERNELS_TABLE")
    if not path:
        return []
    try:
        table = json.loads(Path(path).read_text())["attention"]
        return [
            Row(
                row["max_length"],
                row["max_features"],
                Config(**row["config"]),
                row.get("min_length", 0),
                row.get("microseconds"),
                row.get("sdpa_microseconds"),
            )
            for row in table
            if row["direction"] == direction and row["card"] == card
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"DEIT_KERNELS_TABLE names {path}, which is not a table ({error!r}); "
            "to write one, type python -m deit_kernels.tune --out table.json"
        ) from error


@constant_to_dynamo
def ranges_ahead(card: int) -> tuple[Range, ...]:
    """What a measured table says of both directions, then what is expected; the first range that fits counts."""
    forward, backward = (_rows_on_request(direction, card) for direction in get_args(Direction))
    measured = []
    for row in forward:
        both = [row, *(other for other in backward if other.max_length == row.max_length)]
        times = [(each.microseconds, each.sdpa_microseconds) for each in both]
        known = [(ours, sdpa) for ours, sdpa in times if ours and sdpa]
        if len(known) == 2:
            ahead = sum(ours for ours, _ in known) < sum(sdpa for _, sdpa in known)
            measured.append(Range(row.max_features, row.min_length, row.max_length, ahead))
    return *measured, _EXPECTED


@constant_to_dynamo
def card_of(device: torch.device) -> tuple[int, int]:
    """(family, multiprocessors). The interpreter is an H100 of one multiprocessor: a test takes the path of a batch."""
    if device.type != "cuda":
        return 90, 1
    card = torch.cuda.get_device_properties(device)
    shared = card.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stubs lack it
    return family((card.major, card.minor), shared), card.multi_processor_count


def forget() -> None:
    """Read the table again, after DEIT_KERNELS_TABLE has changed."""
    for cached in (choose, ranges_ahead, _rows_on_request):
        cached.cache_clear()
