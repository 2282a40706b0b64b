"""Draws a plan in NumPy, with the bits of `csrc/arithmetic/sample.h` and `sample_ops.h`."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...philox import Stream, philox, uniform
from ..plan import ROW
from ..policy import CROPS, FILTERS, JITTERED, POLICY, SUB_OPS
from ..rand_augment import LAYERS, OPS, RAND_OPS
from .exact_math import exp, log, normals, sin_cos

TRIES = 10  # of a crop and of an erased box
AFFINE = tuple(OPS.index(name) for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"))


class Draw(IntEnum):
    """The fourth counter word: which numbers of an image's stream a decision uses. Each stage owns a block of 16."""

    CROP = 0  # try t uses CROP + t: area, ratio, top, left
    FLIP = 16  # flip, filter, whether to erase
    OPS = 32  # layer l uses OPS + 2 l: op, whether, two for the magnitude; then: sign or share, filter
    GROUP = 40  # which sub-policy, the order of the colour jitter
    JITTER = 41  # brightness, contrast, saturation
    ERASE = 48  # try t uses ERASE + t: area, ratio, top, left


def words(policy: np.void, keys: NDArray[np.int64], draw: int) -> NDArray[np.uint32]:
    """Four words for each key (B, 5) of epoch, sample, copy, height, width."""
    return philox(int(policy["seed"]), Stream.PLAN, keys[:, 0], keys[:, 1], keys[:, 2], draw)


def one_of(word: NDArray[np.uint32], count: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """An integer in [0, count): the high half of word × count."""
    return ((word.astype(np.uint64) * np.asarray(count).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def random_sides(
    bits: NDArray[np.uint32],
    share: NDArray[np.float64],
    ratio: NDArray[np.float64],
    pixels: NDArray[np.float64] | float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """√(area × ratio) and √(area / ratio), rounded, for an area uniform and a ratio log-uniform in their ranges."""
    unit = uniform(bits)
    area = (share[0] + (share[1] - share[0]) * unit[:, 0]) * pixels
    low, high = log(ratio)
    aspect = exp(low + (high - low) * unit[:, 1])
    return np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))


def random_boxes(policy: np.void, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Crops (B, 4) as top, left, height, width."""
    height, width, ratio = keys[:, 3], keys[:, 4], policy["ratio"]

    # The fallback of ten rejected tries: the largest central box whose ratio is allowed.
    shape = width / height
    box_height = np.where(shape < ratio[0], np.maximum(np.rint(width / ratio[0]), 1), height).astype(np.int64)
    box_width = np.where(shape > ratio[1], np.maximum(np.rint(height * ratio[1]), 1), width).astype(np.int64)
    boxes = np.stack([(height - box_height) // 2, (width - box_width) // 2, box_height, box_width], axis=1)

    pending = np.arange(len(keys))
    for attempt in range(TRIES):
        high, wide = keys[pending, 3], keys[pending, 4]
        bits = words(policy, keys[pending], Draw.CROP + attempt)
        sides = random_sides(bits, policy["scale"], ratio, wide * high)
        box_width, box_height = (side.astype(np.int64) for side in sides)
        fits = (1 <= box_width) & (box_width <= wide) & (1 <= box_height) & (box_height <= high)
        top = one_of(bits[:, 2], np.where(fits, high - box_height + 1, 1))
        left = one_of(bits[:, 3], np.where(fits, wide - box_width + 1, 1))
        boxes[pending[fits]] = np.stack([top, left, box_height, box_width], axis=1)[fits]
        pending = pending[~fits]
    return boxes


def set_crops(policy: np.void, keys: NDArray[np.int64], rows: NDArray[np.void]) -> None:
    """Fill in box, resized, window and pad."""
    crop, size = CROPS[policy["crop"]], int(policy["size"])
    if crop == "random_resized":
        rows["box"] = random_boxes(policy, keys)
        rows["resized"] = size
        return
    side = int(size / policy["crop_ratio"]) if crop == "center" else size
    sides = keys[:, 3:]
    rows["box"][:, 2:] = sides
    resized = (side * sides / sides.min(axis=1, initial=2**62)[:, None]).astype(np.int64)
    rows["resized"] = resized
    if crop == "center":
        rows["window"] = np.rint((resized - size) / 2.0)
    else:
        pad = int(policy["pad"])
        bits = words(policy, keys, Draw.CROP)
        rows["pad"] = pad
        rows["window"] = one_of(bits[:, 2:], resized + 2 * pad - size + 1) - pad


def drawn_filter(policy: np.void, word: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Index into FILTERS: the policy's, or for each word a coin."""
    kind = int(policy["interpolation"])
    return one_of(word, 2) if kind == len(FILTERS) else np.full(len(word), kind)


def magnitudes(policy: np.void, bits: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Levels in [0, magnitude_max]."""
    level = np.full(len(bits), policy["magnitude"])
    if np.isinf(policy["magnitude_std"]):
        level = policy["magnitude"] * uniform(bits[:, 2])
    elif policy["magnitude_std"] > 0:
        level = policy["magnitude"] + policy["magnitude_std"] * normals(bits[:, 2], bits[:, 3])[0]
    return np.maximum(0.0, np.minimum(level, policy["magnitude_max"]))


def arguments(
    op: NDArray[np.int64], level: NDArray[np.float64], negative: NDArray[np.bool_], increasing: bool, size: int
) -> NDArray[np.float64]:
    """A level of 0 to 10, or to the policy's maximum, as the op's argument."""
    share = level / 10.0
    sign = np.where(negative, -1.0, 1.0)
    whole = [np.trunc(share * scale) for scale in (4, 256, 110)]
    bits, threshold, addend = whole[0], np.minimum(whole[1], 256), np.minimum(whole[2], 128)
    enhance = np.maximum(0.1, 1.0 + sign * (share * 0.9)) if increasing else share * 1.8 + 0.1
    by_name = {
        "rotate": sign * (share * 30.0),
        "posterize": np.clip(4 - bits if increasing else bits, 0, 8),
        "solarize": 256 - threshold if increasing else threshold,
        "solarize_add": addend,
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), enhance),
        **dict.fromkeys(("shear_x", "shear_y"), sign * (share * 0.3)),
        **dict.fromkeys(("translate_x", "translate_y"), sign * (share * 0.45) * size),
    }
    arg = np.zeros(len(op))
    for name, values in by_name.items():
        arg = np.where(op == OPS.index(name), values, arg)
    return arg


def matrices(op: NDArray[np.int64], arg: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Maps (B, 6) from output to source coordinates, as timm's shear and translate and Pillow's rotate build them."""
    matrix = np.tile([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], (len(op), 1))
    for name, place in (("shear_x", 1), ("shear_y", 3), ("translate_x", 2), ("translate_y", 5)):
        moved = op == OPS.index(name)
        matrix[moved, place] = arg[moved]
    turned = op == OPS.index("rotate")
    degrees = np.where(arg < 0.0, arg + 360.0, arg)[turned]
    sine, cosine = (np.rint(value * 1e15) / 1e15 for value in sin_cos(-(degrees * (3.141592653589793 / 180.0))))
    x, y = width / 2.0, height / 2.0
    matrix[turned] = np.stack(
        [
            *(cosine, sine, cosine * -x + sine * -y + 0.0 + x),
            *(-sine, cosine, -sine * -x + cosine * -y + 0.0 + y),
        ],
        axis=1,
    )
    return matrix


def weighted_ops(weight: NDArray[np.float64], unit: NDArray[np.float64]) -> NDArray[np.int64]:
    """The op that each `unit` in [0, 1) falls on, for weights (B, ops)."""
    end = np.cumsum(weight, axis=1)
    start = np.concatenate([np.zeros((len(weight), 1)), end[:, :-1]], axis=1)
    reached = (weight > 0) & (start <= (unit * end[:, -1])[:, None])
    positive = weight > 0
    reached[np.arange(len(weight)), positive.argmax(axis=1)] = True
    return weight.shape[1] - 1 - reached[:, ::-1].argmax(axis=1)


def set_calls(
    policy: np.void, call: NDArray[np.void], used: NDArray[np.bool_], op: NDArray[np.int64], arg: NDArray[np.float64],
    filter_words: NDArray[np.uint32],
) -> None:  # fmt: skip
    """Fill in one layer's op and argument in the rows that use it."""
    size = int(policy["size"])
    call["op"], call["arg"] = np.where(used, op, 0), np.where(used, arg, 0.0)
    moved = used & np.isin(op, AFFINE)
    call["filter"][moved] = drawn_filter(policy, filter_words)[moved]
    call["fast"][moved] = policy["fast"]
    call["fill"][moved] = policy["fill"][:3]
    call["matrix"][moved] = matrices(op, arg, size, size)[moved]


def set_rand_augment(policy: np.void, keys: NDArray[np.int64], calls: NDArray[np.void]) -> None:
    """Fill in the ops that RandAugment draws."""
    size, weight = int(policy["size"]), np.tile(policy["weight"], (len(keys), 1))
    weighted = bool((policy["weight"] > 0).any())
    for layer in range(policy["layers"]):
        bits = words(policy, keys, Draw.OPS + 2 * layer)
        op = weighted_ops(weight, uniform(bits[:, 0])) if weighted else 1 + one_of(bits[:, 0], len(RAND_OPS) - 1)
        weight[np.arange(len(op)), op] = 0.0  # timm draws weighted ops without, others with replacement
        more = words(policy, keys, Draw.OPS + 2 * layer + 1)
        negative = uniform(more[:, 0]) < 0.5
        arg = arguments(op, magnitudes(policy, bits), negative, bool(policy["increasing"]), size)
        used = uniform(bits[:, 1]) < policy["op_probability"]
        set_calls(policy, calls[:, layer], used, op, arg, more[:, 1])


def between(bounds: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """`share` of the way between two bounds (…, 2)."""
    return bounds[..., 0] + (bounds[..., 1] - bounds[..., 0]) * share


def set_sub_policy(policy: np.void, keys: NDArray[np.int64], calls: NDArray[np.void]) -> None:
    """Fill in the ops of each row's sub-policy."""
    group = words(policy, keys, Draw.GROUP)
    chosen = policy["sub_policy"][one_of(group[:, 0], int(policy["sub_policies"]))]
    for layer in range(SUB_OPS):
        drawn, bits, more = chosen[:, layer], *(words(policy, keys, Draw.OPS + 2 * layer + i) for i in range(2))
        share, bounds = uniform(more[:, 0]), drawn["range"]
        arg = np.where(drawn["uniform"], between(bounds, share), np.where(share < 0.5, bounds[:, 0], bounds[:, 1]))
        used = uniform(bits[:, 1]) < drawn["probability"]
        set_calls(policy, calls[:, layer], used, drawn["op"].astype(np.int64), arg, more[:, 1])


def set_jitter(policy: np.void, keys: NDArray[np.int64], calls: NDArray[np.void]) -> None:
    """Fill in brightness, contrast and saturation, a row's last three ops, in any of their six orders."""
    order = one_of(words(policy, keys, Draw.GROUP)[:, 1], 6)
    first, second = order // 2, (order // 2 + 1 + order % 2) % 3
    places = np.stack([first, second, 3 - first - second])
    factors = between(policy["color_jitter"], uniform(words(policy, keys, Draw.JITTER)[:, :3]))
    ops, everywhere = np.array([OPS.index(name) for name in JITTERED]), np.ones(len(keys), bool)
    for layer, place in enumerate(places, LAYERS - len(JITTERED)):
        arg = factors[np.arange(len(keys)), place]
        set_calls(policy, calls[:, layer], everywhere, ops[place], arg, np.zeros(len(keys), np.uint32))


def set_ops(policy: np.void, keys: NDArray[np.int64], calls: NDArray[np.void]) -> None:
    """Fill in the ops (B, LAYERS) with their arguments."""
    if policy["sub_policies"]:
        set_sub_policy(policy, keys, calls)
    else:
        set_rand_augment(policy, keys, calls)
    if policy["color_jitter"][0] != policy["color_jitter"][1]:
        set_jitter(policy, keys, calls)


def set_erased(policy: np.void, keys: NDArray[np.int64], rows: NDArray[np.void], chosen: NDArray[np.bool_]) -> None:
    """Fill in the erased boxes: ten tries for one that is smaller than the image in both directions."""
    size, pending = int(policy["size"]), np.flatnonzero(chosen)
    for attempt in range(TRIES):
        bits = words(policy, keys[pending], Draw.ERASE + attempt)
        sides = random_sides(bits, policy["erase_area"], policy["erase_ratio"], float(size) * size)
        height, width = (np.minimum(side, size).astype(np.int64) for side in sides)
        fits = (height < size) & (width < size)
        top, left = one_of(bits[:, 2], size - height + 1), one_of(bits[:, 3], size - width + 1)
        rows["erased"][pending[fits]] = np.stack([top, left, height, width], axis=1)[fits]
        rows["erase"][pending[fits]] = policy["erase"]
        pending = pending[~fits]


def sample_rows(keys: Tensor, numbers: Tensor) -> Tensor:
    """Plan rows uint8 (B, ROW.itemsize), not placed, for int64 keys (B, 5) and a `POLICY`; see `sample_plan`."""
    key, policy = keys.numpy(), numbers.numpy().view(POLICY)[0]
    rows = np.zeros(len(key), ROW)
    rows["offset"], rows["seed"] = -1, policy["seed"]
    for name, column in zip(("epoch", "sample", "copy", "height", "width"), key.T, strict=True):
        rows[name] = column
    set_crops(policy, key, rows)
    bits = words(policy, key, Draw.FLIP)
    rows["flip"] = uniform(bits[:, 0]) < policy["flip"]
    rows["filter"] = drawn_filter(policy, bits[:, 1])
    set_ops(policy, key, rows["ops"])
    if policy["erase"]:
        set_erased(policy, key, rows, uniform(bits[:, 2]) < policy["erase_probability"])
    return torch.from_numpy(rows.view(np.uint8).reshape(len(key), ROW.itemsize))
