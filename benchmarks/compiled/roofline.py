"""A roofline of the whole training step: the most images/s that its parts allow on an H100. Predicted, not measured.

    python -m benchmarks.compiled.roofline                          # the tables of docs/speed-report.md
    python -m benchmarks.compiled.roofline --write                  # puts them there
    python -m benchmarks.compiled.roofline --model deit_tiny_distilled_patch16_224 --batch 256 512 1024
    python -m benchmarks.compiled.roofline --batch 256 --teacher live --cards 8 --residual bf16

With any of the other flags it prints the parts of each model and batch size. step.py says how a part's bytes are
counted. Attention takes the times that the model of the machine predicts (`predicted_us` in budget.json); where that
holds none, its byte floor, and a star says so.
"""

from __future__ import annotations

import argparse
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

from benchmarks.compiled.predicted import PAIRS, Kernels, attention_us, predictions
from benchmarks.compiled.step import (
    MODELS,
    Machine,
    Part,
    Rows,
    Settings,
    exchange_seconds,
    on_meta,
    parameters,
    step_parts,
    total,
)
from deit_fast.train.meter import peak_flops, training_flops

PAGE = Path(__file__).parents[2] / "docs" / "speed-report.md"
COMMAND = "python -m benchmarks.compiled.roofline"
BEGIN, END = f"<!-- written by {COMMAND} --write -->", "<!-- end of what it writes -->"
BATCHES, CARDS = (256, 512, 1024), 8
FLOOR_NOTE = "\\* attention at its byte floor: the budget holds no predicted time of it at this size."
THREE_WARP_GROUPS_US = 152.0  # expected of the backward that the page describes under "On paper"


def assumptions(machine: Machine) -> list[str]:
    """What every number of the tables rests on, a line each."""
    peak = peak_flops(machine.name) / 1e12
    augmentation, source = machine.augmentation_and_source()
    return [
        f"{machine.name}: bf16 matrix products at {machine.product_rate / 1e12:.0f} TFLOP/s (data sheet: {peak:.0f}), "
        f"bytes at {machine.bandwidth / 1e12:.1f} TB/s; a product takes the longer of the two, all else its bytes.",
        "Attention and the augmentation take the times that a model of the machine predicts of them, gaps between "
        "kernels are assumed; all else is a bound.",
        "`torch.compile` fuses LN with the sum before it, GELU, and each one's backward; the gradients of vectors "
        "read what they sum once more. Kernels run one after the other.",
        f"{machine.gap * 1e6:.0f} µs between two kernels; the host is always ahead.",
        f"Augmentation on the same card, {augmentation * 1e6:.2f} µs an image ({source}). "
        "Files, decoding and copies are hidden.",
        f"Several cards: fp32 gradients over NVLink at {machine.link / 1e9:.0f} GB/s, hidden behind the backward "
        f"but for DDP's last bucket of {machine.bucket >> 20} MiB.",
        "A live RegNetY-16GF: its convolutions, grouped ones too, at the same rates, then one pass over each result. "
        "A bound that cuDNN's grouped convolutions stay far from: 25 to 60 ms for 256 images would not surprise.",
    ]


def bullets(machine: Machine) -> list[str]:
    return [textwrap.fill(f"- {line}", 118, subsequent_indent="  ") for line in assumptions(machine)]


def mfu(settings: Settings, seconds: float, machine: Machine) -> float:
    """FLOPs of the model's forward, three times, over what the card's data sheet allows; recomputing counts nothing."""
    model = on_meta(settings.model)
    flop = training_flops(model, None, model.config.image_size) * settings.batch
    return flop / seconds / peak_flops(machine.name)


def title(name: str) -> str:
    """`DeiT-S` of `deit_small_distilled_patch16_224`."""
    size = {"tiny": "Ti", "small": "S", "base": "B"}[name.split("_")[1]]
    side = name.rpartition("_")[2]
    return f"DeiT-{size}" + ("" if side == "224" else f" at {side} pixels")


def table(header: str, rows: list[list[str]]) -> list[str]:
    names = header.split("|")
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names), *(f"| {' | '.join(row)} |" for row in rows)]


def parts_table(parts: list[Part]) -> list[str]:
    whole = total(parts)
    rows = [
        [
            part.name + " \\*" * (part.floor and part.name != whole.name),
            f"{part.bytes / 1e9:.1f}" if part.bytes else "–",
            f"{part.flop / 1e12:.2f}" if part.flop else "–",
            f"{part.seconds * 1e3:.2f}",
            f"{part.seconds / whole.seconds:.0%}",
        ]
        for part in [*parts, whole]
    ]
    return table("part|GB|TFLOP|predicted ms|share", rows) + (["", FLOOR_NOTE] if whole.floor else [])


def details(settings: Settings, machine: Machine, kernels: Kernels) -> list[str]:
    """One step: a line that sums it up, and its parts."""
    parts = step_parts(settings, machine, kernels)
    seconds = total(parts).seconds
    labels = "cached labels" if settings.teacher == "cached" else "a live RegNetY-16GF teacher"
    cards = "one card" if settings.cards == 1 else f"{settings.cards} cards"
    line = (
        f"{title(settings.model)}, {settings.batch} images a card, {labels}, {cards}, {settings.residual} between the "
        f"blocks: predicted at most {settings.cards * settings.batch / seconds:,.0f} images/s, "
        f"{mfu(settings, seconds, machine):.1%} MFU, {parameters(settings.model) / 1e6:.1f} million parameters."
    )
    if settings.cards > 1:
        line += f" The whole all-reduce takes {exchange_seconds(settings, machine) * 1e3:.2f} ms."
    return [line, "", *parts_table(parts)]


def summary(machine: Machine, kernels: Kernels) -> list[str]:
    """Every model and batch size of the page: cached labels, the same on eight cards, and a live teacher."""
    rows, starred = [], False
    for model, batch in itertools.product(MODELS[:3], BATCHES):
        cached = Settings(model, batch)
        one = total(step_parts(cached, machine, kernels))
        others = (replace(cached, cards=CARDS), replace(cached, teacher="live"))
        eight, live = (total(step_parts(each, machine, kernels)).seconds for each in others)
        starred |= one.floor
        rows.append([
            f"{title(model)}, {batch}" + " \\*" * one.floor, f"{one.seconds * 1e3:.1f}", f"{batch / one.seconds:,.0f}",
            f"{CARDS * batch / eight:,.0f}", f"{batch / live:,.0f}",
        ])  # fmt: skip
    header = f"model, images a card|ms a step, cached labels|images/s a card|images/s, {CARDS} cards"
    return table(f"{header}|images/s a card, live teacher", rows) + (["", FLOOR_NOTE] if starred else [])


def changes(base: Settings, machine: Machine, kernels: Kernels) -> Iterator[tuple[str, Settings, Machine, str]]:
    """What could be otherwise: (its name, both settings with it, whether it exists)."""
    paper, config = "on paper", base.config
    tokens, features = Rows.of(config, 1).all, config.width // config.heads
    forward = attention_us(kernels, "forward", tokens, features, PAIRS)
    if forward is not None:
        yield (
            "attention's backward in three warp groups", replace(base, attention=(forward, THREE_WARP_GROUPS_US)),
            machine, paper,
        )  # fmt: skip
    floors = tuple(tensors * 2 * 256 * tokens * 6 * features / machine.bandwidth * 1e6 for tensors in (4, 8))
    yield "attention at its byte floor, which nothing reaches", replace(base, attention=floors), machine, paper
    of_settings = (
        ("GELU and its backward in the products' epilogues", {"gelu_in_products": True}, "`--compile-mode`, untried"),
        ("bfloat16 between the blocks", {"residual": "bf16"}, "`--precision bf16-residual`"),
        ("sums of LN, proj and fc2 in LN's backward", {"sums_in_norms": True}, paper),
        ("qkv's bias gradient in attention's backward", {"qkv_bias_in_attention": True}, paper),
        ("forward and backward as a CUDA graph", {"graph": True}, paper),
        ("AdamW and moving average in one kernel", {"update_in_one": True}, paper),
    )
    together: dict[str, object] = {}
    for name, change, state in of_settings:
        yield name, replace(base, **change), machine, state
        together |= change
    yield "the six from GELU to the moving average, together", replace(base, **together), machine, paper
    yield "FP8 products, and the copies that they need", replace(base, fp8=True), machine, "not planned"
    for rate in (550e12, 700e12):
        slower = replace(machine, product_rate=rate)
        yield f"products at {rate / 1e12:.0f} TFLOP/s instead of {machine.product_rate / 1e12:.0f}", base, slower, "–"


def changes_table(base: Settings, machine: Machine, kernels: Kernels) -> list[str]:
    before = total(step_parts(base, machine, kernels)).seconds
    rows = []
    for name, settings, assumed, state in changes(base, machine, kernels):
        after = total(step_parts(settings, assumed, kernels)).seconds
        rows.append([name, f"{(after - before) * 1e3:+.2f}", f"{base.batch / after:,.0f}", state])
    return table("change|predicted ms a step|images/s|exists", rows)


def section(machine: Machine, kernels: Kernels) -> str:
    """What the page holds between its two marks."""
    small = Settings(MODELS[1], 256)
    lines = [
        BEGIN, "", "**Predicted, not measured**, under these assumptions:", "",
        *bullets(machine), "",
        *summary(machine, kernels), "",
        "The parts of one of these steps:", "",
        *details(small, machine, kernels), "",
        "What a change would buy in it, each alone:", "",
        *changes_table(small, machine, kernels), "",
        END,
    ]  # fmt: skip
    return "\n".join(lines)


def written(page: str, text: str) -> str:
    """The page with `text` between its marks.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the lines {BEGIN} and {END}: put them where the tables belong")
    return before + text + after


def main() -> None:
    choices = get_type_hints(Settings)
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/speed-report.md")
    parser.add_argument("--model", nargs="+", choices=MODELS, help="default: DeiT-Ti, S and B at 224 pixels")
    parser.add_argument("--batch", nargs="+", type=int, metavar="IMAGES", help="a card's; default: 256 512 1024")
    parser.add_argument("--teacher", choices=choices["teacher"].__args__, help="default: cached")
    parser.add_argument("--cards", type=int, help="default: 1")
    parser.add_argument(
        "--residual", choices=choices["residual"].__args__, help="type between the blocks; default: fp32"
    )
    parser.add_argument("--augmentation", type=float, metavar="US", help="microseconds an image; default: as predicted")
    arguments = parser.parse_args()
    given = {name: value for name, value in vars(arguments).items() if value is not None and name != "write"}
    if arguments.write and given:
        parser.error(f"--write writes the tables of the page: leave out --{next(iter(given))}")
    if min([*given.get("batch", [1]), given.get("cards", 1)]) < 1 or given.get("augmentation", 0) < 0:
        parser.error("--batch and --cards are at least 1, and --augmentation at least 0")
    machine = Machine()
    if "augmentation" in given:
        machine = replace(machine, augmentation=given.pop("augmentation") * 1e-6)
    kernels = predictions(machine.target)
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(), section(machine, kernels)))
        print(f"docs/{PAGE.name}")
    elif not given and machine == Machine():
        print(section(machine, kernels))
    else:
        models, batches = given.pop("model", MODELS[:3]), given.pop("batch", BATCHES)
        print("Predicted, not measured, under these assumptions:", *bullets(machine), sep="\n")
        for model, batch in itertools.product(models, batches):
            print("", *details(Settings(model, batch, **given), machine, kernels), sep="\n")


if __name__ == "__main__":
    main()
