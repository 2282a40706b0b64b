"""The paper's tables from the scores of repeated trainings: means, paired differences, a sentence, a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from ...picture import picture
from ...run.report import table_of
from .trials import compare


class Row(NamedTuple):
    """One line of a table of the paper: a training and the head that is evaluated; the paper's top-1 in per cent."""

    label: str
    training: str
    head: str  # of `Scores`; "softmax" sums the softmaxes of both heads, as the paper does
    paper: dict[str, float]


TABLES = {
    "table3": {
        "none": Row("no distillation", "none", "cls", {"Ti": 72.2, "S": 79.8, "B": 81.8}),
        "soft": Row("soft, class token only", "soft", "cls", {"Ti": 72.2, "S": 79.8, "B": 81.8}),
        "hard": Row("hard, class token only", "hard", "cls", {"Ti": 74.3, "S": 80.9, "B": 83.0}),
        "class": Row("distilled: class token", "token", "cls", {"Ti": 73.9, "S": 80.9, "B": 83.0}),
        "distillation": Row("distilled: distillation token", "token", "dist", {"Ti": 74.6, "S": 81.1, "B": 83.1}),
        "both": Row("distilled: both", "token", "softmax", {"Ti": 74.5, "S": 81.2, "B": 83.4}),
    },
    # The paper's pair of equal accuracy: RegNetY-8GF (81.7) and DeiT-B (81.8), student DeiT-B.
    "table2": {
        "convnet": Row("taught by a ConvNet", "token", "softmax", {"teacher": 81.7, "B": 82.7}),
        "transformer": Row("taught by a transformer", "transformer", "softmax", {"teacher": 81.8, "B": 81.9}),
    },
    # Two of the trainings with a part of the epochs, by --shorter, which the paper does not list.
    "shorter": {
        "none-shorter": Row("shorter: no distillation", "none-shorter", "cls", {}),
        "both-shorter": Row("shorter: distilled, both", "token-shorter", "softmax", {}),
    },
}
# (better, worse, words) of what the paper finds for all three sizes (Table 3) and for DeiT-B (Table 2).
CLAIMS = (
    ("both", "none", "the distillation token, with both heads, beats no distillation"),
    ("both-shorter", "none-shorter", "the same holds for the shorter training"),
    ("hard", "none", "hard distillation of the class token beats no distillation"),
    ("hard", "soft", "hard distillation beats soft"),
    ("distillation", "class", "the distillation token beats the class token of the same network"),
    ("both", "hard", "the distillation token, with both heads, beats hard distillation without it"),
    ("convnet", "transformer", "a ConvNet teaches better than a transformer"),
)


def results(measured: Mapping[str, Mapping[int, Mapping[str, Any]]], teachers: Mapping[str, Any]) -> dict[str, Any]:
    """The tables and the verdict on every claim, from the scores of each training by seed: {training: {seed: scores}}.

    {"teachers": {name: scores}, "table3": {key: row}, "table2": {key: row}, "shorter": {key: row}, "claims": [claim]}.
    A row has its seeds and the top-1 of each, their mean and standard deviation (n − 1), and the paper's; a claim has
    the mean of the differences of equal seeds, their number, its 95 % interval, and "holds", "reversed" or, if that
    contains 0, "undecided". A training that was not measured has no row, and claims of it are left out.
    """
    tables = {
        name: {key: _row(row, measured[row.training]) for key, row in table.items() if measured.get(row.training)}
        for name, table in TABLES.items()
    }
    top1 = {
        key: dict(zip(row["seeds"], row["top1"], strict=True)) for rows in tables.values() for key, row in rows.items()
    }
    claims = []
    for better, worse, text in CLAIMS:
        if common := sorted(top1.get(better, {}).keys() & top1.get(worse, {}).keys()):
            compared = compare([top1[better][seed] for seed in common], [top1[worse][seed] for seed in common])
            claims.append({"claim": text, "better": better, "worse": worse, "pairs": len(common), **compared})
    return {"teachers": dict(teachers), **tables, "claims": claims}


def _row(row: Row, measured: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    seeds = sorted(measured)
    top1 = [measured[seed][row.head]["top1"] for seed in seeds]
    mean, std = statistics.mean(top1), statistics.stdev(top1) if len(top1) > 1 else None
    return {
        "row": row.label, "head": row.head, "seeds": seeds, "top1": top1, "mean": mean, "std": std, "paper": row.paper
    }  # fmt: skip


def sentence(results: Mapping[str, Any]) -> str:
    """Whether the paper's order holds here, comparison by comparison, in one sentence."""
    claims = results["claims"]
    parts = []
    for verdict, words in (("holds", "holds in"), ("reversed", "is reversed in"), ("undecided", "is undecided in")):
        listed = [_in_words(claim) for claim in claims if claim["verdict"] == verdict]
        parts.append(f"{words} {len(listed)}" + (f" ({'; '.join(listed)})" if listed else ""))
    return (
        f"On {results['data']}, epochs: {results['epochs']}, seeds: {results['seeds']}, "
        f"the paper's order {parts[0]}, {parts[1]} and {parts[2]} of {len(claims)} comparisons."
    )


def _in_words(claim: Mapping[str, Any]) -> str:
    margin = "" if claim["half_interval"] is None else f" ± {claim['half_interval']:.1f}"
    return f"{claim['claim']}: {claim['difference']:+.1f}{margin} points"


def show(results: Mapping[str, Any], folder: Path) -> None:
    """Print the two tables, the sentence, and the paths of the files."""
    console = Console(soft_wrap=True, highlight=False)
    title = f"top-1 on {results['data']}, per cent, mean ± standard deviation of {results['seeds']} seeds"
    table = table_of(title, "Table 3", "here", "paper: Ti", "S", "B")
    for row in (*results["table3"].values(), *results["shorter"].values()):
        table.add_row(row["row"], _mean(row), *(_paper(row, size) for size in ("Ti", "S", "B")))
    console.print(table)
    table = table_of("", "Table 2", "teacher", "student", "paper: teacher", "student B")
    for key, row in results["table2"].items():
        teacher = results["teachers"][key]["top1"]
        paper = row["paper"]
        table.add_row(row["row"], f"{teacher:.1f}", _mean(row), f"{paper['teacher']:.1f}", f"{paper['B']:.1f}")
    console.print(table)
    if table4 := results.get("table4"):
        table = table_of("", "Table 4: classified differently, per cent", *table4["names"])
        for name, line in zip(table4["names"], table4["percent"], strict=True):
            table.add_row(name, *(f"{percent:.1f}" for percent in line))
        console.print(table)
    console.print(results["sentence"], markup=False)
    console.print(
        ", ".join(str(path) for path in (folder / "results.json", *sorted(folder.glob("*.png")))), markup=False
    )


def _paper(row: Mapping[str, Any], size: str) -> str:
    return f"{row['paper'][size]:.1f}" if size in row["paper"] else ""


def _mean(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.1f}" + ("" if row["std"] is None else f" ± {row['std']:.1f}")


def draw(results: Mapping[str, Any], target: Path) -> None:
    """Every seed as a point, mean and standard deviation beside it; the paper's numbers in a panel of their own."""
    # Half a line between the tables.
    rows = [(0.5 * gap, row) for gap, table in enumerate(TABLES) for row in results[table].values()]
    places = [number + gap for number, (gap, _) in enumerate(rows)]
    with picture(target, 1, 2, figsize=(12, 5), sharey=True) as (_, (here, there)):
        for place, (_, row) in zip(places, rows, strict=True):
            here.plot(row["top1"], [place] * len(row["top1"]), ".", color="tab:blue", alpha=0.45)
            here.errorbar(row["mean"], place + 0.2, xerr=row["std"] or 0, fmt="o", color="tab:blue", capsize=3)
            for size, marker in (("Ti", "^"), ("S", "s"), ("B", "o")):
                if size in row["paper"]:
                    there.plot(row["paper"][size], place, marker, color="tab:gray", label=size if place == 0 else None)
        for name, score in results["teachers"].items():
            label, style = f"{name} teacher, {score['top1']:.1f} %", "--" if name == "convnet" else ":"
            here.axvline(score["top1"], color="black", linestyle=style, linewidth=1, label=label)
        here.set_yticks(places, [row["row"] for _, row in rows])
        here.invert_yaxis()
        times = f" (shorter: ÷ {results['divisor']})" if results["shorter"] else ""
        title = f"{results['data']}, {results['epochs']} epochs{times}, {results['seeds']} seeds"
        here.set(title=title, xlabel="top-1, per cent")
        here.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize="small", frameon=False)
        there.set(title="paper, ImageNet, 300 epochs", xlabel="top-1, per cent")
        there.legend(title="DeiT", loc="best", fontsize="small")
        for axes in (here, there):
            axes.grid(alpha=0.3)
