"""The distillation loss against eager PyTorch, torch.compile, timm's task and Liger's kernels.

    pytest benchmarks/bench_loss.py                            # a card: every form at B = 256, C = 1000; and C = 21 841
    pytest benchmarks/bench_loss.py -m "slow or not slow"      # every batch size and class count
    pytest benchmarks/bench_loss.py --benchmark-json=out.json

`test_binary_cross_entropy` is DeiT III's loss beside F.binary_cross_entropy_with_logits on dense targets,
`test_class_weights` the paper's with a weight for every class.

A row is one call, forward, backward alone, or both, on bf16 logits of two heads and a teacher. Its limit is the byte
floor: each tensor moved once. `extra_info` also holds the kernels launched and the host's microseconds. Without a card
the logits are float32, the row is of one thread, and other sizes have one row for all forms: `worst_form`, the form in
which eager PyTorch comes nearest to us.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.measure.device_timing import CLOCK_NAME, DEVICE, ON_CARD, environment, memory_limit
from benchmarks.measure.interleaved import Limit, alternate, record, repeated
from benchmarks.measure.passes import DIRECTIONS, Given, Op
from benchmarks.measure.peers import Fixed
from deit_kernels import MixedTarget, binary_cross_entropy, distillation_loss

pytestmark = pytest.mark.benchmark(group="loss")

SMOOTHING, ALPHA, TAU, ROUNDS = 0.1, 0.5, 3.0, 20
DTYPE = torch.bfloat16 if ON_CARD else torch.float32
FORMS = list(itertools.product(("hard", "soft"), ("int", "mixed", "dense")))


@dataclass(frozen=True)
class Shape:
    """One call: its form and its size."""

    mode: Any  # of distillation_loss, or binary
    target: str
    rows: int
    classes: int
    weighted: bool = False  # by class

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

    def flops(self, direction: str) -> int:
        return 0

    def limit(self, direction: str) -> Limit:
        return memory_limit(self.floor_bytes(direction))


@dataclass
class Inputs:
    """One batch."""

    shape: Shape
    cls: Tensor
    dist: Tensor
    teacher: Tensor
    labels: Tensor
    partner: Tensor
    lam: Tensor
    dense: Tensor
    weight: Tensor | None

    @classmethod
    def random(cls, shape: Shape) -> Inputs:
        size = (shape.rows, shape.classes)
        logits = [torch.randn(size, device=DEVICE, dtype=DTYPE) for _ in range(4)]
        labels, partner = torch.randint(shape.classes, (2, shape.rows), device=DEVICE)
        return cls(
            shape, logits[0].requires_grad_(), logits[1].requires_grad_(), logits[2], labels, partner,
            torch.rand(shape.rows, device=DEVICE), logits[3].float().softmax(1).to(DTYPE),
            torch.rand(shape.classes, device=DEVICE) if shape.weighted else None,
        )  # fmt: skip

    def timms_target(self, smoothing: float = SMOOTHING) -> Tensor:
        """The dense (B, C) target, or the one that timm's Mixup builds, smoothing included."""
        if self.shape.target == "dense":
            return self.dense
        classes = self.shape.classes
        off, on = smoothing / classes, 1 - smoothing + smoothing / classes
        first, second = (
            torch.full((len(labels), classes), off, device=labels.device).scatter_(1, labels[:, None], on)
            for labels in (self.labels, self.partner)
        )
        return first * self.lam[:, None] + second * (1 - self.lam[:, None])


def ours(inputs: Inputs) -> Any:
    shape, mixed = inputs.shape, MixedTarget(inputs.labels, inputs.partner, inputs.lam)
    target = {"int": inputs.labels, "dense": inputs.dense}.get(shape.target, mixed)
    if shape.mode == "binary":
        return binary_cross_entropy(inputs.cls, target, target_threshold=0.0 if shape.target == "mixed" else None)
    soft: dict[str, Any] = {"tau": TAU, "kl_normalizer": "batch"} if shape.mode == "soft" else {}
    return distillation_loss(
        inputs.cls, inputs.dist, inputs.teacher, target, mode=shape.mode, alpha=ALPHA,
        label_smoothing=0.0 if shape.target == "dense" else SMOOTHING, weight=inputs.weight, **soft,
    )  # fmt: skip


def eager(inputs: Inputs) -> Tensor:
    """The official code's formulas, in the float32 that autocast gives them."""
    shape, cls, dist, teacher = inputs.shape, inputs.cls.float(), inputs.dist.float(), inputs.teacher.float()
    if shape.mode == "binary":
        target = inputs.timms_target(smoothing=0.0)
        return F.binary_cross_entropy_with_logits(cls, (target.gt(0.0) if shape.target == "mixed" else target).float())
    if inputs.weight is not None:
        return _eager_weighted(inputs, cls, dist, teacher, inputs.weight)
    if shape.target == "int":
        base = F.cross_entropy(cls, inputs.labels, label_smoothing=SMOOTHING)
    else:
        base = torch.sum(-inputs.timms_target() * F.log_softmax(cls, dim=-1), dim=-1).mean()
    if shape.mode == "hard":
        distill = F.cross_entropy(dist, teacher.argmax(1))
    else:
        student, teacher = F.log_softmax(dist / TAU, dim=1), F.log_softmax(teacher / TAU, dim=1)
        distill = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * TAU**2
    return (1 - ALPHA) * base + ALPHA * distill


def _eager_weighted(inputs: Inputs, cls: Tensor, dist: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    rows = inputs.lam * weight[inputs.labels] + (1 - inputs.lam) * weight[inputs.partner]
    base = F.cross_entropy(cls, inputs.timms_target(), weight, reduction="sum") / rows.sum()
    distill = (rows * F.cross_entropy(dist, teacher.argmax(1), reduction="none")).sum() / rows.sum()
    return (1 - ALPHA) * base + ALPHA * distill


# Dynamo would stop at 8 shapes, and eager code would be timed under the name "compiled".
torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000


@functools.cache
def _timm_task(mode: str, target: str) -> Any:
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
    from timm.task import TokenDistillationTask

    criterion = LabelSmoothingCrossEntropy(SMOOTHING) if target == "int" else SoftTargetCrossEntropy()
    task: Any = TokenDistillationTask(
        Fixed(), Fixed(), criterion=criterion, distill_type=mode, task_loss_weight=1 - ALPHA, temperature=TAU,
        device=DEVICE, verbose=False,
    )  # fmt: skip
    task.teacher.normalize_input = lambda images, mean, std: images  # a device comparison, and not part of the loss
    return task


def timms_task(inputs: Inputs) -> Tensor:
    task = _timm_task(inputs.shape.mode, inputs.shape.target)
    task.trainable_module.outputs = inputs.cls.float(), inputs.dist.float()
    task.teacher.model.outputs = (inputs.teacher.float(),)
    return task(inputs.lam, inputs.labels if inputs.shape.target == "int" else inputs.timms_target())["loss"]


def liger(inputs: Inputs) -> Tensor:
    """Liger's cross-entropy and KL; it overwrites the logits that it is given, here with their gradient."""
    from liger_kernel.transformers import LigerCrossEntropyLoss, LigerKLDIVLoss

    base = LigerCrossEntropyLoss(label_smoothing=SMOOTHING)(inputs.cls.clone(), inputs.labels)
    if inputs.shape.mode == "hard":
        distill = LigerCrossEntropyLoss()(inputs.dist.clone(), inputs.teacher.argmax(1))
    else:
        logs = [F.log_softmax(logits.float() / TAU, dim=1) for logits in (inputs.dist, inputs.teacher)]
        distill = LigerKLDIVLoss(reduction="batchmean", log_target=True)(*logs) * TAU**2
    return (1 - ALPHA) * base + ALPHA * distill


LOSSES = {
    "ours": ours, "eager": eager, "compiled": torch.compile(eager, dynamic=False), "timm": timms_task, "liger": liger,
}  # fmt: skip


def covering(shape: Shape) -> list[str]:
    """The forms that have this mode and target."""
    own = ["ours", "eager", "compiled"]
    return own if shape.mode == "binary" or shape.weighted else [*own, "timm", *["liger"] * (shape.target == "int")]


def loss_of(name: str):
    if not ON_CARD and name == "liger":
        raise NotImplementedError(f"{name} is timed on a card")
    return LOSSES[name]


def given(name: str, shape: Shape) -> Given:
    inputs = Inputs.random(shape)
    return Given([inputs], [inputs.cls] if shape.mode == "binary" else [inputs.cls, inputs.dist])


LOSS = Op(loss_of, given, waits=("liger",))  # which reads the number of labels back to the host


def shapes() -> list:
    """Every form at the paper's size, the largest size for the byte floor; the rest is slow. No card: one size."""
    if not ON_CARD:
        return [Shape(mode, target, 256, 1000) for mode, target in FORMS]
    wanted = []
    for rows, classes, (mode, target) in itertools.product((256, 1024, 64), (1000, 21841, 100), FORMS):
        quick = (rows, classes) == (256, 1000) or ((rows, classes) == (1024, 21841) and target == "mixed")
        wanted.append(pytest.param(Shape(mode, target, rows, classes), marks=() if quick else (pytest.mark.slow,)))
    return wanted


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", shapes(), ids=lambda s: f"{s.mode}-{s.target}-B{s.rows}-C{s.classes}")
def test_loss(benchmark: BenchmarkFixture, one_thread: None, shape: Shape, direction: str) -> None:
    LOSS.row(benchmark, shape, direction, covering(shape), ROUNDS)


@pytest.mark.skipif(ON_CARD, reason="every form has a row of its own on a card")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("classes", (10, 100, 21841), ids=lambda classes: f"C{classes}")
@pytest.mark.parametrize("rows", (1, 8, 64), ids=lambda rows: f"B{rows}")
def test_worst_form(benchmark: BenchmarkFixture, one_thread: None, rows: int, classes: int, direction: str) -> None:
    calls = max(1, min(100, 200_000 // (rows * classes)))  # a turn of milliseconds
    found = {}
    for mode, target in FORMS:
        shape = Shape(mode, target, rows, classes)
        turns = {name: repeated(LOSS.calls(name, shape, direction)[0], calls) for name in ("ours", "eager")}
        seconds = alternate(turns, rounds=9)
        found[shape] = statistics.median(seconds["eager"]) / statistics.median(seconds["ours"]), seconds
    worst = min(found, key=lambda shape: found[shape][0])
    record(
        benchmark, found[worst][1], work=calls, clock=CLOCK_NAME, limit=worst.limit(direction), direction=direction,
        **vars(worst), floor_bytes=worst.floor_bytes(direction), **environment(),
        ratios={f"{shape.mode}-{shape.target}": round(ratio, 2) for shape, (ratio, _) in found.items()},
    )  # fmt: skip


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("target", ("mixed", "dense"))
def test_binary_cross_entropy(benchmark: BenchmarkFixture, one_thread: None, target: str, direction: str) -> None:
    shape = Shape("binary", target, 256, 1000)
    LOSS.row(benchmark, shape, direction, covering(shape), ROUNDS)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_class_weights(benchmark: BenchmarkFixture, one_thread: None, direction: str) -> None:
    shape = Shape("hard", "mixed", 256, 1000, weighted=True)
    LOSS.row(benchmark, shape, direction, covering(shape), ROUNDS)


def test_providers_agree() -> None:
    """What is compared computes the same."""
    shapes = [Shape(mode, target, 8, 100) for mode, target in [*FORMS, ("binary", "mixed"), ("binary", "dense")]]
    for shape in [*shapes, Shape("hard", "mixed", 8, 100, weighted=True)]:
        inputs = Inputs.random(shape)
        for name in covering(shape):
            if name in ("liger", "compiled") and not ON_CARD:
                continue
            try:
                loss = LOSSES[name](inputs)
            except ImportError:  # of a peer that is not installed here
                continue
            torch.testing.assert_close(loss.float(), eager(inputs), rtol=1e-2, atol=1e-2)
