"""Measure the attention kernels' configurations on this machine's card and write the fastest as a table.

    python -m deit_kernels.tune --out h100.json                  # needs a CUDA card; minutes, most of them compilation
    python -m deit_kernels.tune --out h100.json --seconds 60     # stops after a minute; the same command continues
    DEIT_KERNELS_TABLE=h100.json python -m deit_fast.train …     # its rows go before the shipped ones

A row also holds the time of PyTorch's SDPA, and the ops take the faster of the two where the table has both directions.
The ops themselves never tune: a training run starts at once and takes the same kernels every time. A configuration that
does not fit the card, or whose result differs from the shipped one's, is left out and named. A first pass
measures a few candidates of every row, beginning with the shipped one, DeiT's own lengths first, a second pass the
others. The table is rewritten after every row; what it holds for the same card, shape, versions and candidates is not
measured again. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .short_attention.configuration import TABLE, Config, Direction, Form

# Longest sequence of a row -> the length that is measured for it: what vision transformers have, not the easiest.
LENGTHS = {208: 198, 640: 578, 272: 257, 256: 256, 64: 50, 128: 128, 1040: 1025}
RESIDENT_LIMIT = {"forward": 272, "backward": 256}
EXACT_ZERO = 64  # tokens up to which only the resident backward gives a gradient of exactly 0 where it has to
FEATURES = 64  # of a head, for which the table has rows of its own
FIRST = 8  # candidates of a row in the first pass
TOLERANCE = 2e-2  # two bf16 roundings of values near 1

Measure = Callable[[Callable[[], object]], float]


class NothingRanError(RuntimeError):
    """No candidate runs on this card with the shipped configuration's result."""


def candidates(direction: Direction, length: int) -> list[Config]:
    """Every configuration worth a measurement; many of them fit no card at some head dim."""

    def configs(form: Form, *choices: Iterable) -> list[Config]:
        """Every combination of block_m, block_n, (warps, registers of a thread) and stages."""
        grid = itertools.product(*choices)
        return [Config(form, m, n, warps, stages, registers) for m, n, (warps, registers), stages in grid]

    tiled = configs("tiled", (64, 128), (32, 64, 128), [(4, None), (8, None)], (2, 3))
    if length > RESIDENT_LIMIT[direction]:
        return tiled
    limits = [(4, None), (4, 168), (4, 128), (8, None), (8, 128)]
    resident = configs("resident", (16, 32, 64, 128), (0,), limits, (1, 2, 3))
    two_phase = configs("two_phase", (64, 128), (32, 64), limits, (2, 3))
    if direction == "forward":
        return tiled + resident
    return resident if length <= EXACT_ZERO else tiled + resident + two_phase


def best_first(direction: Direction, card: int, length: int) -> list[Config]:
    """The candidates of a row: the shipped one, then the forms in turns, each with what any card's table holds first.

    Of the others the more alike one is to the shipped one, the earlier it comes.
    """
    shipped = next(
        row.config for row in TABLE[direction, card] if length <= row.max_length and FEATURES <= row.max_features
    )
    of_any_card = {row.config for (pass_of, _), rows in TABLE.items() if pass_of == direction for row in rows}

    def distance(config: Config) -> tuple[bool, bool, int]:
        differing = sum(mine != its for mine, its in zip(astuple(config), astuple(shipped), strict=True))
        return config != shipped, config not in of_any_card, differing

    forms: dict[str, list[Config]] = {}
    for config in sorted(candidates(direction, length), key=distance):
        forms.setdefault(config.form, []).append(config)
    return [config for turn in itertools.zip_longest(*forms.values()) for config in turn if config is not None]


def candidates_digest(card: int) -> str:
    """Another one for other candidates or another order of them: `tried` in a row counts along that order."""
    ordered = [
        (direction, longest, length, best_first(direction, card, length))
        for longest, length in LENGTHS.items()
        for direction in get_args(Direction)
    ]
    return hashlib.sha256(repr(ordered).encode()).hexdigest()[:16]


def make_call(direction: Direction, qkv: Tensor, scale: float) -> Callable[[Config | None], Tensor]:
    """A function that runs one pass with a configuration, None being the shipped one's."""
    from .short_attention.launch import backward, forward

    query, key, value = qkv.unbind(2)
    out, lse = forward(query, key, value, scale)
    grad = torch.randn_like(out)
    if direction == "forward":
        return lambda config: forward(query, key, value, scale, config)[0]
    return lambda config: backward(grad, query, key, value, out, lse, scale, config)[0]


def sdpa_call(direction: Direction, qkv: Tensor, scale: float) -> Callable[[], object]:
    """The same pass by PyTorch's SDPA, the backward with the stack of gradients that a packed qkv needs."""
    leaf = qkv.detach().requires_grad_(direction == "backward")
    heads_first = leaf.permute(2, 0, 3, 1, 4)
    if direction == "forward":
        return lambda: F.scaled_dot_product_attention(heads_first[0], heads_first[1], heads_first[2], scale=scale)
    out = F.scaled_dot_product_attention(heads_first[0], heads_first[1], heads_first[2], scale=scale)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True)


def failures() -> tuple[type[Exception], ...]:
    """The exceptions of a configuration that the card or the compiler cannot take."""
    from triton.errors import TritonError

    return TritonError, RuntimeError, AssertionError


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new memory with NaN, where a kernel that stores nothing could otherwise find an earlier kernel's result."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def fastest(
    call: Callable[[Config | None], Tensor], configs: Iterable[Config], measure: Measure
) -> tuple[Config, float]:
    """The fastest configuration and its time; prints those that do not run or give another result."""
    expected = call(None)
    times: dict[Config, float] = {}
    for config in configs:
        try:
            with poisoned():
                result = call(config)
            torch.testing.assert_close(result, expected, rtol=TOLERANCE, atol=TOLERANCE)
            times[config] = measure(partial(call, config))
        except failures() as error:
            print(f"  left out {config}: {str(error).splitlines()[0]}")
    if not times:
        raise NothingRanError("no configuration ran on this card")
    best = min(times, key=times.__getitem__)
    return best, times[best]


@contextmanager
def compiling_ahead() -> Iterator[Callable[[Direction, int, int, int, list[Config]], None]]:
    """A function that compiles configurations by as many processes as there are cores, into Triton's cache on disk.

    It takes the direction, the length, heads and features: no size but these is compiled into a kernel, so a batch of
    one finds what the measured batch needs. A process that crashes ends the others; the next call starts new ones.
    """
    workers = min(len(os.sched_getaffinity(0)), 16)
    new_pool = functools.partial(ProcessPoolExecutor, workers, mp_context=multiprocessing.get_context("spawn"))
    pool = new_pool()

    def ahead(direction: Direction, length: int, heads: int, features: int, configs: list[Config]) -> None:
        nonlocal pool
        parts = [(direction, length, heads, features, configs[start::workers]) for start in range(workers)]
        try:
            list(pool.map(_compile, [part for part in parts if part[-1]]))
        except RuntimeError as error:  # no memory for as many, or a compiler that crashed
            print(f"  compiling ahead failed, so measuring takes longer: {error}")
            if isinstance(error, BrokenProcessPool):
                pool.shutdown()
                pool = new_pool()

    try:
        yield ahead
    finally:
        pool.shutdown(cancel_futures=True)


def _compile(arguments: tuple[Direction, int, int, int, list[Config]]) -> None:
    direction, length, heads, features, configs = arguments
    qkv = torch.randn(1, length, 3, heads, features, device="cuda", dtype=torch.float16)
    call = make_call(direction, qkv, features**-0.5)
    for config in configs:
        try:
            call(config)
        except failures():  # the measuring process meets the error again, and prints it
            continue


def tune(
    card: int, device: torch.device, measure: Measure, *, batch: int, heads: int, features: int,
    lengths: dict[int, int], ahead: Callable[..., None], known: Iterable[dict] = (),
) -> Iterator[dict]:  # fmt: skip
    """Table rows, as `configuration.py` reads them, one after the other: first of `FIRST` candidates, then of all.

    Args:
        ahead: compiles configurations before they are measured, as `compiling_ahead` gives it.
        known: rows that are there already; candidates that they have seen are not measured again.

    Yields:
        rows; a later one replaces the earlier one of its direction and max_length.

    Raises:
        NothingRanError: of a row's candidates none gives the shipped configuration's result.
    """
    rows = {(row["direction"], row["max_length"]): row for row in known}
    for last_pass in (False, True):
        for longest, length in lengths.items():
            for direction in get_args(Direction):
                configs, row = best_first(direction, card, length), rows.get((direction, longest))
                tried = row["tried"] if row else 0
                left = configs[tried:] if last_pass else configs[tried:FIRST]
                if not left:
                    continue
                ahead(direction, length, heads, features, left)
                qkv = torch.randn(batch, length, 3, heads, features, device=device, dtype=torch.float16)
                try:
                    config, milliseconds = fastest(make_call(direction, qkv, features**-0.5), left, measure)
                    found = {"config": asdict(config), "microseconds": milliseconds * 1e3}
                except NothingRanError:
                    if row is None and last_pass:
                        raise
                    found = None
                best = min(filter(None, (row, found)), key=lambda each: each["microseconds"], default=None)
                if best is None:
                    continue  # the last pass begins anew
                sdpa = row["sdpa_microseconds"] if row else measure(sdpa_call(direction, qkv, features**-0.5)) * 1e3
                tried += len(left)
                print(
                    f"{direction} N = {length}: {best['config']}, {best['microseconds']:.1f} µs (SDPA {sdpa:.1f}), "
                    f"of {tried} in {len(configs)} candidates", flush=True,
                )  # fmt: skip
                shortest = 1 + max((other for other in LENGTHS if other < longest), default=0)
                row = {
                    "direction": direction, "card": card, "min_length": shortest, "max_length": longest,
                    "max_features": features, "config": best["config"], "microseconds": best["microseconds"],
                    "sdpa_microseconds": sdpa, "tried": tried,
                }  # fmt: skip
                rows[direction, longest] = row
                yield row


def rows_of(path: Path, measured: dict[str, object]) -> list[dict]:
    """The rows of a table of the same card, shape, versions and candidates; [] for any other file."""
    if not path.exists():
        return []
    table = json.loads(path.read_text())
    if table.get("measured") != measured:
        print(f"{path} was measured on {table.get('measured')}, and this is {measured}: it is overwritten")
        return []
    return table["attention"]


def unfinished(rows: list[dict]) -> int:
    """How many rows of `LENGTHS` are missing, or have candidates that were not measured."""
    tried = {(row["direction"], row["max_length"]): row["tried"] for row in rows}
    return sum(
        tried.get((direction, longest), 0) < len(candidates(direction, length))
        for longest, length in LENGTHS.items()
        for direction in get_args(Direction)
    )


def write_table(path: Path, rows: list[dict], measured: dict[str, object]) -> None:
    """Write a temporary file and rename it, so that a table is whole or absent."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        json.dump({"measured": measured, "attention": rows}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deit_kernels.tune", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("deit_kernels_table.json"), help="the table to write")
    parser.add_argument("--batch", type=int, default=256, help="images")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--features", type=int, default=FEATURES, help="of a head")
    parser.add_argument("--seconds", type=float, default=0, help="begin no row after so many; code 1 if any is left")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("python -m deit_kernels.tune measures on a CUDA card, and torch finds none here")

    import triton

    from .short_attention.launch import card_of

    device = torch.device("cuda", torch.cuda.current_device())
    card = card_of(device)[0]
    shape = {"batch": arguments.batch, "heads": arguments.heads, "features": arguments.features}
    where = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "triton": triton.__version__}
    where["candidates"] = candidates_digest(card)
    rows = {(row["direction"], row["max_length"]): row for row in rows_of(arguments.out, where | shape)}
    began = time.monotonic()
    with compiling_ahead() as ahead:
        new = tune(
            card, device, lambda run: triton.testing.do_bench(run, warmup=10, rep=40, return_mode="median"),
            **shape, lengths=LENGTHS, ahead=ahead, known=list(rows.values()),
        )  # fmt: skip
        for row in new:
            rows[row["direction"], row["max_length"]] = row
            write_table(arguments.out, list(rows.values()), where | shape)
            if arguments.seconds and time.monotonic() - began > arguments.seconds:
                break
    print(f"to use it: DEIT_KERNELS_TABLE={arguments.out}")
    if left := unfinished(list(rows.values())):
        raise SystemExit(f"{left} rows have untried candidates: run the same command again")


if __name__ == "__main__":
    main()
