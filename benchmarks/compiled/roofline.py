"""A bound of the whole training step on an H100: what each part moves and computes, over what the card sustains.

    python -m benchmarks.compiled.roofline                          # the tables of docs/speed-report.md
    python -m benchmarks.compiled.roofline --write                  # puts them there
    python -m benchmarks.compiled.roofline --model deit_tiny_distilled_patch16_224 --batch 256 512 1024
    python -m benchmarks.compiled.roofline --batch 256 --teacher live --cards 8 --residual bf16

With any of the other flags it prints the parts of each model and batch size. A part takes its bytes at the sustained
bandwidth, a matrix product that or its operations at the sustained rate, whichever is longer, and nothing overlaps.
Attention and augmentation take the frozen times of predicted.py, good to ±25 %; where there is none, attention takes
its byte floor, and the part's name says so. The page has the other assumptions. Nothing here is measured.
"""

from __future__ import annotations

import argparse
import itertools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.compiled.predicted import Kernels, attention_us, augmentation_us, predictions
from benchmarks.compiled.work import FULL, HALF, Rows, Settings, moved, on_meta, parameters, products
from deit_fast.model import CONFIGS, ViTConfig
from deit_fast.train.meter import forward_flops, peak_flops, training_flops

PAGE = Path(__file__).parents[2] / "docs" / "speed-report.md"
COMMAND = "python -m benchmarks.compiled.roofline"
BEGIN, END = f"<!-- written by {COMMAND} --write -->", "<!-- end of what it writes -->"
MODELS = tuple(name for name in CONFIGS if name.startswith("deit_") and "distilled" in name)
BATCHES, CARDS = (256, 512, 1024), 8
RANGE = 0.25  # of the frozen predictions, either way


@dataclass(frozen=True)
class Machine:
    """What is assumed of a card; `kernels` have their predicted times."""

    name: str = "H100 SXM"
    product_rate: float = 650e12  # FLOP/s that bf16 matrix products sustain, of the 989e12 of the data sheet
    bandwidth: float = 3.0e12  # bytes/s that kernels sustain, of the 3.35e12 of the data sheet
    gap: float = 1e-6  # seconds between two kernels
    link: float = 360e9  # bytes/s each way that an all-reduce sustains, of NVLink's 450e9
    bucket: int = 25 << 20  # bytes of gradients that DDP sends at once; the last one is not hidden by the backward
    kernels: Kernels = field(default_factory=lambda: predictions("sm_90"))


class Part(NamedTuple):
    """A row of the table; `flop` counts matrix products only, `spread` is the range of a predicted time, either way."""

    name: str
    bytes: float
    flop: float
    seconds: float
    spread: float = 0.0


def step_parts(settings: Settings, machine: Machine = Machine()) -> list[Part]:
    """The rows of one card's step, in the order of the table."""
    config, batch = CONFIGS[settings.model], settings.batch
    every = products(config, batch)
    seconds = sum(max(each.flop / machine.product_rate, each.bytes / machine.bandwidth) for each in every)
    flop, size = sum(each.flop for each in every), sum(each.bytes for each in every)
    augmentation = augmentation_us() * 1e-6 * batch
    parts = [
        Part(f"{len(every)} matrix products", size, flop, seconds),
        *(_attention(config, batch, machine, direction) for direction in ("forward", "backward")),
        *(Part(name, size, 0, size / machine.bandwidth) for name, size in moved(settings, config).items()),
        Part("augmentation", 0, 0, augmentation, RANGE * augmentation),
    ]  # fmt: skip
    # A block's products, attention passes, LNs, GELUs and casts of weights are a kernel each, a bias's sum two.
    launched = config.depth * (8 + (12 + 2 * 4) + 2 * 4) + 60
    parts += [] if settings.graph else [Part(f"gaps between {launched} kernels", 0, 0, launched * machine.gap)]
    if settings.teacher == "live":
        flop = batch * forward_flops(on_meta("regnety_160"), 224)
        parts.append(Part("teacher RegNetY-16GF, forward", 0, flop, flop / machine.product_rate))
    if settings.cards > 1:
        last = min(machine.bucket / (FULL * parameters(settings.model)), 1)
        # Each card sends and receives all gradients but its own share, twice.
        whole = 2 * (settings.cards - 1) / settings.cards * FULL * parameters(settings.model) / machine.link
        parts.append(Part(f"all-reduce over {settings.cards} cards, the last bucket", 0, 0, last * whole))
    return parts


def total(parts: list[Part]) -> Part:
    """The sum of all rows."""
    return Part("sum", *(sum(values) for values in zip(*(part[1:] for part in parts), strict=True)))


def _attention(config: ViTConfig, batch: int, machine: Machine, direction: str) -> Part:
    """All layers: predicted, or where nothing is predicted at the byte floor, 4 tensors forward, 8 backward."""
    tokens, backward = Rows.of(config, 1).all, direction == "backward"
    size = config.depth * (8 if backward else 4) * HALF * batch * tokens * config.width
    flop = config.depth * (5 if backward else 2) * 2 * batch * tokens**2 * config.width
    layer = attention_us(machine.kernels, direction, tokens, config.width // config.heads, batch * config.heads)
    if layer is None:
        return Part(f"attention, {direction}, byte floor", size, flop, size / machine.bandwidth)
    seconds = config.depth * layer * 1e-6
    return Part(f"attention, {direction}", size, flop, seconds, RANGE * seconds)


def _with_range(part: Part) -> str:
    spread = f" ± {part.spread * 1e3:.2f}" if part.spread else ""
    return f"{part.seconds * 1e3:.2f}{spread}"


def table(header: str, rows: list[list[str]]) -> list[str]:
    names = header.split("|")
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names), *(f"| {' | '.join(row)} |" for row in rows)]


def title(name: str) -> str:
    """`DeiT-S` of `deit_small_distilled_patch16_224`."""
    side = name.rpartition("_")[2]
    size = {"tiny": "Ti", "small": "S", "base": "B"}[name.split("_")[1]]
    return f"DeiT-{size}" + ("" if side == "224" else f" at {side} pixels")


def details(settings: Settings, machine: Machine) -> list[str]:
    """One step: a line that sums it up, and its parts. MFU counts the forward's FLOPs of the model three times."""
    parts = step_parts(settings, machine)
    whole = total(parts)
    flop = training_flops(on_meta(settings.model), None, CONFIGS[settings.model].image_size) * settings.batch
    rows = []
    for part in [*parts, whole]:
        size = f"{part.bytes / 1e9:.1f}" if part.bytes else "–"
        products = f"{part.flop / 1e12:.2f}" if part.flop else "–"
        rows.append([part.name, size, products, _with_range(part), f"{part.seconds / whole.seconds:.0%}"])
    line = (
        f"{title(settings.model)}, {settings.batch} images a card, {settings.teacher} labels, {settings.cards} "
        f"card{'s' * (settings.cards > 1)}, {settings.residual} between the blocks: at most "
        f"{settings.cards * settings.batch / whole.seconds:,.0f} images/s, "
        f"{flop / whole.seconds / peak_flops(machine.name):.1%} MFU, {parameters(settings.model) / 1e6:.1f} million "
        "parameters."
    )
    return [line, "", *table("part|GB|TFLOP|predicted ms|share", rows)]


def summary(machine: Machine) -> list[str]:
    """Every model and batch size of the page: cached labels, the same on eight cards, and a live teacher."""
    rows = []
    for model, batch in itertools.product(MODELS[:3], BATCHES):
        cached = Settings(model, batch)
        forms = (cached, replace(cached, cards=CARDS), replace(cached, teacher="live"))
        one, eight, live = (total(step_parts(form, machine)) for form in forms)
        rates = (batch / one.seconds, CARDS * batch / eight.seconds, batch / live.seconds)
        rows.append([f"{title(model)}, {batch}", _with_range(one), *(f"{rate:,.0f}" for rate in rates)])
    header = f"model, images a card|ms a step, cached labels|images/s a card|images/s, {CARDS} cards"
    return table(f"{header}|images/s a card, live teacher", rows)


CHANGES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("GELU and its backward in the products' epilogues", {"gelu_in_products": True}, "`--compile-mode`, untried"),
    ("bfloat16 between the blocks", {"residual": "bf16"}, "`--precision bf16-residual`"),
    ("bias gradients of proj and fc2 in LN's backward", {"biases_in_norms": True}, "on paper"),
    ("qkv's bias gradient in attention's backward", {"qkv_bias_in_attention": True}, "on paper"),
    ("forward and backward as a CUDA graph", {"graph": True}, "on paper"),
)


def changes_table(base: Settings, machine: Machine) -> list[str]:
    before, rows = total(step_parts(base, machine)).seconds, []
    together = ("all of them", {key: value for _, change, _ in CHANGES for key, value in change.items()}, "on paper")
    slower = replace(machine, product_rate=550e12)
    for name, change, state in (*CHANGES, together, ("products at 550 TFLOP/s instead of 650", {}, "–")):
        after = total(step_parts(replace(base, **change), machine if change else slower)).seconds
        rows.append([name, f"{(after - before) * 1e3:+.2f}", f"{base.batch / after:,.0f}", state])
    return table("change|ms a step|images/s|exists", rows)


def section(machine: Machine) -> str:
    """What the page holds between its two marks."""
    small = Settings(MODELS[1], 256)
    parts = [
        BEGIN, "\n".join(summary(machine)), "The parts of one of these steps:", "\n".join(details(small, machine)),
        "What a change would move less in it, each alone:", "\n".join(changes_table(small, machine)), END,
    ]  # fmt: skip
    return "\n\n".join(parts)


def written(page: str, text: str) -> str:
    """The page with `text` between its marks.

    Raises:
        ValueError: it has no marks.
    """
    between = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", flags=re.DOTALL)
    if not between.search(page):
        raise ValueError(f"{PAGE.name} lacks the lines {BEGIN} and {END}: put them where the tables belong")
    return between.sub(lambda _: text, page, count=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/speed-report.md")
    parser.add_argument("--model", nargs="+", choices=MODELS, help="default: DeiT-Ti, S and B at 224 pixels")
    parser.add_argument("--batch", nargs="+", type=int, metavar="IMAGES", help="a card's; default: 256 512 1024")
    parser.add_argument("--teacher", choices=("cached", "live"), help="default: cached")
    parser.add_argument("--cards", type=int, help="default: 1")
    parser.add_argument("--residual", choices=("fp32", "bf16"), help="type between the blocks; default: fp32")
    arguments = parser.parse_args()
    given = {name: value for name, value in vars(arguments).items() if value is not None and name != "write"}
    if arguments.write and given:
        parser.error(f"--write writes the tables of the page: leave out --{next(iter(given))}")
    if min([*given.get("batch", [1]), given.get("cards", 1)]) < 1:
        parser.error("--batch and --cards are at least 1")
    machine, shown = Machine(), f"Not measured; docs/{PAGE.name} has the assumptions."
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(), section(machine)))
        print(f"docs/{PAGE.name}")
    elif not given:
        print(shown, section(machine), sep="\n\n")
    else:
        models, batches = given.pop("model", MODELS[:3]), given.pop("batch", BATCHES)
        print(shown)
        for model, batch in itertools.product(models, batches):
            print("", *details(Settings(model, batch, **given), machine), sep="\n")


if __name__ == "__main__":
    main()
