"""Measure the attention kernels' configurations on this machine's card and write the fastest as a table.

    python -m deit_kernels.tune --out h100.json                  # about two minutes; needs a CUDA card
    DEIT_KERNELS_TABLE=h100.json python -m deit_fast.train …     # its rows go before the shipped ones

The ops themselves never tune: a training run starts at once and takes the same kernels every time. A configuration that
does not fit the card, or whose result differs from the shipped one's, is left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from .attention.configuration import Config, Direction

# Longest sequence of a row -> the length that is measured for it: what vision transformers have, not the easiest.
LENGTHS = {64: 50, 128: 128, 208: 198, 256: 256, 272: 257, 640: 578, 1040: 1025}
RESIDENT_LIMIT = {"forward": 272, "backward": 256}
TOLERANCE = 2e-2  # two bf16 roundings of values near 1

Measure = Callable[[Callable[[], object]], float]


def candidates(direction: Direction, length: int) -> list[Config]:
    """Every configuration worth a measurement; many of them fit no card at some head dim."""
    tiled = [
        Config("tiled", block_m, block_n, num_warps, num_stages)
        for block_m in (64, 128)
        for block_n in (32, 64, 128)
        for num_warps in (4, 8)
        for num_stages in (2, 3)
    ]
    if length > RESIDENT_LIMIT[direction]:
        return tiled
    return tiled + [
        Config("resident", block_m, 0, num_warps, num_stages)
        for block_m in (16, 32, 64, 128)
        for num_warps in (4, 8, 16)
        for num_stages in (1, 2, 3)
    ]


def make_call(direction: Direction, qkv: Tensor, scale: float) -> Callable[[Config | None], Tensor]:
    """A function that runs one pass with a configuration, None being the shipped one's."""
    from .attention.launch import backward, forward

    query, key, value = qkv.unbind(2)
    out, lse = forward(query, key, value, scale)
    grad = torch.randn_like(out)
    if direction == "forward":
        return lambda config: forward(query, key, value, scale, config)[0]
    return lambda config: backward(grad, query, key, value, out, lse, scale, config)[0]


def fastest(call: Callable[[Config | None], Tensor], configs: list[Config], measure: Measure) -> tuple[Config, float]:
    """The configuration of least time, and the time; those that do not run, or disagree, are named."""
    from triton.runtime.errors import OutOfResources

    expected = call(None)
    times: dict[Config, float] = {}
    for config in configs:
        try:
            torch.testing.assert_close(call(config), expected, rtol=TOLERANCE, atol=TOLERANCE)
            times[config] = measure(lambda config=config: call(config))
        except (OutOfResources, RuntimeError, AssertionError) as error:
            print(f"  left out {config}: {str(error).splitlines()[0]}")
    if not times:
        raise RuntimeError("no configuration ran on this card")
    best = min(times, key=times.__getitem__)
    return best, times[best]


def tune(
    card: int, device: torch.device, measure: Measure, *, batch: int, heads: int, features: int, lengths: dict[int, int]
) -> list[dict]:
    """Table rows, as `configuration.py` reads them."""
    rows = []
    for longest, length in lengths.items():
        for direction in ("forward", "backward"):
            qkv = torch.randn(batch, length, 3, heads, features, device=device, dtype=torch.float16)
            config, milliseconds = fastest(
                make_call(direction, qkv, features**-0.5), candidates(direction, length), measure
            )
            print(f"{direction} N = {length}: {config}, {milliseconds * 1e3:.1f} µs")
            row = {"direction": direction, "card": card, "max_length": longest, "max_features": features}
            rows.append(row | {"config": asdict(config), "microseconds": milliseconds * 1e3})
    return rows


def write_table(path: Path, rows: list[dict], measured: dict[str, object]) -> None:
    """Under a temporary name first, so that a table is whole or absent."""
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
    parser.add_argument("--features", type=int, default=64, help="of a head")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("python -m deit_kernels.tune measures on a CUDA card, and torch finds none here")

    import triton

    from .attention.launch import card_of

    device = torch.device("cuda", torch.cuda.current_device())
    shape = {"batch": arguments.batch, "heads": arguments.heads, "features": arguments.features}
    rows = tune(
        card_of(device)[0], device, lambda run: triton.testing.do_bench(run, return_mode="median"),
        **shape, lengths=LENGTHS,
    )  # fmt: skip
    where = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "triton": triton.__version__}
    write_table(arguments.out, rows, where | shape)
    print(f"to use it: DEIT_KERNELS_TABLE={arguments.out}")


if __name__ == "__main__":
    main()
