"""The distillation loss against eager PyTorch, torch.compile, timm's task and Liger's kernels.

    pytest benchmarks/bench_loss.py                            # a card: every form at B = 256, C = 1000; and C = 21 841
    pytest benchmarks/bench_loss.py -m "slow or not slow"      # every batch size and class count
    pytest benchmarks/bench_loss.py --benchmark-json=out.json

`test_binary_cross_entropy` is DeiT III's loss beside F.binary_cross_entropy_with_logits on dense targets.

A row is one call, forward, backward alone, or both, on bf16 logits of two heads and a teacher. Its limit is the byte
floor: each tensor moved once. `extra_info` also holds the kernels launched and the host's microseconds. Without a card
the logits are float32, the row is of one thread, and other sizes have one row for all forms: `worst_form`, the form in
which eager PyTorch comes nearest to us.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from benchmarks.measure.device_timing import (
    CLOCK_NAME,
    DEVICE,
    ON_CARD,
    copies,
    environment,
    host_microseconds,
    kernels_launched,
    memory_limit,
    time_calls,
)
from benchmarks.measure.interleaved import alternate, record
from deit_kernels import MixedTarget, binary_cross_entropy, distillation_loss

pytestmark = pytest.mark.benchmark(group="loss")

SMOOTHING, ALPHA, TAU = 0.1, 0.5, 3.0
DTYPE = torch.bfloat16 if ON_CARD else torch.float32


@dataclass(frozen=True)
class Shape:
    """One call: its form and its size."""

    mode: str
    target: str
    rows: int
    classes: int

    def floor_bytes(self, direction: str) -> int:
        """Bytes of the logits, dense targets and gradients, each moved once."""
        matrix = DTYPE.itemsize * self.rows * self.classes
        dense = self.target == "dense"
        if self.mode == "binary":
            return matrix * (1 + dense + (direction != "forward"))
        reads = {
            "forward": 3 + dense,
            "backward": 2 + (self.mode == "soft") + dense,  # the hard teacher's label is saved
            "both": 3 + dense,
        }[direction]
        return matrix * (reads + (0 if direction == "forward" else 2))


@dataclass
class Inputs:
    """One batch."""

    cls: Tensor
    dist: Tensor
    teacher: Tensor
    labels: Tensor
    partner: Tensor
    lam: Tensor
    dense: Tensor

    @classmethod
    def random(cls, shape: Shape) -> Inputs:
        size = (shape.rows, shape.classes)
        logits = [torch.randn(size, device=DEVICE, dtype=DTYPE) for _ in range(4)]
        labels, partner = torch.randint(shape.classes, (2, shape.rows), device=DEVICE)
        return cls(
            logits[0].requires_grad_(), logits[1].requires_grad_(), logits[2], labels, partner,
            torch.rand(shape.rows, device=DEVICE), logits[3].float().softmax(1).to(DTYPE),
        )  # fmt: skip


def mixed_target(inputs: Inputs, classes: int, smoothing: float = SMOOTHING) -> Tensor:
    """The (B, C) target that timm's Mixup builds, smoothing included."""
    off, on = smoothing / classes, 1 - smoothing + smoothing / classes
    first, second = (
        torch.full((len(labels), classes), off, device=labels.device).scatter_(1, labels[:, None], on)
        for labels in (inputs.labels, inputs.partner)
    )
    return first * inputs.lam[:, None] + second * (1 - inputs.lam[:, None])


def ours(shape: Shape, inputs: Inputs) -> Tensor:
    targets = {
        "int": inputs.labels,
        "mixed": MixedTarget(inputs.labels, inputs.partner, inputs.lam),
        "dense": inputs.dense,
    }
    soft = {"tau": TAU, "kl_normalizer": "batch"} if shape.mode == "soft" else {}
    return distillation_loss(
        inputs.cls, inputs.dist, inputs.teacher, targets[shape.target], mode=shape.mode, alpha=ALPHA,
        label_smoothing=0.0 if shape.target == "dense" else SMOOTHING, **soft,
    )  # fmt: skip


def eager(shape: Shape, inputs: Inputs) -> Tensor:
    """The official code's formulas, in the float32 that autocast gives them."""
    cls, dist, teacher = inputs.cls.float(), inputs.dist.float(), inputs.teacher.float()
    if shape.target == "int":
        base = F.cross_entropy(cls, inputs.labels, label_smoothing=SMOOTHING)
    else:
        target = inputs.dense if shape.target == "dense" else mixed_target(inputs, shape.classes)
        base = torch.sum(-target * F.log_softmax(cls, dim=-1), dim=-1).mean()
    if shape.mode == "hard":
        distill = F.cross_entropy(dist, teacher.argmax(1))
    else:
        student, teacher = F.log_softmax(dist / TAU, dim=1), F.log_softmax(teacher / TAU, dim=1)
        distill = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * TAU**2
    return (1 - ALPHA) * base + ALPHA * distill


# Dynamo would stop at 8 shapes, and eager code would be timed under the name "compiled".
torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
compiled = torch.compile(eager, dynamic=False)


class Given(nn.Module):
    """A model whose outputs are already there, so that timm's task computes its loss and nothing else."""

    num_classes, in_chans, pretrained_cfg = 0, 3, {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def __init__(self) -> None:
        super().__init__()
        self.outputs: object = None

    def set_distilled_training(self, enable: bool) -> None: ...

    def forward(self, images: Tensor) -> object:
        return self.outputs


@functools.cache
def _timm_task(mode: str, target: str) -> nn.Module:
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
    from timm.task import TokenDistillationTask

    criterion = LabelSmoothingCrossEntropy(SMOOTHING) if target == "int" else SoftTargetCrossEntropy()
    return TokenDistillationTask(
        Given(), Given(), criterion=criterion, distill_type=mode, task_loss_weight=1 - ALPHA, temperature=TAU,
        device=DEVICE, verbose=False,
    )  # fmt: skip


def timms_task(shape: Shape, inputs: Inputs) -> Tensor:
    task = _timm_task(shape.mode, shape.target)
    task.trainable_module.outputs = inputs.cls.float(), inputs.dist.float()
    task.teacher.model.outputs = inputs.teacher.float()
    task.teacher.normalize_input = lambda images, mean, std: images  # a device comparison, and not part of the loss
    target = {"int": lambda: inputs.labels, "dense": lambda: inputs.dense}.get(shape.target)
    target = target() if target else mixed_target(inputs, shape.classes)
    return task(inputs.lam, target)["loss"]


def liger(shape: Shape, inputs: Inputs) -> Tensor:
    """Liger's cross-entropy and KL; it overwrites the logits that it is given, here with their gradient."""
    from liger_kernel.transformers import LigerCrossEntropyLoss, LigerKLDIVLoss

    base = LigerCrossEntropyLoss(label_smoothing=SMOOTHING)(inputs.cls.clone(), inputs.labels)
    if shape.mode == "hard":
        distill = LigerCrossEntropyLoss()(inputs.dist.clone(), inputs.teacher.argmax(1))
    else:
        logs = [F.log_softmax(logits.float() / TAU, dim=1) for logits in (inputs.dist, inputs.teacher)]
        distill = LigerKLDIVLoss(reduction="batchmean", log_target=True)(*logs) * TAU**2
    return (1 - ALPHA) * base + ALPHA * distill


@dataclass(frozen=True)
class Provider:
    """Whose loss is timed.

    Attributes:
        capture: it can run inside a CUDA graph.
        targets: the targets it covers.
    """

    loss: Callable[[Shape, Inputs], Tensor]
    capture: bool = True
    targets: tuple[str, ...] = ("int", "mixed", "dense")


PROVIDERS = {
    "ours": Provider(ours),
    "eager": Provider(eager),
    "compiled": Provider(compiled),
    "timm": Provider(timms_task),
    "liger": Provider(liger, capture=False, targets=("int",)),  # reads the number of labels back to the host
}
DIRECTIONS = ("forward", "backward", "both") if ON_CARD else ("forward", "both")
FORMS = [(mode, target) for mode in ("hard", "soft") for target in ("int", "mixed", "dense")]


def shapes() -> list:
    """Every form at the paper's size, the largest size for the byte floor; the rest is slow. No card: one size."""
    if not ON_CARD:
        return [Shape(mode, target, 256, 1000) for mode, target in FORMS]
    wanted = []
    for rows in (256, 1024, 64):
        for classes in (1000, 21841, 100):
            for mode in ("hard", "soft"):
                for target in ("int", "mixed", "dense"):
                    quick = (rows, classes) == (256, 1000) or ((rows, classes) == (1024, 21841) and target == "mixed")
                    marks = () if quick else (pytest.mark.slow,)
                    wanted.append(pytest.param(Shape(mode, target, rows, classes), marks=marks))
    return wanted


def calls_of(provider: Provider, shape: Shape, direction: str) -> list[Callable[[], object]]:
    """One call for each set of inputs."""
    batches = [Inputs.random(shape) for _ in range(copies(shape.floor_bytes("both")))]

    def forward(inputs: Inputs) -> Tensor:
        return provider.loss(shape, inputs)

    def both(inputs: Inputs) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(inputs), (inputs.cls, inputs.dist))

    if direction != "backward":
        return [functools.partial(forward if direction == "forward" else both, inputs) for inputs in batches]
    losses = [forward(inputs) for inputs in batches]
    return [
        functools.partial(torch.autograd.grad, loss, (inputs.cls, inputs.dist), retain_graph=True)
        for loss, inputs in zip(losses, batches, strict=True)
    ]


def makers_of(shape: Shape, direction: str) -> dict[str, Callable[[], list[Callable[[], object]]]]:
    """The calls of every provider that covers the target, made when their turn comes."""

    def make(name: str) -> list[Callable[[], object]]:
        if not ON_CARD and name == "liger":
            raise NotImplementedError(f"{name} is timed on a card")
        return calls_of(PROVIDERS[name], shape, direction)

    covering = [name for name, provider in PROVIDERS.items() if shape.target in provider.targets]
    return {name: functools.partial(make, name) for name in covering}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", shapes(), ids=lambda s: f"{s.mode}-{s.target}-B{s.rows}-C{s.classes}")
def test_loss(benchmark: BenchmarkFixture, one_thread: None, shape: Shape, direction: str) -> None:
    waits = tuple(name for name, provider in PROVIDERS.items() if not provider.capture)
    seconds, left_out = time_calls(makers_of(shape, direction), rounds=20, waits=waits)
    call, floor = calls_of(PROVIDERS["ours"], shape, direction)[0], shape.floor_bytes(direction)
    record(
        benchmark, seconds, clock=CLOCK_NAME, limit=memory_limit(floor), left_out=left_out, direction=direction,
        **vars(shape), versions={name: torch.__version__ for name in seconds if name in ("eager", "compiled")},
        kernels=kernels_launched(call), host_us=host_microseconds(call), floor_bytes=floor, **environment(),
    )  # fmt: skip


@pytest.mark.skipif(ON_CARD, reason="every form has a row of its own on a card")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("classes", (10, 100, 21841), ids=lambda classes: f"C{classes}")
@pytest.mark.parametrize("rows", (1, 8, 64), ids=lambda rows: f"B{rows}")
def test_worst_form(benchmark: BenchmarkFixture, one_thread: None, rows: int, classes: int, direction: str) -> None:
    calls = max(1, min(100, 200_000 // (rows * classes)))  # a turn of milliseconds
    found = {}
    for mode, target in FORMS:
        shape, turns = Shape(mode, target, rows, classes), {}
        for name in ("ours", "eager"):
            (call,) = calls_of(PROVIDERS[name], shape, direction)
            turns[name] = functools.partial(repeated, call, calls)
        seconds = alternate(turns, rounds=9)
        found[shape] = statistics.median(seconds["eager"]) / statistics.median(seconds["ours"]), seconds
    worst = min(found, key=lambda shape: found[shape][0])
    floor = worst.floor_bytes(direction)
    record(
        benchmark, found[worst][1], work=calls, clock=CLOCK_NAME, limit=memory_limit(floor), direction=direction,
        **vars(worst), versions={"eager": torch.__version__}, floor_bytes=floor, **environment(),
        ratios={f"{shape.mode}-{shape.target}": round(ratio, 2) for shape, (ratio, _) in found.items()},
    )  # fmt: skip


def our_binary(shape: Shape, inputs: Inputs) -> Tensor:
    target = inputs.dense if shape.target == "dense" else MixedTarget(inputs.labels, inputs.partner, inputs.lam)
    return binary_cross_entropy(inputs.cls, target, target_threshold=0.0 if shape.target == "mixed" else None)


def eager_binary(shape: Shape, inputs: Inputs) -> Tensor:
    """As the official code: the target that timm's Mixup builds, compared with 0."""
    if shape.target == "dense":
        return F.binary_cross_entropy_with_logits(inputs.cls.float(), inputs.dense.float())
    target = mixed_target(inputs, shape.classes, smoothing=0.0).gt(0.0).float()
    return F.binary_cross_entropy_with_logits(inputs.cls.float(), target)


BINARY = {
    "ours": our_binary,
    "eager": eager_binary,
    "compiled": torch.compile(eager_binary, dynamic=False),
}


def binary_calls(name: str, shape: Shape, direction: str) -> list[Callable[[], object]]:
    batches = [Inputs.random(shape) for _ in range(copies(shape.floor_bytes("both")))]
    run = functools.partial(BINARY[name], shape)
    if direction == "forward":
        return [functools.partial(run, inputs) for inputs in batches]
    if direction == "both":
        return [lambda each=each: torch.autograd.grad(run(each), each.cls) for each in batches]
    return [functools.partial(torch.autograd.grad, run(each), each.cls, retain_graph=True) for each in batches]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("target", ("mixed", "dense"))
def test_binary_cross_entropy(benchmark: BenchmarkFixture, one_thread: None, target: str, direction: str) -> None:
    shape = Shape("binary", target, 256, 1000)
    makers = {name: functools.partial(binary_calls, name, shape, direction) for name in BINARY}
    seconds, left_out = time_calls(makers, rounds=20)
    call, floor = binary_calls("ours", shape, direction)[0], shape.floor_bytes(direction)
    record(
        benchmark, seconds, clock=CLOCK_NAME, limit=memory_limit(floor), left_out=left_out, direction=direction,
        **vars(shape), versions=dict.fromkeys(("eager", "compiled"), torch.__version__), floor_bytes=floor,
        kernels=kernels_launched(call), host_us=host_microseconds(call), **environment(),
    )  # fmt: skip


def repeated(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def test_providers_agree() -> None:
    """What is compared computes the same."""
    for mode in ("hard", "soft"):
        for target in ("int", "mixed", "dense"):
            shape = Shape(mode, target, 8, 100)
            inputs = Inputs.random(shape)
            expected = eager(shape, inputs)
            for name, provider in PROVIDERS.items():
                if target not in provider.targets or (name in ("liger", "compiled") and not ON_CARD):
                    continue
                try:
                    loss = provider.loss(shape, inputs)
                except ImportError:  # of a peer that is not installed here
                    continue
                torch.testing.assert_close(loss.float(), expected, rtol=1e-2, atol=1e-2)
    for target in ("mixed", "dense"):
        shape = Shape("binary", target, 8, 100)
        inputs = Inputs.random(shape)
        torch.testing.assert_close(our_binary(shape, inputs), eager_binary(shape, inputs), rtol=1e-2, atol=1e-2)
