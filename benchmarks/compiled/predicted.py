"""Times that a model of the machine predicted at commit 05b9893, as predicted.json holds them; good to ±25 %.

    kernels = predictions("sm_90")
    attention_us(kernels, "forward", tokens=198, features=64, pairs=1536)     # microseconds, or None
    augmentation_us()                                                         # an image

`predicted_us` of a kernel is its time for 256 images of 6 heads, already corrected by the model's own calibration. It
is proportional to the pairs of (image, head) where they fill the card, and not stated elsewhere. The model replayed the
machine code of Triton 3.8.0 and CUDA 13.0; its code is in git only. Kernels that change later keep these numbers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

FROZEN = Path(__file__).with_name("predicted.json")
PAIRS = 256 * 6
FEWEST_PAIRS = PAIRS // 2  # below it the last wave of programs leaves much of a card idle
DELTA_TOKENS = 198
LOSS_ROWS = 256

Kernels = dict[str, dict]


def predictions(target: str) -> Kernels:
    """The kernels of a target, "sm_90"; {} of one that was not predicted."""
    return json.loads(FROZEN.read_text())["kernels"].get(target, {})


def attention_us(kernels: Kernels, direction: str, tokens: int, features: int, pairs: int) -> float | None:
    """Predicted microseconds of one call; None where none is predicted, or the pairs do not fill a card.

    Args:
        direction: "forward", "backward", or "both" for their sum.
        pairs: images times heads.
    """
    if direction == "both":
        both = [attention_us(kernels, each, tokens, features, pairs) for each in ("forward", "backward")]
        return None if None in both else sum(filter(None, both))
    if pairs < FEWEST_PAIRS:
        return None
    passes = re.compile(rf"attention_{direction}_(\w+) n{tokens} d{features}")
    forms = {match[1]: kernels[name] for name in kernels if (match := passes.fullmatch(name))}
    if len(forms) != 1:  # a pass in two forms: which of them runs is not known
        return None
    ((form, numbers),) = forms.items()
    times = [numbers.get("predicted_us")]
    if direction == "backward" and form == "tiled":
        delta = kernels.get(f"attention_delta d{features}", {}).get("predicted_us")
        times.append(None if delta is None else delta * tokens / DELTA_TOKENS)
    return None if None in times else sum(filter(None, times)) * pairs / PAIRS


def augmentation_us() -> float:
    """Predicted microseconds an image of all stages on an H100."""
    return sum(stage["predicted_us"] for stage in json.loads(FROZEN.read_text())["augmentation"].values())


def row_us(kernels: Kernels, name: str) -> float | None:
    """Predicted microseconds of a row of bench_attention or bench_loss by its name; None where there is none.

    The loss is predicted at 256 rows. Its forward is the forward and the mean kernel, and "both" all three.
    """
    if row := re.fullmatch(r"attention\[B(\d+)-N(\d+)-H(\d+)-b?float16-(\w+)\]", name):
        images, tokens, heads, direction = int(row[1]), int(row[2]), int(row[3]), row[4]
        return attention_us(kernels, direction, tokens, 64, images * heads)
    if row := re.fullmatch(rf"loss\[(hard-mixed|soft-dense)-B{LOSS_ROWS}-C(\d+)-(\w+)\]", name):
        form, classes, direction = row[1].replace("-", " "), row[2], row[3]
        names = [f"loss_{each} {form} c{classes}" for each in ("forward", "backward") if direction in (each, "both")]
        names += ["loss_mean"] * (direction != "backward")
        times = [kernels.get(each, {}).get("predicted_us") for each in names]
        return None if None in times else sum(filter(None, times))
    return None
