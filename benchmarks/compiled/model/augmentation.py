"""Predict the CUDA augmentation's time an image on a card that is not here: run its machine code, bound it, replay it.

    python -m benchmarks.compiled.model.augmentation               # printed; three minutes
    python -m benchmarks.compiled.model.augmentation --check       # exit 1 when a stage is over its budget by 5 %
    python -m benchmarks.compiled.model.augmentation --update      # the budget and docs/compile-report-augmentation.md

What is counted. csrc/cuda/augment.cu is compiled for sm_90 with setup.py's flags, and the machine code of the three
kernels that a training batch launches is run on the CPU, instruction by instruction (benchmarks/compiled/sass):
photographs of 500 × 375 pixels, DeiT's whole recipe at 224 with plans drawn as in training (RandAugment m9, erasing,
mixing), as patches in bfloat16; the trainer writes float32, twice the bytes of the last stage, which is not counted.
Every image is compared with the CPU ops, byte for byte: what is counted is what the code does, with its loops, its
branches, and both sides of them where a warp's lanes part. Banks and sectors of memory accesses are counted too, from
the first images.

What is predicted.
1. Bounds: clocks of each pipe (pipes.py has the rates), spread evenly over all multiprocessors. Float64 is a pipe; the
   data stage of shared memory and L1 is busy for every conflict of banks and every further line of 128 bytes.
2. Blocks: they are given to the multiprocessors in order, each to the next that has room. An image with two rotations
   takes several times the mean, and the batch waits for it.
3. A replay (replay.py) of all blocks of some multiprocessors, sub-partition by sub-partition: how many times as long as
   the blocks' bound the slowest of the four takes, for latency, barriers and stalls.
4. The DRAM, if each byte that a stage needs moves once.
A stage's predicted time is that of its blocks (2) times the replay's ratio (3), or the DRAM's (4) if that is longer,
times 1.15 as in predict.py.

Blind spots. Nothing here was measured. The sub-partitions of a block are replayed one by one, as if none waited at a
barrier for another, without conflicts of banks, and L2 with the DRAM's bandwidth; no block of a cluster waits for the
others; a block that is alone on a multiprocessor has its pipes to itself and is as busy as two. Scratch memory of the
ops is taken to stay in L2. The instruction cache, throttling and the launches themselves are left out, and so is the
overlap of one kernel's end with the next one's beginning.
"""

from __future__ import annotations

import argparse
import json

from benchmarks.compiled.model.blocks import Counted, Stage, predict
from benchmarks.compiled.model.recipe import BATCH, CARD, ROOT, count
from benchmarks.compiled.report import as_lines

BUDGET = ROOT / "csrc" / "cuda" / "predicted.json"
PAGE = ROOT / "docs" / "compile-report-augmentation.md"
ALLOWED = 1.05
IMAGES = 64  # that are run; the batch repeats them
FEW = 8  # images that a test counts
REMAINS = [
    "0.8 µs an image was the aim. What it took, and what is left:",
    "",
    "- The resize: sums of weighted pixels are products of matrices of bytes by the tensor cores, exact in int32:",
    "  three for the three bytes of a weight. About a quarter of its instructions puts the three together and",
    "  rounds; about a sixth is each of an image's eight blocks weighing its own taps. Blocks of twice as many",
    "  lines would weigh less often, but lie less evenly on the multiprocessors, which costs as much. An image",
    "  that shrinks by more than about 2.5 is summed tap by tap as before, which is not predicted.",
    "- The ops: those that turn and shear are dot products of four taps, those on levels change four at once, and",
    "  the images with the heaviest ops begin first. A rotation reads from many lines of memory, which binds it.",
    "- The last stage: its noise is float32 now, levels become values without a table, and two images that mix",
    "  each other are made together. A seventh of its instructions is each warp finding out what it is to do.",
    "- What a block loads that was stored or loaded shortly before is taken to lie in L2, 280 clocks away. If every",
    "  load took the DRAM's 650, 0.83 µs would be predicted.",
]
STAGES = {
    "resize": "crop, resize, flip", "plan_ops": "RandAugment's ops", "finish": "normalise, erase, mix, round, patches",
}  # fmt: skip


def numbers(counted: Counted, stage: Stage) -> dict[str, object]:
    """A stage for the budget."""
    return {
        "instructions": round(stage.instructions),
        "predicted_us": round(stage.predicted, 3),
        "bound_us": round(max(stage.bounds.values()), 3),
        "blocks_us": round(stage.blocks, 3),
        "replayed": round(stage.replayed, 2),
        "dram_us": round(stage.dram, 3),
        "binding": stage.binding,
        "pipes_us": {pipe: round(bound, 3) for pipe, bound in stage.bounds.items() if bound >= 0.0005},
        "resident": counted.resident,
    }


def over(found: dict[str, dict], allowed: dict[str, dict]) -> list[str]:
    """What is more than 5 % over its budget."""
    return [
        f"{stage}: {key} {numbers[key]}, budget {allowed[stage][key]}"
        for stage, numbers in found.items()
        for key in ("instructions", "predicted_us")
        if key in allowed[stage] and numbers[key] > ALLOWED * allowed[stage][key]
    ]


def total(stages: dict[str, dict]) -> float:
    """Predicted µs an image of all stages."""
    return sum(stage["predicted_us"] for stage in stages.values())


def page(budget: dict) -> str:
    """The Markdown page of the budget."""
    stages = budget["stages"]
    pipes = sorted({pipe for stage in stages.values() for pipe in stage["pipes_us"]})
    head = ["stage", "warp instructions an image", "predicted µs an image", "what binds", "bound", "in whole blocks",
            "replay ×", "DRAM", "blocks an SM"]  # fmt: skip
    lines = [
        "# What the CUDA augmentation costs, predicted", "",
        f"No card has run it: every time here is **predicted**, for one {CARD.name} ({CARD.multiprocessors} "
        f"multiprocessors, {CARD.ghz} GHz), a batch of {budget['batch']} photographs of 500 × 375 pixels, DeiT's "
        "whole recipe at 224 (random resized crop, flip, RandAugment m9, erasing, mixing), as patches in bfloat16; the "
        "trainer writes float32, twice the bytes of the last stage, which is not counted. "
        "`python -m benchmarks.compiled.model.augmentation --update` writes this page; its "
        "[text](../benchmarks/compiled/model/augmentation.py) says how, and what the prediction does not see. The "
        f"machine code is that of CUDA {budget['toolkit']}; it was run on {budget['images']} images, which the batch "
        "repeats.", "",
        f"**{total(stages):.2f} µs an image are predicted, {1 / total(stages):.2f} million images a second**, in three "
        "launches a batch.", "",
        "| " + " | ".join(head) + " |", "|" + "---|" * len(head),
    ]  # fmt: skip
    for name, what in STAGES.items():
        stage = stages[name]
        cells = [what, f"{stage['instructions']:,}", f"{stage['predicted_us']:.2f}", stage["binding"],
                 *(f"{stage[key]:.3f}" for key in ("bound_us", "blocks_us")), f"{stage['replayed']:.2f}",
                 f"{stage['dram_us']:.3f}", str(stage["resident"])]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "", "Instructions were counted by running the machine code on the CPU, where it stored the CPU ops' bytes. "
        "Bounds, blocks and DRAM are µs an image; predicted is the longer of blocks × replay and DRAM, times 1.15.", "",
        "The time of each pipe, µs an image, were it alone:", "",
        "| stage | " + " | ".join(pipes) + " |", "|" + "---|" * (1 + len(pipes)),
    ]  # fmt: skip
    for name, what in STAGES.items():
        cells = [f"{stages[name]['pipes_us'].get(pipe, 0):.3f}" for pipe in pipes]
        lines.append("| " + " | ".join([what, *cells]) + " |")
    return "\n".join([*lines, "", *REMAINS]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled.model.augmentation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="exit 1 when a stage is 5 %% over its budget")
    parser.add_argument("--update", action="store_true", help="write the budget and the page")
    arguments = parser.parse_args()
    counted, toolkit = count(IMAGES)
    report(counted, toolkit, update=arguments.update, check=arguments.check)


def report(counted: dict[str, Counted], toolkit: str, *, update: bool, check: bool) -> None:
    stages = {name: numbers(kernel, predict(kernel, CARD)) for name, kernel in counted.items()}
    for name, stage in stages.items():
        instructions, predicted = stage["instructions"], stage["predicted_us"]
        print(f"{name:<9} {instructions:>8} instructions  predicted {predicted:.3f} us  {stage['binding']}")
    print(f"predicted {total(stages):.3f} us an image in all")
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    if update:
        few = {name: {"instructions": round(kernel.first(FEW))} for name, kernel in counted.items()}
        budget = {"toolkit": toolkit, "images": IMAGES, "batch": BATCH, "stages": stages, "few": few}
        BUDGET.write_text(as_lines(budget) + "\n")
        PAGE.write_text(page(budget))
    if check:
        found = over(stages, budget["stages"])
        print("\n".join(found) or "within the budget")
        raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
