"""The tables and the picture of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ...names import HEADS
from ...picture import picture
from ...run.report import table_of
from ...scores import TOP

MODELS = {"model": "", "ema": "moving average"}
ALL_CLASSES = 20  # are shown; of more classes the WORST
WORST = 10
WRITTEN = 40  # classes whose names fit beside a confusion matrix


def label(name: str, one_head: bool) -> str:
    """A line's name: "model/cls" is "class token", or "model" if that has no other head."""
    model, _, head = name.rpartition("/")
    if one_head or not head:
        return model or name
    known = MODELS.get(model, model)
    return f"{known}: {HEADS[head]}" if known else HEADS[head]


def show(result: dict[str, Any], console: Console) -> None:
    """Print a result of `results.scored`."""
    scores, real = result["scores"], result.get("real")
    skipped = f", {len(result['unreadable'])} unreadable left out" if result["unreadable"] else ""
    rate = f"{result['images_per_second']:,.0f} images/s, all models together"
    title = f"{result['name']}: {result['images']:,} images{skipped}, {rate}"
    few = len(result["per_class"]["classes"]) <= TOP  # in which every answer is among the first five
    table = table_of(title, "", "top-1", *([] if few else ["top-5"]), "loss")
    if real:
        n = next(iter(next(iter(real.values())).values()))["n"]
        table.add_column(f"ReaL, {n:,} images", justify="right")
    names = [f"{model}/{head}" for model, heads in scores.items() for head in heads]
    labels = {name: label(name, len(scores[name.rpartition("/")[0]]) == 1) for name in names}
    for name in names:
        model, _, head = name.rpartition("/")
        score = scores[model][head]
        accuracies = [f"{score[key]:.2f}" for key in (["top1"] if few else ["top1", "top5"])]
        row = [labels[name], *accuracies, f"{score['loss']:.4f}"]
        table.add_row(*row, *([f"{real[model][head]['top1']:.2f}"] if real else []))
    console.print(table)
    if not result["images"]:
        return
    _show_disagreement(result["disagreement"], labels, console)
    _show_classes(result, labels, console)


def _show_disagreement(matrix: dict[str, Any], labels: dict[str, str], console: Console) -> None:
    """The paper's lines: labels, teacher, and each model's last weights by head and by mean logits."""
    shown = [number for number, name in enumerate(matrix["names"]) if not name.endswith("/softmax")]
    shown = [number for number in shown if not matrix["names"][number].partition("/")[0].endswith("ema")]
    if len(shown) < 3:
        return
    lines = [labels.get(matrix["names"][number], matrix["names"][number]) for number in shown]
    width = max(map(len, lines))
    console.print("share of images classified differently (paper Table 4)", style="italic")
    console.print(f"    {'':<{width}}  " + "  ".join(f"{column:>5}" for column in range(len(shown))))
    for line, number in enumerate(shown):
        shares = "  ".join(f"{matrix['share'][number][other]:.3f}" for other in shown)
        console.print(f"{line:>3} {lines[line]:<{width}}  {shares}", markup=False)


def _show_classes(result: dict[str, Any], labels: dict[str, str], console: Console) -> None:
    """Top-1 of every class, or of the worst, and the most frequent mistakes."""
    of, per_class = result["confused"]["of"], result["per_class"]
    shown = counted = [number for number, n in enumerate(per_class["n"]) if n]
    title = f"top-1 of every class, {labels[of]}"
    if len(counted) > ALL_CLASSES:
        shown = sorted(counted, key=lambda number: per_class["top1"][of][number])[:WORST]
        title = f"the worst {len(shown)} of {len(counted)} classes, {labels[of]}"
    table = table_of(title, "class", "images", "top-1")
    for number in shown:
        name, n, top1 = per_class["classes"][number], per_class["n"][number], per_class["top1"][of][number]
        table.add_row(name, str(n), f"{top1:.1f}")
    console.print(table)
    if pairs := result["confused"]["pairs"][:5]:
        said = ", ".join(f"{true} taken for {taken} ({n})" for true, taken, n in pairs)
        console.print(f"most frequent mistakes: {said}", markup=False)


def draw(confused: Mapping[tuple[int, int], Sized], classes: Sequence[str], of: str, target: Path) -> None:
    """Draw a confusion matrix (true class down, predicted class across), in per cent of each true class."""
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    for pair, images in confused.items():
        matrix[pair] = len(images)
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    written = len(classes) <= WRITTEN
    side = min(14.0, 4 + 0.28 * len(classes)) if written else 10.0
    with picture(target, figsize=(side + 1, side)) as (figure, axes):
        image = axes.imshow(share, cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
        figure.colorbar(image, ax=axes, label="per cent of the true class", shrink=0.8)
        axes.set(title=of, xlabel="predicted class", ylabel="true class")
        if written:
            axes.set_xticks(range(len(classes)), classes, rotation=90)
            axes.set_yticks(range(len(classes)), classes)
            for row, column in zip(*np.nonzero(matrix), strict=True):
                colour = "black" if share[row, column] > 60 else "white"
                axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=7, color=colour)
