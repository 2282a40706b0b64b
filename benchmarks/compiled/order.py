"""Predict the contenders of `deit_kernels.tune` and print the table of `deit_kernels/short_attention/predicted.py`.

    python -m benchmarks.compiled.order                             # ten minutes on one core, no GPU
    python -m benchmarks.compiled.order --capability 80 --tokens 198 --direction backward

A contender's time is the model's prediction (model/predict.py), or that of its bytes from L2 where it is longer; the
tiled backward's includes its delta kernel. Contenders are the candidates of `tune` that their registers, shared memory
and pipes do not rule out at first sight; the model puts them in order. Nothing here is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.compiled.model.pipes import CARDS, SUSTAINED
from benchmarks.compiled.model.predict import CORRECTION
from benchmarks.compiled.report import numbers_of
from deit_kernels.compile_case import Launch
from deit_kernels.short_attention.cases import config_case
from deit_kernels.short_attention.configuration import Config, Direction

FEATURES = 64
# Bytes a second that a whole card reads from L2; estimates from public microbenchmarks, no figure of NVIDIA's.
L2 = {80: 4.2e12, 90: 5.6e12}

_RESIDENT_FORWARD = [
    *(Config("resident", 64, 0, 4, stages, limit) for limit in (None, 168) for stages in (1, 2, 3)),
    *(Config("resident", 128, 0, 8, stages) for stages in (1, 2)),
    Config("resident", 128, 0, 8, 1, 128),
    Config("resident", 32, 0, 4, 1),
]
_RESIDENT_BACKWARD = [
    *(Config("resident", 32, 0, 8, stages) for stages in (2, 3)),
    *(Config("resident", 16, 0, 8, stages) for stages in (2, 3)),
]
_TWO_PHASE = [
    *(Config("two_phase", 64, block_n, 4, stages, 168) for block_n in (32, 64) for stages in (2, 3)),
    *(Config("two_phase", 128, 32, 4, stages) for stages in (2, 3)),
    Config("two_phase", 128, 64, 8, 3),
]
_TILED = [
    *(Config("tiled", 128, 64, 8, stages) for stages in (2, 3)),
    *(Config("tiled", 128, block_n, 4, stages) for block_n in (32, 64) for stages in (2, 3)),
    *(Config("tiled", 64, block_n, 4, stages) for block_n in (32, 64) for stages in (2, 3)),
    Config("tiled", 128, 32, 8, 3),
]
_FEW_TILED = [Config("tiled", 128, 64, 8, 3), Config("tiled", 128, 32, 4, 3), Config("tiled", 64, 64, 4, 3)]
CONTENDERS: dict[tuple[Direction, int], list[Config]] = {
    ("forward", 198): _RESIDENT_FORWARD + _FEW_TILED,
    ("backward", 198): _RESIDENT_BACKWARD + _TWO_PHASE + _FEW_TILED,
    ("forward", 578): _TILED,
    ("backward", 578): _TILED,
}


def microseconds(direction: Direction, length: int, config: Config, capability: int) -> float | None:
    """The time of one pass of 256 images with 6 heads, predicted; None for a configuration that does not fit."""
    case = config_case(direction, length, FEATURES, config, capability)
    predicted = numbers_of(case, capability).get("predicted_us")
    if predicted is None:
        return None
    from_l2 = 1e6 * case.launch.programs * (case.launch.loaded + case.launch.stored) / L2[capability]
    return max(predicted, from_l2) + _delta_microseconds(direction, length, config, case.launch, capability)


def _delta_microseconds(direction: Direction, length: int, config: Config, launch: Launch, capability: int) -> float:
    """The delta kernel, which streams two matrices: its bytes at the sustained bandwidth, corrected as any other."""
    if (direction, config.form) != ("backward", "tiled"):
        return 0.0
    pairs = launch.programs / (2 * -(-length // config.block_m))
    moved = pairs * (2 * 2 * length * FEATURES + 4 * length)
    return CORRECTION * 1e6 * moved / (SUSTAINED * CARDS[capability].bandwidth)


def ranked(direction: Direction, length: int, capability: int) -> Iterator[tuple[float, Config]]:
    """The contenders that fit, with their times, best first."""
    times = [(microseconds(direction, length, config, capability), config) for config in CONTENDERS[direction, length]]
    yield from sorted(((time, config) for time, config in times if time), key=lambda pair: pair[0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled.order", description=__doc__.split("\n")[0])
    parser.add_argument("--capability", type=int, choices=sorted(L2), default=None, help="default: all")
    parser.add_argument("--tokens", type=int, choices=(198, 578), default=None, help="default: all")
    parser.add_argument("--direction", choices=("forward", "backward"), default=None, help="default: both")
    arguments = parser.parse_args()
    for capability in sorted(L2):
        for direction, length in CONTENDERS:
            wanted = (arguments.capability, arguments.tokens, arguments.direction)
            if any(
                want not in (None, have) for want, have in zip(wanted, (capability, length, direction), strict=True)
            ):
                continue
            print(f'    ("{direction}", {capability}, {length}): [', flush=True)
            for time, config in ranked(direction, length, capability):
                limit = "" if config.max_registers is None else f", {config.max_registers}"
                fields = f'"{config.form}", {config.block_m}, {config.block_n}, {config.num_warps}, {config.num_stages}'
                print(f"        ({time:.0f}, Config({fields}{limit})),", flush=True)
            print("    ],", flush=True)


if __name__ == "__main__":
    main()
