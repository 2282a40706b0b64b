"""One look at the images of a split: every model's answer, the teacher's too, and a small grey copy of each image.

    seen = look(dataset, trained, models, device, threads)
    seen.answer["model/fused"], seen.probability["model/fused"], seen.given["teacher/cls"]

An image is decoded once. The models see the pixels of the run's evaluation; the grey copy is the whole image, squeezed
to SIDE x SIDE by the augmentation's own antialiased resize, and what near duplicates are found by (`duplicates.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deit_kernels.augment import ImageBatch, resized_crop
from deit_kernels.augment.plan import ratio_limit

from ...data.decode import BadImage
from ...data.sources.dataset import Dataset, ahead, read_image
from ...scores import head_logits
from ...weights.prediction import Trained

SIDE = 32  # of the grey copies, pixels
_GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
_MOST_BYTES = 2**28  # of the decoded images of one batch


@dataclass
class Seen:
    """N readable images; names are "model/head", as in `Predictions`.

    Attributes:
        sample: (N,) indices into the data set, ascending.
        label: (N,)
        answer: (N,) by name, the likeliest class.
        probability: (N,) by name, that of the answer.
        given: (N,) by name, the probability of the label.
        grey: uint8 (N, SIDE, SIDE), the whole image.
        bad: what is wrong with the others, by path.
    """

    sample: NDArray[np.int64]
    label: NDArray[np.int64]
    answer: dict[str, NDArray[np.int64]]
    probability: dict[str, NDArray[np.float32]]
    given: dict[str, NDArray[np.float32]]
    grey: NDArray[np.uint8]
    bad: dict[str, str]

    def __len__(self) -> int:
        return len(self.sample)


@torch.no_grad()
def look(
    dataset: Dataset,
    samples: NDArray[np.int64],
    trained: Trained,
    models: Mapping[str, nn.Module],
    device: torch.device,
    threads: int,
    batch_size: int = 64,
    enough: Callable[[], bool] = lambda: False,
) -> Seen:
    """Look at `samples`, indices into the data set in any order, until `enough` says so.

    `models`, in evaluation mode, see what `trained.prepare` makes of an image, on `device`.
    """
    columns: dict[str, list[NDArray]] = {}
    bad: dict[str, str] = {}
    for chunk in _batches(_decoded(dataset, samples, trained, threads), batch_size):
        good = [(sample, pixels) for sample, pixels in chunk if not isinstance(pixels, BadImage)]
        bad |= {dataset.path(sample): str(reason) for sample, reason in chunk if isinstance(reason, BadImage)}
        if not good:
            continue
        sample = np.array([sample for sample, _ in good])
        images = [pixels for _, pixels in good]
        labels = torch.from_numpy(dataset.labels[sample])
        found = {"sample": sample, "label": labels.numpy(), "grey": grey_copies(images)}
        prepared = trained.prepare(images).to(device) if models else torch.empty(0)
        for name, model in models.items():
            for head, logits in head_logits(model, prepared).items():
                chances = logits.float().softmax(1)
                top, answer = (part.cpu().numpy() for part in chances.max(1))
                own = chances.gather(1, labels.to(device)[:, None])[:, 0]
                found |= {f"answer {name}/{head}": answer, f"probability {name}/{head}": top}
                found[f"given {name}/{head}"] = own.cpu().numpy()
        for key, part in found.items():
            columns.setdefault(key, []).append(part)
        if enough():
            break
    whole = {key: np.concatenate(parts) for key, parts in columns.items()}
    if whole:
        order = np.argsort(whole["sample"])
        whole = {key: column[order] for key, column in whole.items()}

    def of(kind: str) -> dict[str, NDArray]:
        return {key.partition(" ")[2]: column for key, column in whole.items() if key.startswith(f"{kind} ")}

    none = np.zeros(0, np.int64)
    return Seen(
        whole.get("sample", none), whole.get("label", none), of("answer"), of("probability"), of("given"),
        whole.get("grey", np.zeros((0, SIDE, SIDE), np.uint8)), bad,
    )  # fmt: skip


def grey_copies(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Whole images, uint8 (H, W, 3) of any sizes, as grey uint8 (N, SIDE, SIDE)."""
    batch = ImageBatch.from_images(images)
    box = torch.stack([torch.zeros_like(batch.height), torch.zeros_like(batch.width), batch.height, batch.width], 1)
    small = resized_crop(batch, box, SIDE, "bilinear")
    return (small.float() @ _GREY).round().to(torch.uint8).numpy()


def pixels_of(dataset: Dataset, samples: Iterable[int], trained: Trained) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index, decoded image) of those that can be read."""
    for sample in samples:
        part = _read(dataset, trained, sample)
        if not isinstance(part, BadImage):
            yield sample, part


def _read(dataset: Dataset, trained: Trained, sample: int) -> NDArray[np.uint8] | BadImage:
    read = read_image(
        dataset, sample, exif_orientation=trained.preprocessing.exif_orientation,
        ratio_limit=ratio_limit(trained.policy),
    )  # fmt: skip
    return read.part if isinstance(read.part, BadImage) else read.part.pixels


def _decoded(
    dataset: Dataset, samples: NDArray[np.int64], trained: Trained, threads: int
) -> Iterator[tuple[int, NDArray[np.uint8] | BadImage]]:
    with ThreadPoolExecutor(threads, "deit_fast-report") as pool:
        indices = samples.tolist()
        yield from zip(indices, ahead(pool, partial(_read, dataset, trained), indices, 4 * threads), strict=True)


def _batches(
    images: Iterator[tuple[int, NDArray[np.uint8] | BadImage]], batch_size: int
) -> Iterator[list[tuple[int, NDArray[np.uint8] | BadImage]]]:
    """Up to `batch_size` images at a time, fewer where they are huge."""
    images = iter(images)
    while first := list(islice(images, 1)):
        chunk, size = first, 0
        while len(chunk) < batch_size and size < _MOST_BYTES and (more := list(islice(images, 1))):
            chunk += more
            size += getattr(more[0][1], "size", 0)
        yield chunk
