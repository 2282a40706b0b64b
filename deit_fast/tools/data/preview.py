"""A picture of what the model sees: originals, and beside each its augmented copies with the names of the operations.

    deit-fast data preview --data /imagenet --recipe deit

The copies have exactly the pixels of a training with this recipe's `data_seed`, epoch and repeats, before mixing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deit_kernels.augment import OPS, ImageBatch, Policy, apply, sample_plan

from ...data import BadImage, Dataset
from ...picture import picture
from ..pixels import image_of, pixels_of

COLUMN, LINE = 1.9, 2.45  # inches of an image with four lines of text
TEXT_LINE = 0.25


def named_ops(row: np.void) -> str:
    """The operations of a row of a plan, a line each: "crop 43 %, flipped", "rotate -27.3", "erased 12 x 30"."""
    box, resized = row["box"].tolist(), row["resized"].tolist()
    window = min(resized) ** 2 / (resized[0] * resized[1])  # a simple crop keeps a square of a resized image
    share = round(100 * window * box[2] * box[3] / (int(row["height"]) * int(row["width"])))
    lines = [f"crop {share} %" + (", flipped" if row["flip"] else "")]
    for call in row["ops"]:
        if call["op"]:
            name = OPS[call["op"]].replace("_", " ")
            if (name, call["arg"]) == ("color", 0):
                lines.append("greyscale")
            elif OPS[call["op"]] in ("auto_contrast", "equalize", "invert"):
                lines.append(name)
            else:
                lines.append(f"{name} {call['arg']:.3g}")
    if row["erase"]:
        lines.append(f"erased {row['erased'][2]} x {row['erased'][3]}")
    return "\n".join(lines)


def preview(
    dataset: Dataset, policy: Policy, target: Path, *, data_seed: int, epoch: int, images: int, copies: int
) -> None:
    """Draw `images` originals, spread over the data set, with `copies` augmented copies of each, into a PNG.

    BadImage names an image that is unreadable or that the policy's crop refuses.
    """
    if not 1 <= images <= len(dataset):
        raise ValueError(f"--images lies between 1 and {len(dataset)}, the images of the data set, got {images}")
    if not 1 <= copies <= 64:
        raise ValueError(f"--copies lies between 1 and 64, got {copies}")
    samples = np.linspace(0, len(dataset) - 1, images).astype(np.int64)
    originals = []
    for sample in samples.tolist():
        try:
            originals.append(image_of(dataset, sample, policy))
        except BadImage as error:
            advice = "repair or remove it (deit-fast data check lists all)"
            raise BadImage(f"{dataset.path(sample)}: {error}: {advice}") from error
    batch = ImageBatch.from_images(originals)
    batch = ImageBatch(batch.data, *(table.repeat_interleave(copies) for table in batch[1:]))
    plan = sample_plan(
        policy, seed=data_seed, epoch=epoch, sample=samples.repeat(copies), copy=np.tile(np.arange(copies), images),
        height=batch.height.numpy(), width=batch.width.numpy(),
    )  # fmt: skip
    augmented = pixels_of(apply(batch, plan), policy)

    texts = [named_ops(row) for row in plan.table]
    more = max(0, max(text.count("\n") for text in texts) - 3)
    size = ((copies + 1) * COLUMN, images * (LINE + more * TEXT_LINE))
    with picture(target, images, copies + 1, figsize=size, squeeze=False) as (_, axes):
        for index, (line, original) in enumerate(zip(axes, originals, strict=True)):
            label = dataset.classes[dataset.labels[samples[index]]]
            line[0].imshow(original)
            line[0].set_title(f"{label}\n{original.shape[1]} x {original.shape[0]}", fontsize=8)
            for copy, panel in enumerate(line[1:]):
                panel.imshow(augmented[index * copies + copy])
                panel.set_title(texts[index * copies + copy], fontsize=7)
        for panel in axes.flat:
            panel.axis("off")
