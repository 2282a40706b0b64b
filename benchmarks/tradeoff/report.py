"""The table and the picture of `benchmarks.tradeoff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deit_fast.picture import picture


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    console = Console(soft_wrap=True, highlight=False, width=170)
    title = f"batch {results['batch_size']}, {results['precision']}, {results['threads']} threads, {results['machine']}"
    table = Table(title=f"{title}; top-1 and V100 images/s: paper, Table 5", title_justify="left")
    columns = ["", "pixels", "params", "GMACs", "MB", "images/s", f"x {results['reference']}"]
    for number, column in enumerate([*columns, "V100 images/s (paper)", "top-1 (paper)", "ReaL (paper)", "V2 (paper)"]):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in results["rows"]:
        paper = row["paper"] or {}
        top1 = paper.get("imagenet")
        if row["ours"]:
            top1 = f"{row['ours']['top1']:.1f} ours, {row['ours']['data']}"
        from_paper = paper.get("images_per_second"), top1, paper.get("real"), paper.get("v2")
        table.add_row(
            row["label"],
            str(row["size"]),
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['gmacs']:.2f}",
            f"{row['memory_bytes'] / 1e6:,.0f}",
            f"{row['images_per_second']:,.1f}",
            f"{row['ratio']:.2f}",
            *("–" if value is None else str(value) for value in from_paper),
        )
    console.print(table)


def size_of(label: str) -> str:
    """What a label says beside its family: B↑384 of DeiT-B⚗↑384/1000 epochs, 16GF of RegNetY-16GF."""
    return label.removesuffix("/1000 epochs").replace("⚗", "").split("-", 1)[-1]


def draw(results: dict[str, Any], target: Path) -> None:
    """Figure 1: ImageNet top-1 (paper) over images/s, here and on the paper's V100; runs on 1000 classes beside.

    A point bears its size, the legend its family; families alternate the side that the sizes stand on.
    """
    families: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        if row["paper"] or (row["ours"] and row["ours"]["classes"] == 1000):
            families.setdefault(row["family"], []).append(row)
    with picture(target, 1, 2, figsize=(13, 5.5), sharey=True) as (_, (here, there)):
        for number, (family, rows) in enumerate(families.items()):
            accuracy = [row["paper"]["imagenet"] if row["paper"] else row["ours"]["top1"] for row in rows]
            style = {"marker": "o", "color": f"C{number}", "label": family, "linewidth": 1}
            here.plot([row["images_per_second"] for row in rows], accuracy, **style)
            if rows[0]["paper"]:
                there.plot([row["paper"]["images_per_second"] for row in rows], accuracy, **style)
            side = {"xytext": (4, 4)} if number % 2 else {"xytext": (-4, -4), "ha": "right", "va": "top"}
            text = {"textcoords": "offset points", "fontsize": 7, "color": f"C{number}", **side}
            for row, height in zip(rows, accuracy, strict=True):
                label = size_of(row["label"]) if row["paper"] else row["label"]
                here.annotate(label, (row["images_per_second"], height), **text)
        title = f"measured: {results['machine']}, {results['precision']}"
        here.set(title=title, ylabel="ImageNet top-1 (paper), per cent")
        there.set(title="paper: one V100, 16 GB, fp32")
        for axes in (here, there):
            axes.set(xscale="log", xlabel="images/s")
            axes.grid(alpha=0.3, which="both")
            axes.margins(x=0.08)  # room for the sizes
            axes.legend(fontsize="small", loc="lower left")
