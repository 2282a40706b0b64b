"""The parts of a training step of a distilled DeiT on an H100: what each moves and computes, and how fast that can be.

    parts = step_parts(Settings("deit_small_distilled_patch16_224", batch=256))
    total(parts)        # Part("sum", bytes, flop, seconds)

A part takes its bytes at the sustained bandwidth, a matrix product that or its operations at the sustained rate,
whichever is longer, and nothing overlaps: the step as `torch.compile` runs it, a kernel after the other. Attention and
augmentation take the times that a model of the machine predicts (predicted.py). Sizes are those of deit_fast.model,
whose last block computes projection and MLP for the prefix tokens alone. All of it is predicted; `Machine` holds the
assumptions, and `python -m benchmarks.compiled.roofline` prints them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import timm
import torch
from torch import Tensor, nn

from benchmarks.compiled.predicted import PAIRS, Kernels, attention_us, augmentation_us, predictions
from deit_fast.model import CONFIGS, VisionTransformer, ViTConfig, create_model

HALF, FULL = 2, 4  # bytes of a bfloat16 and of a float32
MODELS = tuple(name for name in CONFIGS if name.startswith("deit_") and "distilled" in name)
TEACHER, TEACHER_SIZE = "regnety_160", 224
ESTIMATED_AUGMENTATION = 3e-6  # seconds an image


@dataclass(frozen=True)
class Machine:
    """What is assumed of a card."""

    name: str = "H100 SXM"
    target: str = "sm_90"
    product_rate: float = 650e12  # FLOP/s that bf16 matrix products sustain, of the 989e12 of the data sheet
    bandwidth: float = 3.0e12  # bytes/s that kernels sustain, of the 3.35e12 of the data sheet
    gap: float = 1e-6  # seconds between two kernels
    augmentation: float | None = None  # seconds an image, the whole recipe; None: as predicted, else the estimate
    link: float = 360e9  # bytes/s each way that an all-reduce sustains, of NVLink's 450e9
    bucket: int = 25 << 20  # bytes of gradients that DDP sends at once; the last one is not hidden by the backward

    def augmentation_and_source(self) -> tuple[float, str]:
        """Seconds an image, and where that is from."""
        if self.augmentation is not None:
            return self.augmentation, "given"
        predicted = augmentation_us()
        return (ESTIMATED_AUGMENTATION, "an estimate") if predicted is None else (predicted * 1e-6, "predicted")


@dataclass(frozen=True)
class Settings:
    """One step, and what could be changed about it.

    Attributes:
        model: one of `MODELS`.
        batch: images of one card, all at once.
        teacher: "cached" labels, or a "live" RegNetY-16GF.
        cards: that share the step's gradients.
        residual: type of the sums between blocks.
        gelu_in_products: GELU, its backward and fc1's bias gradient in the epilogues of the products around them.
        sums_in_norms: gradients of LN's weights and of proj's and fc2's biases by the kernels of LN's backward.
        qkv_bias_in_attention: gradient of qkv's bias by attention's backward.
        update_in_one: AdamW and moving average in one kernel.
        graph: forward and backward as a CUDA graph, without gaps between kernels.
        fp8: products of 8-bit operands, at twice the rate.
        attention: microseconds of (forward, backward) for 256 images of 6 heads; None: as the budget predicts.
    """

    model: str
    batch: int
    teacher: Literal["cached", "live"] = "cached"
    cards: int = 1
    residual: Literal["fp32", "bf16"] = "fp32"
    gelu_in_products: bool = False
    sums_in_norms: bool = False
    qkv_bias_in_attention: bool = False
    update_in_one: bool = False
    graph: bool = False
    fp8: bool = False
    attention: tuple[float, float] | None = None

    @property
    def config(self) -> ViTConfig:
        return CONFIGS[self.model]


class Part(NamedTuple):
    """A row of the table; `flop` counts matrix products only, `floor` marks a time that no kernel was predicted for."""

    name: str
    bytes: float
    flop: float
    seconds: float
    floor: bool = False


class Product(NamedTuple):
    """A matrix product of bfloat16 (rows, depth) and (depth, columns)."""

    of: Literal["output", "weight", "input"]  # the value, or whose gradient
    rows: int
    columns: int
    depth: int

    @property
    def flop(self) -> int:
        return 2 * self.rows * self.columns * self.depth

    def bytes(self, operand: int = HALF) -> int:
        """Both operands of `operand` bytes a value, and the bfloat16 result."""
        return operand * (self.rows + self.columns) * self.depth + HALF * self.rows * self.columns


class Rows(NamedTuple):
    """Rows of the activations of a batch."""

    all: int  # images × tokens
    last: int  # images × prefix tokens: what the last block computes after its attention
    patches: int

    @classmethod
    def of(cls, config: ViTConfig, batch: int) -> Rows:
        patches = math.prod(config.grid_size)
        return cls(batch * (patches + config.prefix_tokens), batch * config.prefix_tokens, batch * patches)

    def after_attention(self, config: ViTConfig) -> list[int]:
        """Of every block."""
        return [self.all] * (config.depth - 1) + [self.last]


@functools.cache
def on_meta(name: str) -> VisionTransformer:
    """The model without values."""
    with torch.device("meta"):
        return create_model(name)


def parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in on_meta(name).parameters())


def hidden(config: ViTConfig) -> int:
    """Channels between the two layers of an MLP."""
    return int(config.width * config.mlp_ratio)


def products(config: ViTConfig, batch: int) -> list[Product]:
    """Every matrix product of a step: of each layer the output, the gradient of its weight and that of its input."""
    rows, width = Rows.of(config, batch), config.width
    layers = [(rows.patches, width, 3 * config.patch_size**2)]  # rows, output features, input features
    for after in rows.after_attention(config):
        layers += [
            (rows.all, 3 * width, width), (after, width, width),
            (after, hidden(config), width), (after, width, hidden(config)),
        ]  # fmt: skip
    layers += [(batch, config.classes, width)] * (1 + config.distilled)
    return [
        *(Product("output", count, features, given) for count, features, given in layers),
        *(Product("weight", features, given, count) for count, features, given in layers),
        *(Product("input", count, given, features) for count, features, given in layers[1:]),  # images need none
    ]


def step_parts(settings: Settings, machine: Machine = Machine(), kernels: Kernels | None = None) -> list[Part]:
    """The rows of one card's step, in the order of the table.

    Args:
        kernels: the budget's of the machine's target; None reads the committed budget.
    """
    kernels = predictions(machine.target) if kernels is None else kernels
    config, batch = settings.config, settings.batch
    operand, faster = (1, 2) if settings.fp8 else (HALF, 1)
    every = [(each.flop, each.bytes(operand)) for each in products(config, batch)]
    in_products = sum(max(flop / (faster * machine.product_rate), size / machine.bandwidth) for flop, size in every)
    moved = {
        "LN, residual and GELU, forward": _forward_bytes(settings),
        "LN, residual and GELU, backward": _backward_bytes(settings),
        "sums over rows: LN's weights, biases": _sum_bytes(settings),
        "casts of weights, gradients and patches": _cast_bytes(settings),
        "loss": 6 * HALF * batch * config.classes,  # both heads: read; read again, and their gradients written
        "AdamW, norm, moving average": _update_bytes(settings),
    }
    if settings.fp8:
        # Hopper sums 8-bit operands along their contiguous dimension only: not that of a weight's gradient.
        weights = [each for each in products(config, batch) if each.of == "weight"]
        moved["transposed 8-bit copies"] = sum(2 * (each.rows + each.columns) * each.depth for each in weights)
    flop, size = (sum(column) for column in zip(*every, strict=True))
    parts = [
        Part(f"{len(every)} matrix products", size, flop, in_products),
        *(_attention(settings, machine, kernels, direction) for direction in ("forward", "backward")),
        *(Part(name, size, 0, size / machine.bandwidth) for name, size in moved.items()),
        Part("augmentation", 0, 0, machine.augmentation_and_source()[0] * batch),
    ]  # fmt: skip
    if not settings.graph:
        launched = launches(config)
        parts.append(Part(f"gaps between {launched} kernels", 0, 0, launched * machine.gap))
    if settings.teacher == "live":
        parts.append(_teacher(batch, machine))
    if settings.cards > 1:
        parts.append(_exchange(settings, machine))
    return parts


def total(parts: list[Part]) -> Part:
    """The sum of all rows."""
    sums = (sum(values) for values in zip(*(part[1:4] for part in parts), strict=True))
    return Part("sum", *sums, any(part.floor for part in parts))


def launches(config: ViTConfig) -> int:
    """Kernels of a step: each product, attention pass, LN, GELU and cast one, a sum over rows two, 60 outside."""
    forward = 4 + 1 + 2 + 1
    backward = 8 + 1 + 2 + 1 + 2 * (2 + 4)
    casts = 2 * 4
    return config.depth * (forward + backward + casts) + 60


def _attention(settings: Settings, machine: Machine, kernels: Kernels, direction: str) -> Part:
    """All layers: predicted, or where the budget predicts nothing at the byte floor, 4 tensors forward, 8 backward."""
    config, backward = settings.config, direction == "backward"
    tokens = Rows.of(config, 1).all
    pairs = settings.batch * config.heads
    size = (8 if backward else 4) * HALF * settings.batch * tokens * config.width
    flop = (5 if backward else 2) * 2 * settings.batch * tokens**2 * config.width
    if settings.attention:
        microseconds = settings.attention[backward] * pairs / PAIRS
    else:
        microseconds = attention_us(kernels, direction, tokens, config.width // config.heads, pairs)
    seconds = size / machine.bandwidth if microseconds is None else microseconds * 1e-6
    name, depth = f"attention, {direction}", config.depth
    return Part(name, depth * size, depth * flop, depth * seconds, microseconds is None)


def _between(settings: Settings) -> int:
    """Bytes of a value between blocks."""
    return FULL if settings.residual == "fp32" else HALF


def _forward_bytes(settings: Settings) -> float:
    """LN with the sum before it reads the residual and a branch and writes both; GELU reads and writes."""
    config, between = settings.config, _between(settings)
    rows = Rows.of(config, settings.batch)
    after = rows.after_attention(config)
    norm = config.width * (2 * between + 2 * HALF)
    gelu = HALF if settings.gelu_in_products else 2 * HALF  # in an epilogue it is only written
    first = rows.all * config.width * (HALF + between + HALF)  # positions are added, there is no residual to read
    norms = first + norm * ((config.depth - 1) * rows.all + sum(after) + rows.last)
    return norms + gelu * hidden(config) * sum(after)


def _backward_bytes(settings: Settings) -> float:
    """LN reads its gradient, its input and the residual's gradient, and writes that in both types; GELU reads two."""
    config, between = settings.config, _between(settings)
    rows = Rows.of(config, settings.batch)
    after = rows.after_attention(config)
    norm = config.width * (3 * between + 2 * HALF)
    gelu = HALF if settings.gelu_in_products else 3 * HALF
    norms = norm * (config.depth * rows.all + sum(after) + rows.last)
    zeros = HALF * config.width * rows.all  # of the last block's attention the gradient is zero but for prefix tokens
    return norms + zeros + gelu * hidden(config) * sum(after)


def _sum_bytes(settings: Settings) -> float:
    """Each gradient of a vector reads what it sums once more; those of LN the gradient and the input."""
    config, between, width = settings.config, _between(settings), settings.config.width
    rows = Rows.of(config, settings.batch)
    after = sum(rows.after_attention(config))
    norms = width * (between + HALF) * (config.depth * rows.all + after + rows.last)
    projections = HALF * 2 * width * after  # of proj and fc2
    fc1, qkv = HALF * hidden(config) * after, HALF * 3 * width * config.depth * rows.all
    embedding = between * width * rows.all + HALF * width * rows.patches  # positions, and the patches' bias
    kept = (
        (0 if settings.sums_in_norms else norms + projections)
        + (0 if settings.gelu_in_products else fc1)
        + (0 if settings.qkv_bias_in_attention else qkv)
    )
    return kept + embedding


def _cast_bytes(settings: Settings) -> float:
    """Matrices to bfloat16, their gradients back, and the patches, which the augmentation writes in float32."""
    matrices = sum(
        parameter.numel()
        for name, parameter in on_meta(settings.model).named_parameters()
        if parameter.ndim > 1 and name.endswith("weight")
    )
    config = settings.config
    pixels = Rows.of(config, settings.batch).patches * 3 * config.patch_size**2
    return (matrices * 2 + pixels) * (FULL + HALF)


def _update_bytes(settings: Settings) -> float:
    """AdamW reads four tensors and writes three, the norm reads the gradient, the average reads two and writes one."""
    tensors = 7 + 1 + (2 if settings.update_in_one else 3)
    return tensors * FULL * parameters(settings.model)


def _exchange(settings: Settings, machine: Machine) -> Part:
    """What the backward does not hide of the gradients' all-reduce: its last bucket."""
    share = 2 * (settings.cards - 1) / settings.cards
    gradients = FULL * parameters(settings.model)
    exposed = min(machine.bucket, gradients)
    name = f"all-reduce over {settings.cards} cards, the last bucket"
    return Part(name, 0, 0, share * exposed / machine.link)


def exchange_seconds(settings: Settings, machine: Machine = Machine()) -> float:
    """The whole all-reduce of the gradients, hidden or not."""
    return 2 * (settings.cards - 1) / settings.cards * FULL * parameters(settings.model) / machine.link


def _teacher(batch: int, machine: Machine) -> Part:
    """Every convolution at the products' rate or by its bytes, and one pass over its output for what follows it."""
    flop, size, seconds = 0.0, 0.0, 0.0
    for layer in teacher_layers():
        own = HALF * ((layer.read + layer.written) * batch + layer.weights)
        after = 2 * HALF * layer.written * batch
        flop += layer.flop * batch
        size += own + after
        seconds += max(layer.flop * batch / machine.product_rate, own / machine.bandwidth) + after / machine.bandwidth
    return Part("teacher RegNetY-16GF, forward", size, flop, seconds)


class Convolution(NamedTuple):
    """Of one image: operations, weights, values read and written."""

    flop: int
    weights: int
    read: int
    written: int


@functools.cache
def teacher_layers() -> tuple[Convolution, ...]:
    """Every convolution of the teacher, and its classifier."""
    with torch.device("meta"):
        teacher = timm.create_model(TEACHER).eval()
        found = []

        def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            weights, places = layer.weight.numel(), output.numel() // layer.weight.shape[0]
            found.append(Convolution(2 * weights * places, weights, inputs[0].numel(), output.numel()))

        for layer in teacher.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(note)
        with torch.no_grad():
            teacher(torch.empty(1, 3, TEACHER_SIZE, TEACHER_SIZE))
    return tuple(found)
